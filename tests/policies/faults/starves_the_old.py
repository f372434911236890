# told: it starves request
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting][::-1]
        return Decision(tasks[: view.limit])
