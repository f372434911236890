# told: is not the policy.s to set
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        view.limit = 100
        return Decision([*view.running, *view.waiting][: view.limit])
