# told: changed the loaded modules
import sys

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        sys.modules["mine_state"] = self
        return Decision([*view.running, *view.waiting][: view.limit])
