# told: which is decoding|speaks of a task twice|tokens of
from servetwin.core.llm import Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        return Step([(t, 1) for t in view.running] + [(t, t.pending) for t in view.waiting])
