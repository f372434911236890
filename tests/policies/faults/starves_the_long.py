# told: it starves request
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = sorted([*view.running, *view.waiting], key=lambda task: task.left)
        return Decision(tasks[: view.limit])
