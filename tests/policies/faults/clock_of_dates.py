# told: reads the clock \(datetime.now\)
import datetime

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        hour = datetime.datetime.now().hour
        return Decision([*view.running, *view.waiting][: view.limit - (hour > 24)])
