# told: tokens of
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        return Step([(t, t.pending + 1) for t in view.waiting], ALL)
