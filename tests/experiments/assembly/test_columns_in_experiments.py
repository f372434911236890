"""Experiments with one LLM engine report the same by the calendar and from numbers."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servetwin.core import RunFolder
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import results_of
from servetwin.experiments.workload.traces import sample
from servetwin.sim.llm.columns import Columns
from servetwin.sim.llm.request_columns import TokenColumns

prompts = st.sampled_from([
    {"draw": "listed", "name": "neustream-llm-prompts"},
    {"draw": "lognormal", "median": 200, "p90": 800, "high": 2500},
    {"draw": "choice", "values": [20, 1500], "weights": [3, 1]},
    {"draw": "constant", "tokens": 512},
])  # fmt: skip
outputs = st.sampled_from([
    {"draw": "constant", "tokens": 30},
    {"draw": "constant", "tokens": 1},
    {"draw": "uniform", "low": 1, "high": 120},
    {"draw": "lognormal", "median": 40, "p90": 200, "high": 900},
])  # fmt: skip
arrivals = st.sampled_from([
    {"process": "gamma", "rate": 1.0, "cv": 1.0},
    {"process": "gamma", "rate": 4.0, "cv": 3.0},
    {"process": "poisson", "rate": 8.0},
    {"process": "constant", "rate": 3.0},
    {"process": "bursty", "rate": 3.0, "burst": 5.0, "share": 0.2, "cycle": 10.0},
])  # fmt: skip
slos = st.sampled_from([
    {"prefill": 3.0, "decode": 1.5},
    {"prefill": 1.5, "decode": 1.05, "meets": "last"},
    {"prefill": 3.0, "decode": 1.5, "limits": {"ttft_ms": 500, "itl_ms": 200}},
    {"prefill": None, "decode": None, "limits": {"ttft_ms": 300, "tpot_ms": 60}},
    {"prefill": None, "decode": None, "limits": {"e2el_ms": 4000}},
    {"seconds": 5.0},
])  # fmt: skip
engines = st.fixed_dictionaries(
    {"stamp": st.sampled_from(["sent", "seen"]), "headroom": st.sampled_from([0, 1])},
    optional={
        "blocks": st.sampled_from([200, 400]),
        "max_batched_tokens": st.sampled_from([600, 2048]),
        "preemption": st.just("recompute"),
    },
)


def experiment(policy: str, engine: dict, slo: dict, seed: int = 0, requests: int = 60, **more):
    tree = load("opt-13b-a6000").as_dict()
    tree["policy"], tree["seed"] = {"name": policy}, seed
    tree["slo"] = slo
    tree["workload"] |= {"requests": requests, "draws": "seeded"}
    lengths = {key: more.pop(key) for key in ("prompt", "output", "limit") if key in more}
    tree["workload"]["lengths"]["llm"] = {"truncate": True, **lengths}
    tree["workload"]["arrivals"] = more.pop("arrivals")
    tree["deployment"]["workers"][0]["engine"] = engine
    tree["time"] |= {"hold": True, **more.pop("time", {})}
    tree.update(more)
    return load(tree)


def same(chosen) -> dict:
    short, long = build(chosen), build(chosen)
    summary, expected = short.play(), long.play(columns=False)
    assert summary.as_dict() == expected.as_dict()
    assert results_of(chosen, summary) == results_of(chosen, expected)
    assert summary.e2el == expected.e2el
    return summary.as_dict()


@given(
    st.sampled_from(["vllm", "vllm", "vllm", "vllm-v1", "sarathi", "edf-llm"]), prompts, outputs,
    arrivals, slos, engines, st.booleans(), st.none() | st.sampled_from([50, 5]), st.integers(0, 99),
    st.sampled_from([{}, {}, {"stop_after": 5.0}, {"client_delay": 0.01}]),
)  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_experiment_reports_the_same(
    policy, prompt, output, arrives, slo, engine, noisy, limit, seed, system
) -> None:
    if policy == "edf-llm" and slo.get("prefill") is None:
        slo = {"prefill": 3.0, "decode": 1.5}
    table = "measured" if noisy else "corrected"
    found = same(experiment(
        policy, engine, slo, seed, prompt=prompt, output=output, limit=limit, arrivals=arrives, system=system,
        time={"noise": noisy, "table": table},
    ))  # fmt: skip
    assert found["requests"] == 60


@pytest.mark.parametrize(("policy", "rate"), [
    ("vllm", 0.4), ("vllm", 2.0), ("vllm", 3.0), ("vllm-v1", 2.0), ("sarathi", 2.0),
])  # fmt: skip
def test_many_requests_report_the_same(policy: str, rate: float) -> None:
    """Blocks are full, ends of steps are forgotten, there are gaps beyond a million; at the largest rate memory is
    short."""
    chosen = load("opt-13b-a6000", [("policy", policy), ("rate", rate), ("requests", 3600)])
    found = same(chosen)
    assert (found["preemptions"] > 0) == (rate == 3.0)
    assert build(chosen).play().stages["llm"].itl.bins is not None


@pytest.mark.parametrize("name", ["azure.csv", "burstgpt.csv", "mooncake.jsonl"])
def test_traces_report_the_same(name: str) -> None:
    drawn = {"draw": "trace"}
    trace = {"process": "trace", "file": str(sample(name)), "rate": 1.0}
    same(experiment("vllm", {}, {"prefill": 3.0, "decode": 1.5}, requests=None, prompt=drawn, output=drawn,
                    limit=500, arrivals=trace))  # fmt: skip


def went(monkeypatch: pytest.MonkeyPatch, chosen, recorder=None) -> int:
    """How often an experiment was left to the loop that takes requests as numbers."""
    times = []
    run = Columns.run
    with monkeypatch.context() as patch:
        patch.setattr(Columns, "run", lambda *a: times.append(1) or run(*a))
        build(chosen, recorder).play()
    return len(times)


def test_which_experiments_go_as_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def opt(*more):
        return load("opt-13b-a6000", [("policy", "vllm"), ("rate", 1.0), ("requests", 40), *more])

    for more in (
        [],
        [("slo", {"prefill": None, "decode": None, "limits": {"ttft_ms": 300}})],
        [("time.noise", True)],
        [("policy", "vllm-v1")],
        [("policy", "sarathi")],
    ):
        assert type(build(opt(*more)).source) is TokenColumns
        assert went(monkeypatch, opt(*more)) == 1
    for more in ([("policy", "edf-llm")], [("policy", "neustream-llm")], [("system.stop_after", 1.0)],
                 [("slo.window", {"skip": 1.0, "requests": 5})]):  # fmt: skip
        assert went(monkeypatch, opt(*more)) == 0
    folder = RunFolder(tmp_path / "run", {})
    assert went(monkeypatch, opt(), folder) == 0
    folder.close()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary == json.loads(json.dumps(build(opt()).play().as_dict()))
