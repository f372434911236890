# told: changed where modules are found \(sys.path\)
import sys

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        sys.path.append("/tmp/x")
        return Decision([*view.running, *view.waiting][: view.limit])
