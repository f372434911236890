# told: runs .* twice
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting][: view.limit]
        return Decision(tasks, drop=tasks[:1] if len(tasks) > 2 else [])
