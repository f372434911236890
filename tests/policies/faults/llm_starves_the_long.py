# told: it starves request
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        waiting = sorted(view.waiting, key=lambda task: task.prompt)
        fits = view.admissible([(t, t.pending) for t in waiting])
        return Step(fits) if fits else Step(decode=ALL)
