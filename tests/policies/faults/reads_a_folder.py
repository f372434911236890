# told: asks the operating system \(os.listdir\)
import os

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        os.listdir(".")
        return Decision([*view.running, *view.waiting][: view.limit])
