# told: it changed the global TICKETS
import itertools

from servetwin.core import Decision, Policy

TICKETS = itertools.count()


class Mine(Policy):
    def decide(self, view, now):
        next(TICKETS)
        return Decision([*view.running, *view.waiting][: view.limit])
