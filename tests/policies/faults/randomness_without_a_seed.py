# told: a generator without a seed
import random

from servetwin.core import Decision, Policy


class Mine(Policy):
    def __init__(self):
        self.dice = random.Random()

    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        self.dice.shuffle(tasks)
        return Decision(tasks[: view.limit])
