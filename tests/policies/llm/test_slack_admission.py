"""Prompts are begun where they cost nobody a deadline, decision by decision; and beside others in whole runs."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits, TokenView
from servetwin.core.testing import FakeEngine
from servetwin.experiments.assembly.build import run
from servetwin.experiments.spec.loading import load
from servetwin.policies.llm.slack_admission import SlackAdmission
from token_views import STAGE


def engine_of(policy: SlackAdmission | None = None, decode: float = 0.05, **limits: int) -> FakeEngine:
    """1 ms per token of a prompt, 50 ms per decode step; first tokens are due after 3 times, others each 75 ms."""
    return FakeEngine(policy or SlackAdmission(), prefill=0.001, decode=decode, slo=(3.0, 1.5), **limits)


def prefill_of(engine: FakeEngine, now: float) -> list[tuple[int, int]]:
    step = engine.decide(now)
    return list(step.prefill) if step is not None else []


def test_a_prompt_is_computed_beside_decodes_that_have_the_time() -> None:
    engine = engine_of()
    engine.arrive(100)  # its tokens are due at 0.3, 0.375, ...
    assert prefill_of(engine, 0.0) == [(0, 100)]
    engine.end(0.1)
    engine.arrive(200, at=0.1)  # 0.25 s with the decode, until 0.35
    assert prefill_of(engine, 0.1) == [(1, 200)]


def test_a_long_prompt_is_cut_so_that_no_token_is_late_by_it() -> None:
    engine = engine_of()
    engine.arrive(100)
    engine.decide(0.0)
    engine.end(0.1)
    engine.arrive(400, at=0.1)  # due at 1.3; a step may take until 0.375, of which decoding takes 50 ms
    assert prefill_of(engine, 0.1) == [(1, 225)]
    engine.end(0.375)
    assert prefill_of(engine, 0.375) == [(1, 25)]  # until 0.45


def test_a_prompt_that_would_be_cut_too_often_to_be_in_time_is_not_begun() -> None:
    engine = engine_of()
    engine.arrive(100)
    engine.decide(0.0)
    for now in (0.1, 0.32):  # the second token is out at 0.32, the third due at 0.45
        engine.end(now)
        engine.decide(now)
    engine.end(0.44)  # late against the profile: 10 ms until the third is due, and the fourth at 0.525
    engine.arrive(60, at=0.44)  # due at 0.62: in 35 ms a step of decodes and prompts, it would be out at 0.55 + 0.05
    assert prefill_of(engine, 0.44) == [(1, 35)]
    other = engine_of()
    other.arrive(100)
    other.decide(0.0)
    for now in (0.1, 0.32):
        other.end(now)
        other.decide(now)
    other.end(0.47)  # now 5 ms a step: it would be cut eleven times
    other.arrive(60, at=0.47)
    assert prefill_of(other, 0.47) == []


def test_no_more_requests_than_can_decode_in_time() -> None:
    table = {1: 0.05, 2: 0.07, 3: 0.09}  # 75 ms per token: two can go on, three cannot
    engine = FakeEngine(
        SlackAdmission(), prefill=0.001, decode=lambda batch, context: table[batch], slo=(3.0, 1.5), blocks=1000
    )
    for _ in range(3):
        engine.arrive(30, output=100)
    step = engine.decide(0.0)
    assert step is not None
    assert len(step.prefill) == 2


def test_no_more_requests_than_memory_holds_until_they_end() -> None:
    engine = engine_of(blocks=25, max_batched_tokens=4096)
    engine.arrive(96, output=100)  # 13 blocks at its end
    engine.arrive(96, output=100)
    assert prefill_of(engine, 0.0) == [(0, 96)]
    sharing = engine_of(SlackAdmission(memory=0.0), blocks=25, max_batched_tokens=4096)
    sharing.arrive(96, output=100)
    sharing.arrive(96, output=100)
    assert prefill_of(sharing, 0.0) == [(0, 96), (1, 96)]


def test_the_shortest_prompt_is_begun_first() -> None:
    engine = engine_of()
    engine.arrive(300)
    engine.arrive(100)  # with the longer one, 0.4 s, it would be late
    assert prefill_of(engine, 0.0) == [(1, 100)]


@pytest.mark.parametrize(("drop", "prefill", "dropped"), [(True, [], [1]), (False, [(1, 100)], [])])
def test_who_is_late_is_dropped_or_begun_where_it_costs_nothing(
    drop: bool, prefill: list[tuple[int, int]], dropped: list[int]
) -> None:
    engine = engine_of(SlackAdmission(drop_late=drop))
    engine.arrive(100)
    engine.decide(0.0)
    engine.arrive(100, at=0.0)
    engine.end(0.21)  # its first token can be out at 0.31, and was due at 0.3
    assert prefill_of(engine, 0.21) == prefill
    assert engine.dropped == dropped


def test_it_needs_deadlines() -> None:
    view = TokenView(STAGE, EngineLimits(10), estimate_prefill=lambda n, s: 0.1, estimate_decode=lambda b, c: 0.1)
    with pytest.raises(BadInput, match="slack-admission needs deadlines of tokens"):
        SlackAdmission().start(view)


@pytest.mark.parametrize("other", ["neustream-llm", "vllm-v1", "slos-serve"])
def test_it_meets_more_under_overload(other: str) -> None:
    met = {}
    for policy in (other, "slack-admission"):
        sets = [("policy", policy), ("rate", 3.0), ("requests", 120), ("workload.draws", "seeded"), ("seed", 7)]
        met[policy] = run(load("opt-13b-a6000", sets)).met
    assert met["slack-admission"] > 1.2 * met[other]
