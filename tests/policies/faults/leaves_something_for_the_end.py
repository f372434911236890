# told: leaves something to be done at the process's end
import atexit

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        atexit.register(print, "x")
        return Decision([*view.running, *view.waiting][: view.limit])
