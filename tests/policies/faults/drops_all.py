# told: is not served in time
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        return Decision(drop=list(view.waiting))
