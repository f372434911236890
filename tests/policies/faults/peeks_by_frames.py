# told: by which it could look where no policy may
import sys

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        sys._getframe(1).f_locals
        return Decision([*view.running, *view.waiting][: view.limit])
