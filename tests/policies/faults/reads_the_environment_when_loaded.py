# told: reads the environment
import os

from servetwin.core import Decision, Policy

WANTED = len(os.environ.get("PYTHONHASHSEED", "")) + 2


class Mine(Policy):
    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: min(WANTED, view.limit)])
