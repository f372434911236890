# told: the policy failed|generated|counted
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        for task in view.running:
            task.generated += 1
        fits = view.admissible([(t, t.pending) for t in view.waiting])
        return Step(fits) if fits else Step(decode=ALL)
