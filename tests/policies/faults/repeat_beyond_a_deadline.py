# told: a Repeat of its is false
from servetwin.core import Decision, Policy, Repeat


class Mine(Policy):
    def decide(self, view, now):
        late = [task for task in view.running if now > task.deadline]  # of which the Repeat says nothing
        run = [task for task in [*view.running, *view.waiting] if task not in late][: view.limit]
        return Decision(run, drop=late, repeat=Repeat(20) if run and not view.waiting else None)
