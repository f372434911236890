"""What the strategies draw is served under all invariants, and their policies keep the contract."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from servetwin.core.testing import assert_policy_contract, play
from servetwin.core.testing.strategies import (
    AnyOrder,
    AnySteps,
    engines,
    pipelines,
    policies,
    prompt_workloads,
    token_policies,
    workers,
    workloads,
)
from servetwin.policies.diffusion.fcfs import FCFS


@settings(max_examples=40)
@given(workloads(), workers(), policies())
def test_workers_serve_whatever_is_drawn(workload, worker, policy) -> None:
    played = play(policy, workload, **worker)
    assert len(played.outcomes) == len(workload)
    assert policy.drops or "dropped" not in played.outcomes


@settings(max_examples=30)
@given(prompt_workloads(), engines(), token_policies())
def test_engines_serve_whatever_is_drawn(workload, engine, policy) -> None:
    played = play(policy, workload, **engine)
    assert len(played.outcomes) == len(workload)
    tokens = {i: prompt.output for i, prompt in enumerate(workload)}
    for number, end in played.ends.items():
        out = sum(bar.decode.count(number) for bar in played.bars)
        if end.outcome in ("met", "late"):
            assert out < tokens[number] <= out + len([b for b in played.bars if number in dict(b.prefill)])


@settings(max_examples=20)
@given(workloads(most=8), pipelines())
def test_pipelines_serve_whatever_is_drawn(workload, system) -> None:
    played = play(FCFS, workload, system=system)
    assert len(played.outcomes) == len(workload)
    assert {bar.worker for bar in played.bars} == set(system.pipeline.modules)


@pytest.mark.parametrize(
    "policy",
    [
        AnyOrder,
        partial(AnyOrder, order="work", promises=True),
        partial(AnyOrder, order="deadline", drops=True, promises=True, sticky=True),
        AnySteps,
    ],
)
def test_their_policies_keep_the_contract(policy) -> None:
    assert assert_policy_contract(policy).decisions > 200
