# told: a Repeat of its is false
from servetwin.core import Decision, Policy, Repeat


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        turn = int(now * 20) % max(1, len(tasks))
        return Decision((tasks[turn:] + tasks[:turn])[: view.limit], repeat=Repeat(50) if tasks else None)
