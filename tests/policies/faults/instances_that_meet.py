# told: it changed Mine.all_of_them
from servetwin.core import Decision, Policy


class Mine(Policy):
    all_of_them = []

    def __init__(self):
        self.all_of_them.append(self)

    def decide(self, view, now):
        others = sum(mine is not self for mine in self.all_of_them)
        return Decision([*view.running, *view.waiting][: max(1, view.limit - others % 2)])
