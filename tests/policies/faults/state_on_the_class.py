# told: it changed Mine.seen
from servetwin.core import Decision, Policy


class Mine(Policy):
    seen = []

    def decide(self, view, now):
        self.seen.extend(view.waiting)
        return Decision([*view.running, *view.waiting][: view.limit])
