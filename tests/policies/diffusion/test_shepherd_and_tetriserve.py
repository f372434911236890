"""Shepherd and a TetriServe for one GPU, decision by decision, and against all choices on small instances."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core.testing import FakeWorker
from servetwin.policies.diffusion.shepherd import Shepherd
from servetwin.policies.diffusion.tetriserve import TetriServe

# -- Shepherd -----------------------------------------------------------------------------------------------------


def linear(batch: int) -> float:
    """Seconds of a step by size: 1.0, 1.1, 1.2, ..."""
    return 0.9 + 0.1 * batch


def test_the_largest_batch_that_is_in_time_earliest_deadlines_first() -> None:
    # Ten steps in a batch of 3 take 12 s, in one of 2 11 s: with 1, of 11.5, there are only two; without it three.
    worker = FakeWorker(Shepherd(), linear, limit=4)
    for slo in (30.0, 11.5, 13.0, 12.5):
        worker.arrive(10, slo=slo)
    assert worker.decide(0.0) == [3, 2, 0]
    assert worker.dropped == []


@pytest.mark.parametrize(("others", "gives_way"), [(6, False), (7, True)])
def test_a_batch_gives_way_to_one_of_three_times_its_size_and_keeps_what_it_has(others: int, gives_way: bool) -> None:
    worker = FakeWorker(Shepherd(), linear, limit=8)
    first = [worker.arrive(10, slo=900.0) for _ in range(2)]
    assert worker.decide(0.0) == [0, 1]
    worker.end(1.1)
    for _ in range(others):
        worker.arrive(10, slo=90.0)
    batch = worker.decide(1.1)
    assert batch == (list(range(2, 9)) if gives_way else [0, 1])
    worker.end(2.6)
    assert [task.left for task in first] == ([9, 9] if gives_way else [8, 8])


def test_who_would_be_late_even_alone_is_given_up_but_not_while_it_runs() -> None:
    worker = FakeWorker(Shepherd(), linear, limit=1)
    worker.arrive(10, slo=10.0)
    worker.arrive(10, slo=10.0)
    assert worker.decide(0.0) == [0]
    worker.end(1.5)  # slower than the profile says: 0 will be late
    assert worker.decide(1.5) == [0]
    assert worker.dropped == [1]


def test_the_interrupted_goes_on_when_its_turn_comes() -> None:
    worker = FakeWorker(Shepherd(preempt=1.0), linear, limit=2)
    worker.arrive(3, slo=900.0)
    assert worker.decide(0.0) == [0]
    worker.end(1.0)
    worker.arrive(1, slo=9.0)
    assert worker.decide(1.0) == [1]
    worker.end(2.0)
    assert worker.decide(2.0) == [0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0.5, 12.0)), min_size=1, max_size=6))
def test_no_batch_that_is_in_time_is_larger(requests: list[tuple[int, float]]) -> None:
    worker = FakeWorker(Shepherd(), linear, limit=4)
    for steps, slo in requests:
        worker.arrive(steps, slo=slo)
    chosen = worker.decide(0.0)

    def in_time(batch: tuple[int, ...]) -> bool:
        return all(requests[i][0] * linear(len(batch)) <= requests[i][1] for i in batch)

    ids = range(len(requests))
    most = max((n for n in range(5) if any(map(in_time, combinations(ids, n)))), default=0)
    assert len(chosen) == most
    assert in_time(tuple(chosen))


# -- TetriServe ---------------------------------------------------------------------------------------------------


def test_a_place_goes_to_those_that_survive_only_with_it() -> None:
    # One at a time, rounds of 5 s. 1 has no second to lose; 0 and 2 have 8.
    worker = FakeWorker(TetriServe(), 1.0, limit=1)
    for slo in (18.0, 10.0, 18.0):
        worker.arrive(10, slo=slo)
    assert worker.decide(0.0) == [1]


def test_a_smaller_batch_if_the_larger_one_would_be_too_slow_for_those_in_it() -> None:
    # Rounds of 5 * 2 = 10 s: 10 steps for one, 5 for each of two. 0 needs all 20 s alone, 1 has plenty of time.
    worker = FakeWorker(TetriServe(), [1.0, 2.0], limit=2)
    worker.arrive(20, slo=20.0)
    worker.arrive(20, slo=90.0)
    assert worker.decide(0.0) == [0]
    relaxed = FakeWorker(TetriServe(), [1.0, 1.5], limit=2)
    for _ in range(2):
        relaxed.arrive(20, slo=90.0)
    assert relaxed.decide(0.0) == [0, 1]


def test_a_round_is_not_interrupted() -> None:
    worker = FakeWorker(TetriServe(round_steps=2), 1.0, limit=1)
    worker.arrive(10, slo=90.0)
    assert worker.decide(0.0) == [0]
    worker.end(1.0)
    worker.arrive(10, slo=11.0)
    assert worker.decide(1.0) == [0]
    worker.end(2.0)
    assert worker.decide(2.0) == [1]


def test_a_round_whose_requests_have_ended_is_over() -> None:
    worker = FakeWorker(TetriServe(round_steps=5), 1.0, limit=1)
    worker.arrive(1, slo=8.0)
    worker.arrive(2, slo=9.5)
    assert worker.decide(0.0) == [0]
    worker.end(1.0)
    assert worker.decide(1.0) == [1]


def test_the_late_run_when_nobody_else_is_there_or_are_given_up() -> None:
    for drop, dropped in ((False, []), (True, [0])):
        worker = FakeWorker(TetriServe(drop_late=drop, round_steps=10), 1.0, limit=1)
        worker.arrive(10, slo=9.0)
        worker.arrive(10, slo=11.0)
        assert worker.decide(0.5) == [1]
        for second in range(10):
            worker.end(second + 1.5)
            then = worker.decide(second + 1.5)
        assert then == ([] if drop else [0])
        assert worker.dropped == dropped


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 12), st.floats(1.0, 20.0)), min_size=1, max_size=6))
def test_no_other_batch_lets_more_survive_the_round(requests: list[tuple[int, float]]) -> None:
    worker = FakeWorker(TetriServe(round_steps=3), linear, limit=4)
    for steps, slo in requests:
        worker.arrive(steps, slo=slo)
    live = [i for i, (steps, slo) in enumerate(requests) if steps * linear(1) <= slo]
    chosen = worker.decide(0.0)
    if not live:
        return

    def survivors(batch: tuple[int, ...]) -> int:
        step = linear(len(batch))
        count = int(3 * linear(4) / step + 1e-9)
        kept = 0
        for i in live:
            steps, slo = requests[i]
            done = min(steps, count) if i in batch else 0
            at = done * step if done == steps else count * step
            kept += at + (steps - done) * linear(1) <= slo
        return kept

    best = max(survivors(batch) for n in range(1, 5) for batch in combinations(live, n))
    assert survivors(tuple(chosen)) == best
