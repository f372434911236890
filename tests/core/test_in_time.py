"""What takes exactly as long as it may is in time, whatever the last bit of its arrival."""

from __future__ import annotations

import random

import numpy as np
import pytest
from engines import Linear, requests, serve, view_of
from harness import one_stage
from servetwin.core import Request, ServingLoop
from servetwin.core.llm import EngineLimits, LimitsSLO, TokenDeadlines, TokenLimits
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.slo import latest, slack
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.sim import SimExecutor
from servetwin.sim.llm.columns import play
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.llm.request_columns import TokenColumns

#: 0.02 s a step, prompts included: 20 tokens take exactly 0.4 s.
STEPS = Linear(c0=0.02, c1=0.0, d0=0.02, d1=0.0)


def apart(n: int, seed: int = 0, since: float = 0.0) -> list[float]:
    """Arrivals that are far enough apart for each to be alone, at crooked times."""
    dice = random.Random(seed)
    return [since + 1.0 * i + round(dice.random() * 0.3, 4) for i in range(n)]


LIMITS = {
    "e2el": (TokenLimits(e2el=0.4), TokenLimits(e2el=0.4 - 1e-6)),
    "ttft": (TokenLimits(ttft=0.02), TokenLimits(ttft=0.02 - 1e-6)),
    "tpot": (TokenLimits(tpot=0.02), TokenLimits(tpot=0.02 - 1e-6)),
    "itl": (TokenLimits(itl=0.02), TokenLimits(itl=0.02 - 1e-6)),
}


def met(
    sent: list[float], slo, *, policy=VLLM, columns: bool = True, seconds: float = float("inf")
) -> tuple[int, int]:
    """How many were met, and how many kept the limits that are counted beside."""
    view = view_of(STEPS, EngineLimits(1000), slo)
    executor = SimExecutor(lambda _: TokenTiming(STEPS))
    from servetwin.core import Recorder

    log = Recorder()
    log.summary = summary = TokenSummary({view.stage.name: slo})
    log.wants_token_times = True
    loop = ServingLoop([view.stage], [TokenWorker(view.stage, policy(), view)], executor, log)
    many = len(sent)
    source = TokenColumns("llm", sent, [7] * many, [20] * many, [20] * many, slo=seconds)
    play(loop, executor, source, columns=columns)
    return summary.met, summary.stages[view.stage.name].within_limits


@pytest.mark.parametrize("since", [0.0, 1e4, 3e7])
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_kept_by_all_or_none(name: str, columns: bool, since: float) -> None:
    exact, less = LIMITS[name]
    sent = apart(200, since=since)
    assert met(sent, LimitsSLO.of(exact), columns=columns) == (200, 200)
    assert met(sent, LimitsSLO.of(less), columns=columns) == (0, 0)


@pytest.mark.parametrize("meets", ["all", "last"])
@pytest.mark.parametrize("columns", [True, False])
def test_deadlines_of_tokens_too(meets, columns: bool) -> None:
    for scale, many in ((1.0, 200), (1.0 - 1e-6, 0)):
        slo = TokenDeadlines(scale, scale, 0.02, 0.0, lambda _: 0.02, meets)
        assert met(apart(200), slo, columns=columns)[0] == many


@pytest.mark.parametrize("policy", [VLLM, VLLMV1])
def test_and_those_of_requests(policy) -> None:
    for seconds, many in ((0.4, 200), (0.4 - 1e-6, 0)):
        for columns in (True, False):
            assert met(apart(200), None, policy=policy, columns=columns, seconds=seconds)[0] == many


def test_and_of_requests_to_other_models() -> None:
    for slo, many in ((0.3, 200), (0.3 - 1e-6, 0)):
        sent = [Request(i, at, slo, {"m": 3}) for i, at in enumerate(apart(200))]
        assert one_stage(FCFS(), sent, seconds=[0.1]).summary.met == many


def test_edf_drops_nobody_for_a_last_bit() -> None:
    for slo, many in ((0.3, 200), (0.3 - 1e-6, 0)):
        sent = [Request(i, at, slo, {"m": 3}) for i, at in enumerate(apart(200))]
        assert one_stage(EDF(), sent, seconds=[0.1]).summary.met == many
    for scale, many in ((1.0, 200), (1.0 - 1e-6, 0)):
        slo = TokenDeadlines(scale, scale, 0.02, 0.0, lambda _: 0.02, "all")
        assert met(apart(200), slo, policy=EDFLLM)[0] == many


def test_the_invariants_hold_with_the_same_tolerance() -> None:
    found = serve(VLLM(), requests(*[(at, 7, 20) for at in apart(50)]), times=STEPS,
                  slo=LimitsSLO.of(TokenLimits(e2el=0.4)))  # fmt: skip
    assert found.loop.recorder.summary.met == 50


def test_the_tolerance() -> None:
    assert latest(float("inf")) == float("inf")
    assert latest(2.0) - 2.0 == pytest.approx(1e-9, rel=1e-5)
    assert slack(1e7) == pytest.approx(1.1e-8)
    assert [*latest(np.array([0.0, np.inf]))] == [1e-9, np.inf]
