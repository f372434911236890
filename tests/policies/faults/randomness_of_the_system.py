# told: what cannot be drawn again
import secrets

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        first = secrets.randbelow(len(tasks)) if tasks else 0
        return Decision((tasks[first:] + tasks[:first])[: view.limit])
