# told: reads the clock \(time.sleep\)
import time

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        time.sleep(0)
        return Decision([*view.running, *view.waiting][: view.limit])
