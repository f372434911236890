# told: does input or output \(print\)
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        print(now)
        return Decision([*view.running, *view.waiting][: view.limit])
