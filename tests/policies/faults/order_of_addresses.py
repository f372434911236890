# told: a new object does not decide the same
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = sorted([*view.running, *view.waiting], key=id)
        return Decision(tasks[: view.limit])
