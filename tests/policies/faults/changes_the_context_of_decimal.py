# told: changed the context of decimal
import decimal

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        decimal.getcontext().prec = 5
        return Decision([*view.running, *view.waiting][: view.limit])
