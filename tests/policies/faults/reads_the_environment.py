# told: reads the environment
import os

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        wanted = int(os.environ.get("BATCH", "4"))
        return Decision([*view.running, *view.waiting][: min(wanted, view.limit)])
