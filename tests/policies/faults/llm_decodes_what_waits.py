# told: which is not decoding
from servetwin.core.llm import Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        return Step(decode=[*view.running, *view.waiting])
