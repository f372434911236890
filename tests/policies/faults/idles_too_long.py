# told: is not served in time
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        if not view.running and now < 100.0:
            return Decision(idle_until=100.0)
        return Decision([*view.running, *view.waiting][: view.limit])
