"""Invariant 9: taking many iterations as one event gives the very results of taking them one by one."""

import json

from hypothesis import given, settings
from servetwin.core import Batch, Recorder, Request
from servetwin.core.records import request_record
from worlds import World, worlds


class Everything(Recorder):
    """Keeps the records of requests, and every iteration as if it had been a batch of its own."""

    wants_batches = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.iterations: dict[str, list[tuple]] = {}
        self.together = 0

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.requests.append(json.dumps(request_record(request)))

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        lines = self.iterations.setdefault(batch.worker.name, [])
        ids = tuple(t.id for t in batch.tasks)
        start = batch.start
        ends = batch.ends if batch.count > 1 else [batch.end]
        assert len(ends) == batch.count
        assert ends[-1] == batch.end
        for end in ends:
            lines.append((start, end, batch.iterations, ids))
            start = end
        self.together += batch.count - 1


class Requests(Recorder):
    """Keeps the records of requests alone, so that a run goes on beyond what concerns others only."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.requests.append(json.dumps(request_record(request)))


def both(world: World) -> tuple[Everything, Everything]:
    repeated, stepped = Everything(), Everything()
    world.run(repeated)
    world.run(stepped, stepping=True)
    assert stepped.together == 0
    return repeated, stepped


REPEATING = ["neustream-sticky", "neustream-front", "neustream-bound", "edf", "edf-keep", "steps"]
REPEATING += ["lsf", "lsf-keep", "srpt", "srpt-drop", "shepherd", "tetriserve", "tetriserve-drop"]
REPEATING += ["fewer-steps", "from-similar", "slack-batch", "slack-batch-tight", "slack-or-neustream"]


@given(worlds(policies=REPEATING))
@settings(max_examples=500)
def test_repeat_equals_stepping(world: World) -> None:
    repeated, stepped = both(world)
    assert repeated.requests == stepped.requests
    assert repeated.iterations == stepped.iterations
    assert repeated.summary.as_dict() == stepped.summary.as_dict()
    longest = Requests()
    world.run(longest)
    assert longest.requests == stepped.requests
    assert longest.summary.as_dict() == stepped.summary.as_dict()


def test_what_happens_elsewhere_does_not_end_a_run() -> None:
    world = World(
        pipeline="fork",  # "b" ends while "c" runs on
        placement=[["a"], ["b"], ["c"]],
        policies=["fcfs", "fcfs", "edf"],
        limits=[1, 1, 4],
        intakes=["before"] * 3,
        timings=[{"device": [float("nan"), *times]} for times in ([0.11], [0.1], [0.07] * 4)],
        contention=[],
        delays=[0.0] * 3,
        noise=None,
        arrivals=[(0.0, 1e6, 10), (0.0, 1e6, 10), (0.0, 1e6, 100)],
    )
    recorded, alone = Everything(), Recorder()
    cut = world.run(recorded).loop.batches
    whole = world.run(alone).loop.batches
    assert alone.summary.as_dict() == recorded.summary.as_dict()
    assert whole < cut


def test_most_iterations_of_a_long_run_are_taken_together() -> None:
    table = [float("nan"), 0.1, 0.1, 0.1, 0.1]
    world = World(
        pipeline="single",
        placement=[["a"]],
        policies=["neustream-sticky"],
        limits=[4],
        intakes=["after"],
        timings=[{"device": table}],
        contention=[],
        delays=[0.0],
        noise=7,
        arrivals=[(4.0, 1e6, 100) for _ in range(20)],
    )
    repeated, _ = both(world)
    iterations = repeated.summary.sizes["a"].total()
    assert iterations > 700
    assert repeated.together > 0.8 * iterations
