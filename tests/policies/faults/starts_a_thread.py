# told: starts a thread
import threading

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        threading.Thread(target=int).start()
        return Decision([*view.running, *view.waiting][: view.limit])
