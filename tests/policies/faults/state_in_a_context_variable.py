# told: changed variables of the context
import contextvars

from servetwin.core import Decision, Policy

c = contextvars.ContextVar("c", default=0)


class Mine(Policy):
    def decide(self, view, now):
        c.set(c.get() + 1)
        return Decision([*view.running, *view.waiting][: view.limit])
