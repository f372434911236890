# told: reads the clock
import datetime

from servetwin.core import Decision, Policy

BEGAN = datetime.datetime.now().microsecond


class Mine(Policy):
    def decide(self, view, now):
        return Decision(sorted([*view.running, *view.waiting], key=lambda t: (t.id * BEGAN) % 7)[: view.limit])
