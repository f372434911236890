# told: reads the clock \(time.time\)
import time

from servetwin.core import Decision, Policy


class Mine(Policy):
    def __init__(self):
        self.began = time.time()

    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: view.limit])
