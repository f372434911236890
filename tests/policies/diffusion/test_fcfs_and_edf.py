"""The two textbook policies."""

from __future__ import annotations

import math

import pytest
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from views import Desk, ids

FLAT = {"dit": [0.1], "vae": [0.02]}


def test_fcfs_runs_the_oldest_to_their_end() -> None:
    d = Desk(FCFS(max_batch=2), FLAT)
    for steps in (5, 9, 1):
        d.request(steps=steps)
    decision = d.decide(0.0)
    assert ids(decision.run) == [0, 1]
    assert decision.whole
    d.done(0.9)
    assert ids(d.decide(0.9).run) == [2]


def test_fcfs_drops_nothing() -> None:
    d = Desk(FCFS(), FLAT)
    d.request(slo=0.01)
    decision = d.decide(5.0)
    assert (ids(decision.run), ids(decision.drop)) == ([0], [])


def test_edf_runs_whoever_must_begin_first() -> None:
    d = Desk(EDF(max_batch=1), FLAT)
    d.request(slo=5.0, steps=10)  # must begin by 5.0 - 1.0 - 0.02
    d.request(slo=6.0, steps=30)  # by 6.0 - 3.0 - 0.02
    assert ids(d.decide(0.0).run) == [1]


def test_edf_lets_the_urgent_pass_between_iterations() -> None:
    d = Desk(EDF(max_batch=1), FLAT)
    d.request(slo=9.0)
    assert d.rounds(0.0, 0.1) == [[0], [0]]
    d.request(arrival=0.15, slo=1.5)
    assert d.rounds(0.2) == [[1]]


def test_edf_drops_what_could_not_make_it_alone_unless_told_not_to() -> None:
    for drop_late, dropped in ((True, [0]), (False, [])):
        d = Desk(EDF(drop_late=drop_late), FLAT)
        d.request(slo=1.5, steps=10)
        d.request(slo=9.0, steps=10)
        decision = d.decide(0.6)
        assert ids(decision.drop) == dropped
        assert 1 in ids(decision.run)


def test_edf_offers_to_repeat_only_if_nobody_is_left_out() -> None:
    d = Desk(EDF(max_batch=1), FLAT)
    d.request(slo=9.0)
    assert d.decide(0.0).repeat is not None
    d.done(0.1)
    d.request(arrival=0.15, slo=90.0)
    assert d.decide(0.2).repeat is None


def test_edf_s_word_stands_until_somebody_is_late_and_where_it_drops_nobody_to_the_end() -> None:
    """Both must begin 1 s and 20 ms before their deadlines; the word is of the one that is urgent."""
    for drop_late, until in ((True, 9.0 - 1.02), (False, math.inf)):
        d = Desk(EDF(drop_late=drop_late), FLAT)
        d.request(slo=12.0)
        d.request(slo=9.0)
        for _ in range(2):  # told anew, and as it was kept
            repeat = d.decide(0.0).repeat
            assert repeat is not None
            assert (repeat.times, repeat.limit) == (10, pytest.approx(until))
