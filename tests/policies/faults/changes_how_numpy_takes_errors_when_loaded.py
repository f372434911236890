# told: changed how numpy takes errors .*, when it is loaded
import numpy as np
from servetwin.core import Decision, Policy

np.seterr(all="ignore")


class Mine(Policy):
    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: view.limit])
