# told: outside of
from servetwin.core import Decision, Policy


def counted():
    calls = []

    def count():
        calls.append(1)
        return len(calls)

    return count


COUNT = counted()


class Mine(Policy):
    def decide(self, view, now):
        COUNT()
        return Decision([*view.running, *view.waiting][: view.limit])
