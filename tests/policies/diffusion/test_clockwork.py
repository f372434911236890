"""Clockwork's decisions, in both versions of the artifact."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.policies.diffusion.clockwork import Clockwork
from views import Desk, ids

# A batch of requests of 10 steps takes 1 s alone, 1.2 s as two, 1.5 s as three.
TABLES = {"dit": [0.09, 0.11, 0.14], "vae": [0.1, 0.1, 0.1]}


def desk(pacing: str = "tracked", max_batch: int = 3) -> Desk:
    return Desk(Clockwork(pacing=pacing, max_batch=max_batch), TABLES, placement=[["dit", "vae"]])


def test_batches_hold_equal_step_counts() -> None:
    d = desk()
    d.request(steps=10, slo=9.0)
    d.request(steps=11, slo=9.5)
    d.request(steps=10, slo=9.9)
    decision = d.decide(0.0)
    assert ids(decision.run) == [0, 2]
    assert decision.whole


def test_whoever_must_start_first_goes_first() -> None:
    d = desk()
    d.request(steps=10, slo=5.0)
    d.request(steps=30, slo=5.5)  # 2.8 s of work: it must start at 2.7 s
    assert ids(d.decide(0.0).run) == [1]


def test_what_cannot_be_in_time_is_dropped() -> None:
    d = desk()
    d.request(steps=10, slo=0.9)
    d.request(steps=10, slo=5.0)
    decision = d.decide(0.0)
    assert (ids(decision.run), ids(decision.drop)) == ([1], [0])


def test_tracked_decides_ten_milliseconds_ahead_and_lets_one_batch_wait() -> None:
    d = desk()
    for steps in (10, 11, 12):
        d.request(steps=steps, slo=6.0 * steps)
    assert ids(d.decide(0.0).run) == [0]
    idle = d.decide(0.5)
    assert not idle.run
    assert idle.idle_until == pytest.approx(0.99)
    assert ids(d.decide(0.991).run) == [1]
    assert not d.decide(1.5).run  # the first is overdue; the second waits behind it


def test_tracked_counts_from_when_the_last_batch_really_ended() -> None:
    d = desk()
    for steps in (10, 11, 12):
        d.request(steps=steps, slo=6.0 * steps)
    d.decide(0.0)
    d.done(0.6)
    assert ids(d.decide(0.6).run) == [1]
    assert d.decide(0.6).idle_until == pytest.approx(0.6 + 11 * 0.09 + 0.1 - 0.01)


def test_tracked_waits_for_no_batch_that_was_lost() -> None:
    d = desk()
    for steps in (10, 11, 12):
        d.request(steps=steps, slo=6.0 * steps)
    d.decide(0.0)
    d.decide(0.991)
    d.lose()  # both: the one that ran and the one behind it
    assert ids(d.decide(1.2).run) == [2]


def test_a_batch_takes_older_requests_of_its_class_with_it() -> None:
    d = desk(max_batch=2)
    d.request(slo=1.1)  # could make it alone (1 s), not in a batch of two (1.2 s)
    d.request(slo=5.0)
    d.request(slo=5.0)
    decision = d.decide(0.0)
    assert (ids(decision.run), ids(decision.drop)) == ([1, 2], [0])


def test_table_runs_only_lists_of_exactly_their_length() -> None:
    d = desk("table", max_batch=3)
    for _ in range(4):  # four of one class: no list of 1, 2 or 3 has its length
        d.request(slo=9.0)
    assert not d.decide(0.0).run


def test_table_is_unblocked_when_the_list_has_shrunk() -> None:
    d = desk("table", max_batch=2)
    d.request(slo=1.5)
    d.request(slo=9.0)
    d.request(slo=9.0)
    blocked = d.decide(0.0)
    assert not blocked.run
    assert blocked.idle_until == pytest.approx(0.3, abs=1e-5)  # 0 falls out of the list of two: 1.5 - 1.2
    assert ids(d.decide(0.3001).run) == [1, 2]


def test_table_is_paced_by_the_table_and_not_by_the_device() -> None:
    d = desk("table")
    d.request(steps=10, slo=60.0)
    d.request(steps=11, slo=66.0)
    assert ids(d.decide(0.0).run) == [0]
    d.done(0.6)
    early = d.decide(0.6)  # the device is free, the table says it is not
    assert not early.run
    assert early.idle_until == pytest.approx(0.995)
    assert ids(d.decide(0.995).run) == [1]


def test_nobody_to_run_nothing_to_wait_for() -> None:
    for pacing in ("tracked", "table"):
        decision = desk(pacing).decide(0.0)
        assert not decision.run
        assert decision.idle_until is None


def test_a_wrong_pacing_is_said_in_one_line() -> None:
    with pytest.raises(BadInput, match="'tracked' or 'table'"):
        Clockwork(pacing="fast")  # type: ignore[arg-type]


def test_who_cannot_make_it_any_more_is_dropped_where_a_larger_batch_is_quicker() -> None:
    """Alone it would take 1 s, as one of two 0.7 s: it waits for a second until that is too late, too, and is dropped
    then though no list in which it stands is ever tried."""
    d = Desk(Clockwork(max_batch=3), {"dit": [0.09, 0.06, 0.14], "vae": [0.1, 0.1, 0.1]}, placement=[["dit", "vae"]])
    d.request(steps=10, slo=0.9)
    first = d.decide(0.0)
    assert (ids(first.run), ids(first.drop)) == ([], [])
    assert first.idle_until == pytest.approx(0.2, abs=1e-4)
    then = d.decide(first.idle_until)
    assert (ids(then.run), ids(then.drop), then.idle_until) == ([], [0], None)
    assert ids(d.decide(0.3).drop) == []  # once
    d.request(arrival=0.4, steps=10, slo=9.0)
    d.request(arrival=0.4, steps=10, slo=9.0)
    assert ids(d.decide(0.4).run) == [1, 2]
