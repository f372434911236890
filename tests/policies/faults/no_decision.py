# told: decide returned None
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        if view.waiting:
            return Decision([*view.running, *view.waiting][: view.limit])
