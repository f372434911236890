# told: does input or output \(open\)
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        with open("/dev/null", "a") as log:
            log.write(f"{now}\n")
        return Decision([*view.running, *view.waiting][: view.limit])
