# told: times on end
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        return Decision(idle_until=now + 1e-9) if view.waiting else Decision()
