# told: reads the clock \(time.monotonic\)
import time

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        if time.monotonic() > 1e12:
            return Decision()
        return Decision([*view.running, *view.waiting][: view.limit])
