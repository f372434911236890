# told: it changed the global COUNT
from servetwin.core import Decision, Policy

COUNT = 0


class Mine(Policy):
    def decide(self, view, now):
        global COUNT
        COUNT += 1
        return Decision([*view.running, *view.waiting][: view.limit])
