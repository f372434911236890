"""The calendar's own loop: our events without SimPy's detour, all others as SimPy has it, in one order."""

import pytest
from servetwin.sim.time.calendar import Calendar, Moment, Timer


class Again(Moment):
    """Fires at each of *times*, placed anew each time."""

    def __init__(self, calendar, times, heard):
        super().__init__(calendar)
        self.times, self.heard = list(times), heard
        calendar.place(self, self.times.pop(0))

    def fire(self):
        self.heard.append(("again", self.env.now))
        if self.times:
            self.env.place(self, self.times.pop(0))


def filled(heard):
    calendar = Calendar()

    def process():
        for _ in range(3):
            yield calendar.timeout(1.0)
            heard.append(("process", calendar.now))

    calendar.process(process())
    Again(calendar, [0.5, 1.0, 2.5], heard)
    Timer(calendar, 2.0, lambda: heard.append(("timer", calendar.now)))
    Timer(calendar, 1.0, lambda: heard.append(("last", calendar.now)), last=True)
    Timer(calendar, 1.5, lambda: heard.append(("cancelled", calendar.now))).cancel()
    return calendar


EXPECTED = [
    ("again", 0.5), ("process", 1.0), ("again", 1.0), ("last", 1.0), ("timer", 2.0), ("process", 2.0), ("again", 2.5),
    ("process", 3.0),
]  # fmt: skip


def by_run(calendar):
    assert calendar.run() is None


def by_steps(calendar):
    while calendar.peek() < float("inf"):
        calendar.step()


def until_times(calendar):
    for when in (0.75, 1.25, 2.0, 9.0):
        calendar.run(until=when)
        assert calendar.now == when


@pytest.mark.parametrize("way", [by_run, by_steps, until_times])
def test_our_events_and_those_of_others_come_in_one_order(way):
    heard = []
    way(filled(heard))
    assert heard == EXPECTED


def test_what_a_foreign_event_raises_comes_out_and_the_run_can_go_on():
    heard = []
    calendar = filled(heard)

    def broken():
        yield calendar.timeout(0.7)
        raise ValueError("broken")

    calendar.process(broken())
    with pytest.raises(ValueError, match="broken"):
        calendar.run()
    assert heard == EXPECTED[:1]
    calendar.run()
    assert heard == EXPECTED


def test_a_run_waits_for_an_event_of_others():
    calendar = Calendar()
    Timer(calendar, 0.5, lambda: None)
    assert calendar.run(until=calendar.timeout(1.0, "rung")) == "rung"


@pytest.mark.parametrize(
    ("first", "settled"), [(None, True), (2.0, True), (1.0, False)], ids=["nothing", "later", "now"]
)
def test_it_says_whether_something_else_happens_at_this_instant(first, settled):
    calendar, heard = Calendar(), []

    def ask():
        heard.append(("asked", calendar.when_settled(lambda: heard.append(("settled", calendar.now)))))

    Timer(calendar, 1.0, ask)
    if first is not None:
        Timer(calendar, first, lambda: heard.append(("other", calendar.now)))
    calendar.run()
    assert heard[0] == ("asked", not settled)
    assert heard[1:] == ([("other", first)] if first is not None else []) + ([] if settled else [("settled", 1.0)])
