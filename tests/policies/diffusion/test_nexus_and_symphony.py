"""Nexus and Symphony: the papers' own examples, and decision by decision."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core.testing import FakeWorker
from servetwin.policies.diffusion.nexus import Nexus
from servetwin.policies.diffusion.symphony import Symphony

import servetwin

#: Nexus, Table 2: seconds of a batch of 4, 8, 16 of each model, its SLO, and the rate at which one GPU serves it when
#: it has nothing else to do (section 4.1).
TABLE_2 = {
    "A": ({4: 0.050, 8: 0.075, 16: 0.100}, 0.200, 160.0),
    "B": ({4: 0.050, 8: 0.090, 16: 0.125}, 0.250, 128.0),
    "C": ({4: 0.060, 8: 0.095, 16: 0.125}, 0.250, 128.0),
}


def affine(batch: int) -> float:
    """Seconds by size of the example in Symphony's section 2: l(b) = b + 5."""
    return batch + 5.0


@pytest.mark.parametrize("model", sorted(TABLE_2))
def test_nexus_batches_by_its_papers_example(model: str) -> None:
    table, slo, rate = TABLE_2[model]
    # Between the sizes that the table has, the next larger one's time.
    worker = FakeWorker(Nexus(), [table[min(n for n in table if n >= size)] for size in range(1, 17)], limit=16)
    for _ in range(20):
        worker.arrive(1, slo=slo)
    batch = worker.decide(0.0)
    assert len(batch) == 16
    assert len(batch) / table[16] == rate
    tighter = FakeWorker(Nexus(), [table[min(n for n in table if n >= size)] for size in range(1, 17)], limit=16)
    for _ in range(20):
        tighter.arrive(1, slo=slo - 0.001)
    assert len(tighter.decide(0.0)) == 8


def test_nexus_gives_up_early_who_would_make_the_batch_smaller() -> None:
    # 2 l(4) = 18 <= 18 < 2 l(5): four at a time. At 9.5 the oldest could still make it alone (until 18 - 6 = 12), and
    # in a batch of three, but not in one of four.
    worker = FakeWorker(Nexus(), affine, limit=8)
    worker.arrive(1, slo=18.0)
    for _ in range(4):
        worker.arrive(1, slo=18.0, at=2.0)
    assert worker.decide(9.5) == [1, 2, 3, 4]
    assert worker.dropped == [0]


def test_nexus_drops_nobody_for_a_batch_that_nobody_is_there_for() -> None:
    worker = FakeWorker(Nexus(), affine, limit=8)
    worker.arrive(1, slo=18.0)
    assert worker.decide(12.0) == [0]
    late = FakeWorker(Nexus(), affine, limit=8)
    late.arrive(1, slo=18.0)
    assert late.decide(12.001) == []
    assert late.dropped == [0]


def test_who_has_more_steps_than_the_first_can_wait_for_is_left() -> None:
    worker = FakeWorker(Nexus(), 1.0, limit=3)
    for steps, slo in ((10, 20.5), (30, 60.0), (20, 60.0), (12, 60.0)):
        worker.arrive(steps, slo=slo)
    assert worker.decide(0.0) == [0, 2, 3]
    assert worker.batch is not None
    assert worker.batch.whole
    worker.end(20.0)
    assert worker.decide(20.0) == [1]


def test_later_stages_and_safety_make_the_size_smaller() -> None:
    for later, safety, size in ((0.0, 1.0, 4), (2.0, 1.0, 3), (0.0, 1.2, 2)):
        worker = FakeWorker(Nexus(safety=safety), affine, limit=8, then={"vae": later})
        for _ in range(8):
            worker.arrive(1, slo=18.0)
        assert len(worker.decide(0.0)) == size


def test_symphony_waits_as_in_its_papers_example() -> None:
    """l(b) = b + 5, an SLO of 12, a request each 0.75 (section 2): the GPU that is idle does not begin with the first
    request, but at 2.25 with four of them; a fifth would have made the first one late."""
    worker = FakeWorker(Symphony(), affine, limit=16)
    may_begin = []
    for number in range(3):
        worker.arrive(1, slo=12.0, at=0.75 * number)
        assert worker.decide(0.75 * number) == []
        may_begin.append(worker.idle_until)
    assert may_begin == pytest.approx([5.0, 4.0, 3.0])  # d - l(b + 1)
    worker.arrive(1, slo=12.0, at=2.25)
    assert worker.decide(2.25) == [0, 1, 2, 3]
    worker.end(2.25 + affine(4))  # at 11.25, in time


def test_symphony_begins_at_the_end_of_its_wait_though_nobody_came() -> None:
    worker = FakeWorker(Symphony(), affine, limit=16)
    worker.arrive(1, slo=12.0)
    assert worker.decide(0.0) == []
    assert worker.idle_until == pytest.approx(5.0)
    assert worker.decide(worker.idle_until) == [0]


def test_symphony_does_not_wait_for_more_than_fit() -> None:
    worker = FakeWorker(Symphony(), affine, limit=2)
    worker.arrive(1, slo=90.0)
    worker.arrive(1, slo=90.0)
    assert worker.decide(0.0) == [0, 1]


def test_symphony_takes_more_than_its_size_where_nobody_minds() -> None:
    # The size is 4 (2 * 9 <= 18); just after they came the first could bear 8, and then begins at once.
    worker = FakeWorker(Symphony(), affine, limit=8)
    for _ in range(9):
        worker.arrive(1, slo=18.0)
    assert worker.decide(0.0) == [0, 1, 2, 3, 4, 5, 6, 7]


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from([Nexus, Symphony]),
    st.lists(st.tuples(st.integers(1, 5), st.floats(5.0, 90.0)), min_size=1, max_size=9),
    st.floats(0.0, 30.0),
)
def test_all_of_a_batch_are_in_time_and_those_dropped_could_not_bear_their_own_size(
    policy: type[Nexus] | type[Symphony], requests: list[tuple[int, float]], now: float
) -> None:
    worker = FakeWorker(policy(), affine, limit=6)
    for steps, slo in requests:
        worker.arrive(steps, slo=slo)
    batch = worker.decide(now)
    longest = max((requests[i][0] for i in batch), default=0)
    assert all(now + longest * affine(len(batch)) <= requests[i][1] + 1e-6 for i in batch)
    first = min((requests[i][1] for i in batch), default=float("inf"))
    for i in worker.dropped:
        steps, slo = requests[i]
        assert slo <= first
        size = max((n for n in range(1, 7) if 2 * steps * affine(n) <= slo), default=1)
        assert now + steps * affine(size) > slo - 1e-6 or size > len(requests) - len(worker.dropped)


@pytest.mark.parametrize("policy", ["nexus", "symphony"])
def test_who_is_begun_is_in_time_where_there_is_room_for_what_the_profile_does_not_say(policy: str) -> None:
    run = servetwin.run(
        "dit-s2-256-rtx4090",
        policy=(policy, {"safety": 1.2}),
        rate=3.0,
        requests=150,
        deployment="whole",
        settings={"time.table": "scheduler"},
    )
    outcomes = [row["outcome"] for row in run.requests.to_dicts()]
    assert set(outcomes) <= {"met", "dropped"}
    assert outcomes.count("met") > 75
