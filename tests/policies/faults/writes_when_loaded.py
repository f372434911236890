# told: does input or output
import os

from servetwin.core import Decision, Policy

with open(os.devnull, "w") as file:
    file.write("here")


class Mine(Policy):
    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: view.limit])
