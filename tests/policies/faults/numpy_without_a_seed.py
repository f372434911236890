# told: what cannot be drawn again \(os.urandom\)
import numpy as np
from servetwin.core import Decision, Policy


class Mine(Policy):
    def __init__(self):
        self.dice = np.random.default_rng()

    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        self.dice.shuffle(tasks)
        return Decision(tasks[: view.limit])
