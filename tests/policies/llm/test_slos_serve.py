"""Steps as long as the next token that is due allows, decision by decision."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits, TokenView
from servetwin.core.testing import FakeEngine
from servetwin.policies.llm.slos_serve import SLOsServe
from token_views import STAGE


def engine_of(policy: SLOsServe | None = None, **limits: int) -> FakeEngine:
    """1 ms per token of a prompt, 50 ms per decode step; first tokens are due after 3 times, others each 75 ms."""
    return FakeEngine(policy or SLOsServe(), prefill=0.001, decode=0.05, slo=(3.0, 1.5), **limits)


def test_prompts_get_what_is_left_until_the_next_token_is_due() -> None:
    engine = engine_of()
    engine.arrive(100)  # its tokens are due at 0.3, 0.375, ...
    engine.decide(0.0)
    engine.end(0.1)
    engine.arrive(400, at=0.1)  # due at 1.3
    step = engine.decide(0.1)
    assert step is not None
    # A step may take until 0.375: 275 ms, of which decoding takes 50.
    assert (step.prefill, step.decode) == ([(1, 225)], [0])
    engine.end(0.375)
    step = engine.decide(0.375)
    assert step is not None
    assert (step.prefill, step.decode) == ([(1, 25)], [0])  # until 0.45


def test_no_more_than_what_the_engine_takes_where_nothing_is_due() -> None:
    engine = engine_of(max_batched_tokens=256)
    engine.arrive(400)
    step = engine.decide(0.0)
    assert step is not None
    assert step.prefill == [(0, 256)]


def test_first_whose_first_token_is_due_first() -> None:
    engine = engine_of(max_batched_tokens=256)
    engine.arrive(300)  # due at 0.9
    engine.arrive(200)  # at 0.6
    step = engine.decide(0.0)
    assert step is not None
    assert step.prefill == [(1, 200), (0, 56)]


def test_whose_first_token_is_late_anyway_comes_last_or_is_dropped() -> None:
    for drop, prefill, dropped in ((False, [(1, 200), (0, 56)], []), (True, [(1, 200)], [0])):
        engine = engine_of(SLOsServe(drop_late=drop), max_batched_tokens=256)
        engine.arrive(100)  # due at 0.3, so it must be begun by 0.2
        engine.arrive(200, at=0.2)
        step = engine.decide(0.21)
        assert step is not None
        assert step.prefill == prefill
        assert engine.dropped == dropped


def test_a_token_that_is_late_anyway_holds_up_no_prompt() -> None:
    engine = engine_of(max_batched_tokens=256)
    engine.arrive(100)
    engine.decide(0.0)
    engine.end(0.4)  # slower than the profile says: its second token was due at 0.375
    engine.arrive(500, at=0.4)
    step = engine.decide(0.4)
    assert step is not None
    assert (step.prefill, step.decode) == ([(1, 255)], [0])


def test_safety_makes_steps_shorter() -> None:
    engine = engine_of(SLOsServe(safety=1.1))
    engine.arrive(100)
    engine.decide(0.0)
    engine.end(0.1)
    engine.arrive(400, at=0.1)
    step = engine.decide(0.1)
    assert step is not None
    assert step.prefill == [(1, 200)]  # 275 / 1.1 - 50


def test_a_prompt_is_begun_only_if_there_is_memory_for_all_of_it() -> None:
    engine = engine_of(blocks=10, max_batched_tokens=64)
    engine.arrive(80)  # 5 blocks
    engine.arrive(96)  # 6 blocks
    for now, expected in ((0.0, [(0, 64)]), (0.07, [(0, 16)])):
        step = engine.decide(now)
        assert step is not None
        assert step.prefill == expected
        engine.end(now + 0.05)


def test_it_needs_deadlines() -> None:
    view = TokenView(STAGE, EngineLimits(10), estimate_prefill=lambda n, s: 0.1, estimate_decode=lambda b, c: 0.1)
    with pytest.raises(BadInput, match="slos-serve needs deadlines of tokens"):
        SLOsServe().start(view)
