# told: changed the locale
import locale

from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        locale.setlocale(locale.LC_ALL, "C")
        return Decision([*view.running, *view.waiting][: view.limit])
