# told: it changed Mine.asked
from servetwin.core import Decision, Policy


class Mine(Policy):
    asked = 0

    def decide(self, view, now):
        type(self).asked += 1
        return Decision([*view.running, *view.waiting][: view.limit])
