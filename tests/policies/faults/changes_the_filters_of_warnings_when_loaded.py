# told: changed the filters of warnings, .*, when it is loaded
import warnings

from servetwin.core import Decision, Policy

warnings.simplefilter("ignore")


class Mine(Policy):
    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: view.limit])
