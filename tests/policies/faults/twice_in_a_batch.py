# told: twice
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        return Decision([*tasks[:1], *tasks][: view.limit])
