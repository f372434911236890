# told: law|running
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    chunks = True

    def decide(self, view, now):
        pieces = [(t, min(t.pending, 64)) for t in view.waiting]
        pieces += [(t, min(t.pending, 64)) for t in view.running if not t.decoding]
        return Step(pieces[:3], ALL)
