# told: asks the interpreter
import sys

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = sorted([*view.running, *view.waiting], key=lambda t: (sys.getrefcount(t), t.id))
        return Decision(tasks[: view.limit])
