# told: over the limit of
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        return Decision([*view.running, *view.waiting])
