# told: changed the root logger
import logging

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        logging.getLogger().setLevel(10)
        return Decision([*view.running, *view.waiting][: view.limit])
