# told: draws from the generator that all of the process share \(random\.
import random

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        random.shuffle(tasks)
        return Decision(tasks[: view.limit])
