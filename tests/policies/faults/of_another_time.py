# told: which is not there
from servetwin.core import Decision, Policy


class Mine(Policy):
    def __init__(self):
        self.kept = []

    def decide(self, view, now):
        self.kept = self.kept or [*view.waiting][:1]
        return Decision([*self.kept, *[t for t in view.waiting if t not in self.kept]][: view.limit])
