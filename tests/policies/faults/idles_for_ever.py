# told: never ended
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        return Decision(tasks[: view.limit] if len(tasks) != 2 else [])
