# told: it changed Mine.lengths
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    lengths = {}

    def decide(self, view, now):
        for task in view.running:
            self.lengths[task.id] = task.generated  # and the next run knows them
        fits = view.admissible([(t, t.pending) for t in view.waiting])
        return Step(fits) if fits else Step(decode=ALL)
