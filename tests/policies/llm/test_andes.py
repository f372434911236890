"""Andes: what a request gains, against sums over its tokens; who gives way to whom; and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits, TokenView
from servetwin.core.testing import FakeEngine
from servetwin.policies.llm.andes import Andes, _area, _late_or_due
from token_views import STAGE

times = st.floats(0.0, 20.0)
gaps = st.floats(0.01, 3.0)


@given(times, times, gaps, st.integers(0, 60))
def test_the_area_under_evenly_spaced_tokens(end: float, first: float, gap: float, most: int) -> None:
    plain = sum(max(0.0, end - (first + gap * k)) for k in range(most))
    assert _area(end, first, gap, most) == pytest.approx(plain, abs=1e-6)


@given(times, times, gaps, times, gaps, st.integers(0, 60))
def test_a_token_counts_from_when_it_is_due_or_comes(
    end: float, due: float, gap: float, comes: float, step: float, most: int
) -> None:
    plain = sum(max(0.0, end - max(due + gap * k, comes + step * k)) for k in range(most))
    assert _late_or_due(end, due, gap, comes, step, most) == pytest.approx(plain, abs=1e-6)


def full_engine(**params: float) -> FakeEngine:
    """Memory for one request, which runs and is far ahead of its reader, who takes a token in 75 ms; each token takes
    50. Another request waits."""
    policy = Andes(every=1, horizon=1.0, **params)
    engine = FakeEngine(policy, prefill=0.0001, decode=0.05, slo=(3.0, 1.5), blocks=11, block_size=16)
    engine.arrive(100, output=100, limit=100)  # 7 blocks, from its 13th token on 8
    now = 0.0
    for _ in range(50):
        engine.decide(now)
        now = round(now + 0.01, 6)  # quicker than the profile says, and so ahead
        engine.end(now)
    engine.arrive(90, output=30, limit=30)
    return engine


def test_who_is_ahead_of_its_reader_gives_way_to_one_who_waits() -> None:
    engine = full_engine()
    step = engine.decide(0.5)
    assert step is not None
    assert step.preempted == [0]
    assert [who for who, _ in step.prefill] == [1]


def test_nobody_gives_way_while_there_is_memory_or_more_often_than_allowed() -> None:
    for params in ({"watermark": 1.0}, {"preemptions": 0.4}):
        engine = full_engine(**params)
        step = engine.decide(0.5)
        assert step is not None
        assert step.preempted == []
        assert step.decode == [0]


def test_who_gave_way_comes_back_after_those_that_wait() -> None:
    engine = full_engine()
    engine.decide(0.5)
    engine.end(0.51)
    engine.arrive(20, output=5)
    step = engine.decide(0.51)
    assert step is not None
    assert [who for who, _ in step.prefill] == [2]


def test_it_needs_deadlines() -> None:
    view = TokenView(STAGE, EngineLimits(10), estimate_prefill=lambda n, s: 0.1, estimate_decode=lambda b, c: 0.1)
    with pytest.raises(BadInput, match="andes needs deadlines of tokens"):
        Andes().start(view)
