# told: does not come to an end
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        while len(view.waiting) > 2:
            pass
        return Decision([*view.running, *view.waiting][: view.limit])
