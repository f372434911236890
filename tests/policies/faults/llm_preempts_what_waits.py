# told: which is not running
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        return Step(preempt=list(view.waiting)[:1], decode=ALL)
