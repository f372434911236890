# told: never ended
from servetwin.core.llm import Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        return Step(view.admissible([(t, t.pending) for t in view.waiting]))
