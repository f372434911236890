"""Batches of those who end in time together, decision by decision; and beside NeuStream in whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core.testing import FakeWorker
from servetwin.experiments.assembly.build import run
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps import sweep
from servetwin.policies.diffusion.slack_batch import SlackBatch

TABLE = [0.1, 0.12, 0.2, 0.28]  # seconds of an iteration by batch size


def test_all_run_together_where_all_end_in_time() -> None:
    worker = FakeWorker(SlackBatch(), TABLE, limit=4)
    for slo in (2.2, 2.5, 3.0):
        worker.arrive(10, slo=slo)  # 2.0 s at 0.2 s per iteration
    assert sorted(worker.decide(0.0)) == [0, 1, 2]
    assert worker.batch is not None
    assert worker.batch.repeat is not None


@pytest.mark.parametrize(("slo", "batch"), [(1.05, [0, 1]), (1.03, [0])])
def test_a_batch_is_quicker_once_its_first_has_ended(slo: float, batch: list[int]) -> None:
    # Together until 0 ends (2 at 0.12 s), then alone (8 at 0.1 s): 1.04 s, though 10 at 0.12 s would be 1.2 s.
    worker = FakeWorker(SlackBatch(spare=0.0, tight=0.0), TABLE, limit=4)
    worker.arrive(2, slo=0.25)
    worker.arrive(10, slo=slo)
    assert sorted(worker.decide(0.0)) == batch


def test_nobody_runs_in_a_batch_in_which_he_would_be_late() -> None:
    worker = FakeWorker(SlackBatch(), TABLE, limit=4)
    worker.arrive(10, slo=1.3)  # bears a batch of two, at 0.12 s
    worker.arrive(10, slo=9.0)
    worker.arrive(10, slo=9.0)
    # Two at 0.12 s are 16.7 iterations per second; three at 0.2 s would be 15, and 0 would be late.
    assert len(worker.decide(0.0)) == 2
    assert worker.dropped == []


@pytest.mark.parametrize(("slo", "batch"), [(1.24, [0]), (1.26, [0, 1])])
def test_fresh_requests_must_have_time_in_hand(slo: float, batch: list[int]) -> None:
    worker = FakeWorker(SlackBatch(tight=0.0), TABLE, limit=2)
    worker.arrive(10, slo=1.2501)  # 0.2501 s of slack, of which a fifth is to be in hand: 1.2 s is in time
    worker.arrive(10, slo=slo)  # 0.24 s: 1.192 s at most
    assert sorted(worker.decide(0.0)) == batch


@pytest.mark.parametrize(("focus", "batch"), [(0.0, [1, 2]), (2.0, [0])])
def test_focus_says_how_much_the_end_of_a_request_counts(focus: float, batch: list[int]) -> None:
    worker = FakeWorker(SlackBatch(focus=focus), [0.1, 0.15], limit=2)
    worker.arrive(2, slo=0.21)  # two iterations, alone or never
    worker.arrive(40, slo=9.0)
    worker.arrive(40, slo=9.0)
    assert sorted(worker.decide(0.0)) == batch


def test_the_batch_stays_until_somebody_comes_or_goes() -> None:
    worker = FakeWorker(SlackBatch(focus=1.0), [0.1, 0.19], limit=2)
    worker.arrive(5, slo=0.6)
    worker.arrive(9, slo=9.0)
    assert worker.decide(0.0) == [0]
    worker.end(0.1)
    assert worker.decide(0.1) == [0]
    worker.arrive(1, slo=2.0)
    worker.end(0.2)
    assert worker.decide(0.2) == [2]  # it is at its end
    worker.end(0.3)
    assert worker.decide(0.3) == [0]


def test_what_could_not_make_it_even_alone_is_dropped_and_later_stages_count() -> None:
    worker = FakeWorker(SlackBatch(reserve=0.0), TABLE, limit=4, then={"vae": 0.5})
    worker.arrive(10, slo=1.4)
    worker.arrive(10, slo=1.6)
    assert worker.decide(0.0) == [1]
    assert worker.dropped == [0]


def test_it_learns_what_a_request_costs_beyond_the_profile() -> None:
    policy = SlackBatch(spare=0.0)
    worker = FakeWorker(policy, [0.1, 0.12], limit=2)
    now = 0.0
    for _ in range(10):
        worker.arrive(2, at=now, slo=1e6)
        for _ in range(2):
            worker.decide(now)
            now += 0.2  # twice as long as the profile says: 0.2 s beyond it for each request
            worker.end(now)
    assert 0.15 < policy.each <= 0.2
    # Two at 0.12 s are 1.2 s by the profile, and with what they cost besides too late for the second.
    worker.arrive(10, at=now, slo=1.4)
    worker.arrive(10, at=now, slo=1.4)
    assert len(worker.decide(now)) == 1


FLAT = [0.1, 0.101, 0.102, 0.103, 0.104, 0.105, 0.12]  # seconds of an iteration by batch size, to 7


def test_who_has_begun_is_not_left_out_where_nobody_has_time_to_step_aside() -> None:
    # Six iterations at 0.12 s or ten at 0.1 s: both cannot end in time, and the one with fewer left would go first.
    batches = []
    for tight in (0.0, 0.75):
        worker = FakeWorker(SlackBatch(tight=tight, reserve=0.0), [0.1, 0.2], limit=2)
        worker.arrive(12, slo=1.3)
        assert worker.decide(0.0) == [0]
        worker.end(0.1)
        worker.arrive(6, at=0.1, slo=0.7)
        batches.append(worker.decide(0.1))
    assert batches == [[1], [0]]


def test_the_latest_joins_where_not_all_can() -> None:
    worker = FakeWorker(SlackBatch(reserve=0.0), [0.1, 0.11], limit=2)
    for at, slo in ((0.0, 1.3), (0.05, 1.35), (0.1, 1.35)):
        worker.arrive(10, at=at, slo=slo)  # eleven tenths of a second together
    assert sorted(worker.decide(0.1)) == [1, 2]


@pytest.mark.parametrize(("slo", "size"), [(1.18, 6), (1.3, 7)])
def test_a_large_batch_must_be_borne_as_it_is(slo: float, size: int) -> None:
    # Of 7 whose first ends at once all would be in time; that the batch then gets smaller counts up to 5 only.
    worker = FakeWorker(SlackBatch(reserve=0.0), FLAT, limit=7)
    for _ in range(6):
        worker.arrive(10, slo=slo)
    worker.arrive(1, slo=0.17)
    assert len(worker.decide(0.0)) == size


def test_one_who_has_time_is_enough_for_the_usual_rule() -> None:
    worker = FakeWorker(SlackBatch(reserve=0.0), [0.1, 0.2], limit=2)
    worker.arrive(12, slo=1.3)
    worker.arrive(40, slo=9.0)
    worker.decide(0.0)
    worker.end(0.1)
    worker.arrive(6, at=0.1, slo=0.7)
    assert worker.decide(0.1) == [2]


@pytest.mark.parametrize(("workload", "slo"), [("dit-s2-256-rtx4090", 1.2), ("sd15-256-rtx4090", 1.5)])
def test_it_meets_no_fewer_than_neustream_where_deadlines_are_tight(workload: str, slo: float) -> None:
    """Over a few seeds; docs/reports/2026-11-league.md has twenty, and all cells."""
    met = {"neustream": 0, "slack-batch": 0}
    for policy in met:
        for seed in (901, 902, 903):
            sets = [("variant", "neustream-ae"), ("policy", policy), ("slo", slo), ("requests", 150), ("seed", seed)]
            met[policy] += run(load(workload, [*sets, ("workload.draws", "seeded")])).met
    assert met["slack-batch"] >= met["neustream"]


@pytest.mark.parametrize(("slo", "same"), [(1.2, False), (2.0, True), (4.0, True)])
def test_from_an_slo_of_two_on_it_decides_as_it_did_before_tight(tmp_path: Path, slo: float, same: bool) -> None:
    records = []
    for tight in (0.0, 0.75):
        sets = [("policy", "slack-batch"), ("policy.params.tight", tight), ("slo", slo)]
        run(load("sd15-512-rtx4090", [*sets, ("requests", 60), ("seed", 5)]), tmp_path / str(tight))
        records.append((tmp_path / str(tight) / "batches.jsonl").read_bytes())
    assert (records[0] == records[1]) is same


@pytest.mark.parametrize(("workload", "rate"), [("dit-xl2-256-rtx4090", 0.7), ("palette-256-rtx4090", 0.9)])
def test_it_meets_more_than_neustream_under_load(workload: str, rate: float) -> None:
    met = {}
    for policy in ("neustream", "slack-batch"):
        sets = [("policy", policy), ("rate", rate), ("requests", 150), ("workload.draws", "seeded"), ("seed", 7)]
        met[policy] = run(load(workload, sets)).met
    assert met["slack-batch"] > met["neustream"]


@pytest.mark.checkout
def test_what_was_tried_in_its_place_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policies of which the report of the league tells keep the contract of decisions, in the system it names."""
    monkeypatch.chdir(Path(__file__).parents[3])
    path = Path("tests/policies/slack_batch_tight.yaml")
    every, _ = sweep.points(sweep.read(path), path)
    tried = {e.policy.name: e for e in every if e.name == "sd15-256-rtx4090" and "variants" in e.policy.name}
    assert len(tried) == 6
    for experiment in tried.values():
        shorter = experiment.workload.model_copy(update={"requests": 25})
        assert run(experiment.model_copy(update={"workload": shorter})).met > 10
