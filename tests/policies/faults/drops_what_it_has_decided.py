# told: drops .* while it is in a batch
from servetwin.core import Decision, Policy


class Mine(Policy):
    ahead = True

    def decide(self, view, now):
        if view.in_flight is None:
            return Decision([*view.running, *view.waiting][: view.limit])
        return Decision(drop=list(view.in_flight.tasks)[:1])
