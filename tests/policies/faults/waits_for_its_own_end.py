# told: (leaves something to be|changed what is) done at the process's end
import weakref

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        weakref.finalize(self, int)
        return Decision([*view.running, *view.waiting][: view.limit])
