# told: changes the interpreter
import sys

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        sys.setrecursionlimit(5000)
        return Decision([*view.running, *view.waiting][: view.limit])
