"""No policy's run of a language model meets more than its bound says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits
from servetwin.experiments.assembly.build import run
from servetwin.experiments.bound.most_met import most_met
from servetwin.experiments.bound.schedules import under
from servetwin.experiments.bound.token_steps import step_bounds
from servetwin.experiments.spec.loading import load
from servetwin.profiles import load as profile

POLICIES = ("vllm", "vllm-v1", "sarathi", "edf-llm", "neustream-llm")
ENGINES = ("a6000/opt-13b-tp1", "h100-knees/opt-13b-tp1", "h200-steps/opt-13b")


@given(
    rate=st.sampled_from([1.0, 3.0, 6.0]),
    cv=st.sampled_from([0.5, 2.0]),
    decode=st.sampled_from([1.05, 1.2, 1.5]),
    blocks=st.sampled_from([None, 150, 300]),
    stamp=st.sampled_from(["sent", "seen"]),
    policy=st.sampled_from(POLICIES),
    meets=st.sampled_from(["all", "last"]),
)
@settings(max_examples=12, deadline=None)
def test_no_policy_meets_more(rate, cv, decode, blocks, stamp, policy, meets) -> None:
    tight = load(
        "opt-13b-a6000",
        [
            ("rate", rate),
            ("requests", 60),
            ("workload.arrivals.cv", cv),
            ("workload.draws", "seeded"),
            ("slo.decode", decode),
            ("slo.meets", meets),
            ("deployment.workers.0.engine.stamp", stamp),
            ("deployment.workers.0.engine.blocks", blocks),
        ],
    )
    found = most_met(tight, slots=40, policies=False)
    assert run(under(tight, policy)).met <= found.most <= 60


def test_less_memory_and_tighter_deadlines_lower_the_bound() -> None:
    def most(**changes: object) -> int:
        keys = {"blocks": "deployment.workers.0.engine.blocks", "decode": "slo.decode"}
        more = [(keys[k], v) for k, v in changes.items()]
        return most_met(load("opt-13b-a6000", [("rate", 4.0), ("requests", 80), *more]), policies=False).most

    assert most(blocks=100) < most(blocks=150) < most() == 80
    assert most(blocks=150, decode=1.05) < most(blocks=150)


@pytest.mark.parametrize("name", ENGINES)
def test_planes_are_below_every_step(name: str) -> None:
    table = profile(name).tokens("measured", hold=True)
    limits = EngineLimits(blocks=400, max_sequences=64, max_batched_tokens=2048)
    bounds = step_bounds(table, limits)
    assert bounds.planes
    for batch in (1, 2, 3, 7, 8, 20, 33, 64):
        for each in (1, 10, 64, 90):
            context = batch * each
            decode = max(a + b * batch + c * context for a, b, c in bounds.planes)
            assert decode <= table.decode(batch, context) * (1 + 1e-9)
            for tokens in (16, 100, 513, 1900):
                seconds = table.step(tokens, float(tokens**2), 0.0, batch, context)
                assert bounds.fastest <= seconds <= bounds.longest
                both = decode + bounds.token * tokens if bounds.adds else bounds.token * (tokens + batch)
                assert max(decode, both) <= seconds * (1 + 1e-9)


def test_pipelines_with_more_than_one_model_are_refused() -> None:
    with pytest.raises(BadInput, match="one language model"):
        most_met(load("matplotagent-rtx4090", [("requests", 3)]))
