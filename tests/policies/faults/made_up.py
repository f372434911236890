# told: which is not there
from servetwin.core import Decision, Policy, Task


class Mine(Policy):
    def decide(self, view, now):
        return Decision([Task(t.request, t.stage, now) for t in view.waiting][: view.limit])
