"""Least slack first and shortest remaining time, decision by decision, and on small instances against all orders."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core.testing import FakeWorker
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.lsf import LSF
from servetwin.policies.diffusion.srpt import SRPT


def test_lsf_runs_whoever_can_wait_the_shortest() -> None:
    worker = FakeWorker(LSF(max_batch=1), 0.1)
    worker.arrive(10, slo=5.0)  # can wait 5 - 1
    worker.arrive(30, slo=6.0)  # can wait 6 - 3
    assert worker.decide(0.0) == [1]


def test_lsf_lets_the_urgent_pass_between_iterations() -> None:
    worker = FakeWorker(LSF(max_batch=1), 0.1)
    worker.arrive(10, slo=9.0)
    assert worker.decide(0.0) == [0]
    worker.end(0.1)
    worker.arrive(10, slo=1.5)
    assert worker.decide(0.1) == [1]


def test_lsf_reckons_with_iterations_of_a_full_batch_and_edf_with_those_of_one() -> None:
    # Alone an iteration takes 0.1 s: 0 can wait 10 - 2 = 8 s, 1 can wait 13 - 5 = 8 s, 2 can wait 7.5.
    # In a batch of two it takes 0.3 s: 10 - 6 = 4, 13 - 15 = -2, 8.5 - 3 = 5.5.
    for policy, batch in ((EDF(), [2, 0]), (LSF(), [1, 0])):
        worker = FakeWorker(policy, [0.1, 0.3], limit=2)
        worker.arrive(20, slo=10.0)
        worker.arrive(50, slo=13.0)
        worker.arrive(10, slo=8.5)
        worker.policy.drop_late = False
        assert worker.decide(0.0) == batch


def test_lsf_keeps_time_for_later_stages() -> None:
    worker = FakeWorker(LSF(), 0.1, then={"vae": 0.5})
    worker.arrive(10, slo=1.4)
    worker.arrive(10, slo=1.6)
    assert worker.decide(0.0) == [1]
    assert worker.dropped == [0]


@pytest.mark.parametrize("policy", [LSF, SRPT])
def test_what_could_not_make_it_even_alone_is_dropped_if_told_so(policy: type[LSF] | type[SRPT]) -> None:
    for drop, dropped in ((True, [0]), (False, [])):
        worker = FakeWorker(policy(drop_late=drop), 0.1)
        worker.arrive(10, slo=1.5)
        worker.arrive(10, slo=9.0)
        assert 1 in worker.decide(0.6)
        assert worker.dropped == dropped


def test_lsf_offers_to_repeat_only_if_nobody_is_left_out() -> None:
    worker = FakeWorker(LSF(max_batch=1), 0.1)
    worker.arrive(50, slo=90.0)
    worker.decide(0.0)
    assert worker.batch is not None
    assert worker.batch.repeat is not None
    worker.end(0.1)
    worker.arrive(50, slo=91.0)
    worker.decide(0.1)
    assert worker.batch.repeat is None


def test_srpt_runs_the_shortest_and_keeps_what_the_preempted_has_computed() -> None:
    worker = FakeWorker(SRPT(max_batch=1), 0.1)
    long = worker.arrive(5)
    assert worker.decide(0.0) == [0]
    worker.end(0.1)
    worker.arrive(2)
    assert worker.decide(0.1) == [1]
    worker.end(0.2)
    assert long.left == 4
    assert worker.decide(0.2) == [1]
    worker.end(0.3)
    assert worker.decide(0.3) == [0]


def test_srpt_takes_equals_in_order_of_arrival() -> None:
    worker = FakeWorker(SRPT(max_batch=2), 0.1)
    for _ in range(3):
        worker.arrive(7)
    assert worker.decide(0.0) == [0, 1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_srpt_has_the_least_mean_latency_of_all_orders(steps: list[int]) -> None:
    """One at a time, all there at 0: Schrage's theorem, against all orders."""
    worker = FakeWorker(SRPT(max_batch=1), 1.0)
    for count in steps:
        worker.arrive(count)
    now, total = 0.0, 0.0
    while batch := worker.decide(now):
        now += 1.0
        task = worker.batch.tasks[0]
        worker.end(now)
        if not task.left:
            total += now
        assert len(batch) == 1
    best = min(sum((len(order) - i) * n for i, n in enumerate(order)) for order in permutations(steps))
    assert total == best
