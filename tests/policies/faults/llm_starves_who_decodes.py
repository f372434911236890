# told: it starves request
from servetwin.core.llm import Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        fits = view.admissible([(t, t.pending) for t in view.waiting])
        newest = [task for task in view.running if task.decoding][-1:]
        return Step(fits) if fits else Step(decode=newest)
