"""Batches by the pace that requests need, decision by decision; and beside NeuStream in whole runs."""

from __future__ import annotations

import pytest
from servetwin.core.testing import FakeWorker
from servetwin.experiments.assembly.build import run
from servetwin.experiments.spec.loading import load
from servetwin.policies.diffusion.pace import Pace

TABLE = [0.1, 0.12, 0.2, 0.28]  # seconds of an iteration by batch size


def test_all_run_together_while_all_can_bear_it() -> None:
    worker = FakeWorker(Pace(), TABLE, limit=4)
    for slo in (2.0, 2.5, 3.0):
        worker.arrive(10, slo=slo)  # needs 0.2 s per iteration, or may take longer
    assert sorted(worker.decide(0.0)) == [0, 1, 2]
    assert worker.batch is not None
    assert worker.batch.repeat is not None


def test_nobody_runs_in_a_batch_that_is_too_slow_for_him() -> None:
    worker = FakeWorker(Pace(), TABLE, limit=4)
    worker.arrive(10, slo=1.3)  # bears a batch of two, at 0.12 s
    worker.arrive(10, slo=9.0)
    worker.arrive(10, slo=9.0)
    # Two at 0.12 s are 16.7 iterations per second; three at 0.2 s would be 15, and 0 would be late.
    assert len(worker.decide(0.0)) == 2
    assert worker.dropped == []


def test_with_equal_requests_the_quickest_batch_per_request_runs() -> None:
    worker = FakeWorker(Pace(focus=0.0), [0.1, 0.12, 0.13, 0.28], limit=4)
    worker.arrive(10, slo=1.1)  # bears nobody beside it
    for _ in range(3):
        worker.arrive(10, slo=9.0)
    assert sorted(worker.decide(0.0)) == [1, 2, 3]  # 23 per second, against 10 with 0 alone


@pytest.mark.parametrize(("focus", "batch"), [(0.0, [1, 2]), (2.0, [0])])
def test_focus_says_how_much_the_end_of_a_request_counts(focus: float, batch: list[int]) -> None:
    worker = FakeWorker(Pace(focus=focus), [0.1, 0.15], limit=2)
    worker.arrive(2, slo=0.21)  # two iterations, alone or never
    worker.arrive(40, slo=9.0)
    worker.arrive(40, slo=9.0)
    assert sorted(worker.decide(0.0)) == batch


def test_what_could_not_make_it_even_alone_is_dropped_and_later_stages_count() -> None:
    worker = FakeWorker(Pace(reserve=0.0), TABLE, limit=4, then={"vae": 0.5})
    worker.arrive(10, slo=1.4)
    worker.arrive(10, slo=1.6)
    assert worker.decide(0.0) == [1]
    assert worker.dropped == [0]


def test_it_learns_how_long_iterations_really_take() -> None:
    slow = FakeWorker(Pace(), [0.1, 0.12], limit=2)
    slow.arrive(20, slo=1e6)
    slow.decide(0.0)
    now = 0.0
    for _ in range(20):  # twice as long as the profile says
        now += 0.2
        slow.end(now)
        if slow.view.running:
            slow.decide(now)
    factor = slow.policy.factor
    assert 1.1 < factor < 2.0
    # Two at 0.12 s by the profile would be just in time, and are not any more.
    slow.arrive(10, slo=1.3)
    slow.arrive(10, slo=1.3)
    assert len(slow.decide(now)) == 1


@pytest.mark.parametrize(("workload", "rate"), [("dit-xl2-256-rtx4090", 0.7), ("palette-256-rtx4090", 0.9)])
def test_it_meets_more_than_neustream_under_load(workload: str, rate: float) -> None:
    met = {}
    for policy in ("neustream", "pace"):
        sets = [("policy", policy), ("rate", rate), ("requests", 150), ("workload.draws", "seeded"), ("seed", 7)]
        met[policy] = run(load(workload, sets)).met
    assert met["pace"] > met["neustream"]
