"""Decision by decision, the policies are the schedulers of the artifact, on random requests and times.

All times are multiples of 1/64 s, so that no comparison hangs on rounding.
"""

from __future__ import annotations

from artifact import ClockworkByTable, ClockworkController, Job, NeuStreamWorker, Tracker
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servetwin.policies.diffusion.clockwork import Clockwork
from servetwin.policies.diffusion.neustream import NeuStream
from views import Desk, ids

TICK = 1 / 64
ticks = st.integers(0, 60)
arrivals = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 200)), max_size=4)  # (steps, slack in ticks)
rounds = st.lists(st.tuples(arrivals, ticks), min_size=1, max_size=30)  # what arrives, how long an iteration takes


@given(rounds, st.integers(1, 4), st.sampled_from(["sticky", "front"]))
@settings(max_examples=400)
def test_neustream(rounds, bound: int, requeue: str) -> None:
    step, tail = 8 * TICK, 3 * TICK
    desk = Desk(NeuStream(bound=bound, requeue=requeue, handover=TICK), {"dit": [step], "vae": [2 * TICK]})
    worker = NeuStreamWorker(bound, step, tail, front=requeue == "front")
    now = 0.0
    for arriving, took in rounds:
        for steps, slack in arriving:
            slo = steps * step + (slack - 5) * TICK
            task = desk.request(arrival=now, slo=slo, steps=steps)
            assert (task in desk.view.waiting) == worker.drain(Job(task.id, task.deadline, steps), now)
        decision = desk.decide(now)
        assert (ids(decision.run), ids(decision.drop)) == worker.round(now)
        now += took * TICK
        if decision.run:
            desk.done(now)
            worker.computed()


# -- Clockwork ------------------------------------------------------------------------------------------------

CLASSES = range(2, 5)
STEP = {1: 8 * TICK, 2: 10 * TICK, 3: 13 * TICK}
VAE = {1: 2 * TICK, 2: 3 * TICK, 3: 4 * TICK}

events = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(CLASSES), st.integers(-2, 9) | st.integers(-2, 200)),
        st.tuples(st.just("pass"), ticks, st.none()),
        st.tuples(st.just("end"), ticks, st.none()),
    ),
    min_size=1,
    max_size=60,
)


#: Steps of two, of three, or of both that are quicker than those of one.
CROOKED = [
    {1: 8 * TICK, 2: 6 * TICK, 3: 13 * TICK},
    {1: 8 * TICK, 2: 9 * TICK, 3: 5 * TICK},
    {1: 9 * TICK, 2: 7 * TICK, 3: 5 * TICK},
    {1: 6 * TICK, 2: 9 * TICK, 3: 5 * TICK},
]


def duration(steps: int, size: int, table: dict[int, float] = STEP) -> float:
    return steps * table[size] + VAE[size]


class Clockworks(Desk):
    """The policy at its desk, with batches that queue up behind each other."""

    def __init__(self, pacing: str, table: dict[int, float] = STEP, **params: float) -> None:
        tables = {"dit": list(table.values()), "vae": list(VAE.values())}
        super().__init__(Clockwork(pacing=pacing, max_batch=3, **params), tables, placement=[["dit", "vae"]])

    def turn(self, now: float) -> list[list[int]]:
        """What it sends until it has nothing more to say."""
        sent = []
        while decision := self.decide(now):
            if not decision.run:
                assert decision.idle_until is None or decision.idle_until > now
                return sent
            sent.append(ids(decision.run))
        return sent

    def end(self, now: float) -> bool:
        if self.view.in_flight is None:
            return False
        self.done(now)
        return True


def play(desk: Clockworks, events, pull, turn, ended) -> None:
    now = 0.0
    for kind, number, slack in events:
        if kind == "arrive":
            task = desk.request(arrival=now, slo=duration(number, 1) + slack * TICK, steps=number)
            pull(Job(task.id, task.deadline, number))
        else:
            now += number * TICK
            if kind == "end" and desk.end(now):
                ended(now)
        expected = []
        while batch := turn(now):
            expected.append(batch)
        assert desk.turn(now) == expected


@given(events)
@example([("arrive", 2, 5), ("arrive", 3, 5)])  # equally urgent
@settings(max_examples=1000)
def test_clockwork_tracked(events) -> None:
    # The constants of the artifact (10, 10 and 1 ms) are no multiples of the tick.
    tracker = Tracker(lag=16 * TICK, future=TICK)
    controller = ClockworkController(duration, 3, CLASSES, ahead=3 * TICK, tracker=tracker)
    desk = Clockworks("tracked", lag=16 * TICK, future=TICK, ahead_of=3 * TICK)
    play(desk, events, controller.pull, controller.schedule, tracker.success)


@given(events, st.sampled_from(CROOKED))
# The first is too late to run alone, and soon as one of two; that it stays at the head of the list of two makes its
# class more urgent than the one of the last request, which would else go before the two of it that came since.
@example(
    [
        ("arrive", 3, -2), ("pass", 10, None), ("arrive", 2, 100), ("arrive", 3, 60), ("arrive", 3, 60),
        ("arrive", 4, 20), ("pass", 16, None),
    ],
    CROOKED[0],
)  # fmt: skip
@settings(max_examples=2000)
def test_clockwork_tracked_where_a_larger_batch_is_quicker(events, table) -> None:
    def seconds(steps: int, size: int) -> float:
        return duration(steps, size, table)

    tracker = Tracker(lag=16 * TICK, future=TICK)
    controller = ClockworkController(seconds, 3, CLASSES, ahead=3 * TICK, tracker=tracker)
    desk = Clockworks("tracked", table, lag=16 * TICK, future=TICK, ahead_of=3 * TICK)
    play(desk, events, controller.pull, controller.schedule, tracker.success)


@given(events, st.lists(st.integers(-2, 120), min_size=len(CLASSES), max_size=len(CLASSES)))
@settings(max_examples=1000)
def test_clockwork_by_the_table(events, slacks) -> None:
    # One SLO per class, as in the artifact: a class's requests then expire in the order in which they came.
    events = [(kind, n, slacks[n - CLASSES[0]] if kind == "arrive" else None) for kind, n, _ in events]
    controller = ClockworkByTable(duration, 3, CLASSES)
    play(Clockworks("table"), events, controller.pull, controller.turn, lambda now: None)
