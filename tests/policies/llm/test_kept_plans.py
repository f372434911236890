"""`slos-serve` and `slack-admission` keep what they know between decisions, and decide as if they did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.loading import load

PLAIN = Path(__file__).parent / "plain_deadlines.py"
CLASSES: dict[str, Any] = {
    "strict": {"share": 1, "slo": {"prefill": 1.1, "decode": 1.05}},
    "lax": {"share": 1, "slo": {"prefill": 9.0, "decode": 4.0}},
    "unlimited": {"share": 1, "slo": {"limits": {"ttft_ms": 3000}}},
}
ENGINES = st.one_of(
    st.fixed_dictionaries({"preemption": st.sampled_from(["recompute", "swap"])}),
    st.sampled_from([{"keep_freed": True}, {"enable_prefix_caching": True}]),
    st.just({"asynchronous": True, "whole_prompt": True}),
    st.just({"max_batched_tokens": 256, "stamp": "seen"}),
)


@pytest.mark.parametrize(
    ("policy", "plain"), [("slos-serve", "PlainSLOsServe"), ("slack-admission", "PlainSlackAdmission")]
)
@settings(max_examples=3)
@given(
    st.sampled_from([1.0, 2.0, 4.0, 8.0]),
    st.sampled_from([60, 120, 400, 1400]),
    ENGINES,
    st.booleans(),
    st.integers(0, 99),
    st.fixed_dictionaries({"safety": st.sampled_from([0.7, 1.0, 1.3]), "drop_late": st.booleans()}),
    st.sampled_from([{}, CLASSES]),
)
def test_in_any_world_it_decides_as_if_it_kept_nothing(
    policy: str,
    plain: str,
    rate: float,
    blocks: int,
    engine: dict[str, Any],
    noise: bool,
    seed: int,
    options: dict[str, Any],
    classes: dict[str, Any],
) -> None:
    asynchronous = "asynchronous" in engine
    tree = load("opt-13b-h100-async" if asynchronous else "opt-13b-a6000").as_dict()
    tree["workload"] |= {"requests": 24, "draws": "seeded", "classes": classes}
    tree["workload"]["arrivals"]["rate"] = rate * (10 if asynchronous else 1)
    tree["workload"]["lengths"]["llm"] = {
        "prompt": {"draw": "uniform", "low": 8, "high": 400},
        "output": {"draw": "uniform", "low": 1, "high": 200},
    }
    tree["deployment"]["workers"][0]["engine"] = {**engine, "blocks": blocks}
    tree["time"] |= {"noise": noise, "hold": True, "costs": False}
    tree["seed"] = seed
    found = []
    for name in (policy, f"{PLAIN}:{plain}"):
        tree["policy"] = {"name": name, "params": options}
        run = build.run(load(tree))
        found.append((run.as_dict(), run.e2el))
    assert found[0] == found[1]
