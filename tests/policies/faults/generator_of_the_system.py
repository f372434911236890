# told: draws from a generator without a seed
import random

from servetwin.core import Decision, Policy

DICE = random.SystemRandom()


class Mine(Policy):
    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        return Decision(sorted(tasks, key=lambda t: DICE.random())[: view.limit])
