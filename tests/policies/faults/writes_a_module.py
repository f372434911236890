# told: changed the module json, which all of the process share
import json

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        setattr(json, "mine", now)
        return Decision([*view.running, *view.waiting][: view.limit])
