# told: keeps state in a module \(math.seen\)
import math

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        math.seen = getattr(math, "seen", 0) + 1
        return Decision([*view.running, *view.waiting][: view.limit])
