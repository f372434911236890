# told: it changed a default of a parameter
from servetwin.core import Decision, Policy


class Mine(Policy):
    def __init__(self, seen=[]):
        self.seen = seen

    def decide(self, view, now):
        self.seen.append(now)
        return Decision([*view.running, *view.waiting][: view.limit])
