# told: an attribute of
from servetwin.core import Decision, Policy


def order(tasks):
    order.calls = getattr(order, "calls", 0) + 1
    return tasks


class Mine(Policy):
    def decide(self, view, now):
        return Decision(order([*view.running, *view.waiting])[: view.limit])
