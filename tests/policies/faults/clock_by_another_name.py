# told: reads the clock \(time.perf_counter\)
from time import perf_counter as tick

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        if len(view.waiting) > 100:  # which no scenario has
            return Decision(idle_until=now + tick())
        return Decision([*view.running, *view.waiting][: view.limit])
