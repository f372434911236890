# told: in another process it does not decide the same
from servetwin.core import Decision, Policy


class Mine(Policy):
    starves = True

    def decide(self, view, now):
        tasks = sorted([*view.running, *view.waiting], key=lambda task: hash(f"{task.id}"))
        return Decision(tasks[: view.limit])
