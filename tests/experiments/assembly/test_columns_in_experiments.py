"""Experiments with one LLM engine report the same by the calendar and from numbers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servetwin.core import RunFolder
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import results_of
from servetwin.experiments.workload.traces import sample
from servetwin.sim.llm.ahead_columns import AheadColumns
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


#: With an engine that decides each step when the last is over, and with one that decides a step ahead.
SYNC, ASYNC = "opt-13b-a6000", "opt-13b-h100-async"

SHORT = {"llm": {"prompt": {"draw": "constant", "tokens": 90}, "output": {"draw": "uniform", "low": 1, "high": 50}}}
#: What a class may promise, by whether tokens have deadlines.
STRICTER = {
    True: {"prefill": 1.1, "decode": 1.01, "meets": "last", "limits": {"ttft_ms": 100}},
    False: {"limits": {"e2el_ms": 3000, "tpot_ms": 50}},
}
classes = st.fixed_dictionaries(
    {"share": st.sampled_from([1, 3])},
    optional={
        "tenant": st.sampled_from(["t", "u"]),
        "weight": st.sampled_from([0.3, 0.7]),
        "priority": st.just(-2),
        "slo": st.just("stricter"),
        "lengths": st.just(SHORT),
    },
)


def experiment(policy: str, engine: dict, slo: dict, seed: int = 0, requests: int = 60, *, base: str = SYNC, **more):
    tree = load(base).as_dict()
    tree["policy"], tree["seed"] = {"name": policy}, seed
    tree["slo"] = slo
    tree["workload"] |= {"requests": requests, "draws": "seeded"}
    lengths = {key: more.pop(key) for key in ("prompt", "output", "limit", "predict") if key in more}
    for name, own in more.pop("classes", {}).items():
        stricter = {"slo": {"seconds": 2.0} if "seconds" in slo else STRICTER[slo.get("prefill") is not None]}
        tree["workload"].setdefault("classes", {})[name] = own | (stricter if "slo" in own else {})
    tree["workload"]["lengths"]["llm"] = {"truncate": True, **lengths}
    tree["workload"]["arrivals"] = more.pop("arrivals")
    tree["deployment"]["workers"][0]["engine"] = engine
    tree["time"] |= {"hold": True, **more.pop("time", {})}
    tree.update(more)
    return load(tree)


FILES = "requests.jsonl", "batches.jsonl", "summary.json"


def same(chosen, records: bool = False) -> dict:
    """Both ways, and what they report; with *records* their folders hold the same bytes."""
    with tempfile.TemporaryDirectory() as place:
        folders = [RunFolder(Path(place) / way, {}) if records else None for way in ("numbers", "objects")]
        summary, expected = (
            build(chosen, folder).play(columns=columns)
            for folder, columns in zip(folders, (True, False), strict=True)
        )
        for folder in folders:
            if folder is not None:
                folder.close()
        for name in FILES if records else ():
            found, wanted = ((Path(place) / way / name).read_bytes() for way in ("numbers", "objects"))
            assert found == wanted
    assert summary.as_dict() == expected.as_dict()
    assert results_of(chosen, summary) == results_of(chosen, expected)
    assert summary.e2el == expected.e2el
    return summary.as_dict()


@given(
    st.sampled_from(["vllm", "vllm", "vllm", "vllm-v1", "sarathi", "edf-llm"]), prompts, outputs,
    arrivals, slos, engines, st.booleans(), st.none() | st.sampled_from([50, 5]), st.integers(0, 99),
    st.sampled_from([{}, {}, {"stop_after": 5.0}, {"client_delay": 0.01}]),
    st.sampled_from([None, None, {}, {"tokens": True}]),
    st.just({}) | st.dictionaries(st.sampled_from("abc"), classes, min_size=1), st.sampled_from([SYNC, ASYNC]),
)  # fmt: skip
@settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_experiment_reports_the_same(
    policy, prompt, output, arrives, slo, engine, noisy, limit, seed, system, records, kinds, base
) -> None:
    if policy == "edf-llm" and slo.get("prefill") is None:
        slo = {"prefill": 3.0, "decode": 1.5}
    table = "measured" if noisy else "corrected"
    found = same(experiment(
        policy, engine, slo, seed, prompt=prompt, output=output, limit=limit, arrivals=arrives, system=system,
        time={"noise": noisy, "table": table}, records=records or {},
        classes=kinds, base=base,
    ), records is not None)  # fmt: skip
    assert found["requests"] == 60


@pytest.mark.parametrize(("policy", "rate"), [
    ("vllm", 0.4), ("vllm", 2.0), ("vllm", 3.0), ("vllm-v1", 2.0), ("sarathi", 2.0),
])  # fmt: skip
def test_many_requests_report_the_same(policy: str, rate: float) -> None:
    """Blocks are full, ends of steps are forgotten, there are gaps beyond a million; at the largest rate memory is
    short."""
    chosen = load("opt-13b-a6000", [("policy", policy), ("rate", rate), ("requests", 3600)])
    found = same(chosen, records=True)
    assert (found["preemptions"] > 0) == (rate == 3.0)
    assert build(chosen).play().stages["llm"].itl.bins is not None


@pytest.mark.parametrize(("policy", "rate"), [("vllm-v1", 24.0), ("vllm-v1", 60.0), ("sarathi", 4.0), ("vllm", 12.0)])
def test_many_requests_report_the_same_where_an_engine_decides_ahead(policy: str, rate: float) -> None:
    chosen = load(ASYNC, [("policy", policy), ("rate", rate), ("requests", 3000)])
    same(chosen, records=True)


@pytest.mark.parametrize("name", ["azure.csv", "burstgpt.csv", "mooncake.jsonl"])
def test_traces_report_the_same(name: str) -> None:
    drawn = {"draw": "trace"}
    trace = {"process": "trace", "file": str(sample(name)), "rate": 1.0}
    same(experiment("vllm", {}, {"prefill": 3.0, "decode": 1.5}, requests=None, prompt=drawn, output=drawn,
                    limit=500, arrivals=trace))  # fmt: skip


def test_classes_as_numbers_are_the_requests_that_they_were() -> None:
    """Whatever the class says of itself; whoever reads them one by one gets what `described` makes."""
    own = {"a": {"share": 1, "lengths": SHORT, "tenant": "t", "weight": 2.0}, "b": {"share": 2, "priority": 3}}
    engine, slo = {}, {"prefill": 3.0, "decode": 1.5}
    some = {"prompt": {"draw": "constant", "tokens": 512}, "output": {"draw": "constant", "tokens": 30}}
    some |= {"arrivals": {"process": "poisson", "rate": 2.0}, "classes": own}
    made = build(experiment("vllm", engine, slo, 3, **some)).source
    assert type(made) is TokenColumns
    # Where outputs are predicted, they are objects.
    known = {**some, "predict": {"model": "exact"}}
    others = build(experiment("vllm", engine, slo, 3, **known)).source
    assert type(others) is not TokenColumns
    told = ("id", "arrival", "deadline", "tokens", "outputs", "class_name", "tenant", "priority", "weight", "work")
    found, expected = ([tuple(getattr(r, name) for name in told) for r in them] for them in (made, others))
    assert found == expected
    assert {row[5] for row in found} == {"a", "b"}


def went(monkeypatch: pytest.MonkeyPatch, chosen, recorder=None, way: type = Columns) -> int:
    """How often an experiment was left to the loop that takes requests as numbers."""
    times = []
    run = way.run
    with monkeypatch.context() as patch:
        patch.setattr(way, "run", lambda *a: times.append(1) or run(*a))
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
    for policy, times in (("vllm", 1), ("vllm-v1", 1), ("sarathi", 1), ("neustream-llm", 0)):
        chosen = load(ASYNC, [("policy", policy), ("rate", 8.0), ("requests", 40)])
        assert went(monkeypatch, chosen, way=AheadColumns) == times
    folder = RunFolder(tmp_path / "run", {})
    assert went(monkeypatch, opt(), folder) == 1
    folder.close()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary == json.loads(json.dumps(build(opt()).play().as_dict()))
    heard = []

    class Listener(RunFolder):
        def batch(self, batch) -> None:
            heard.append(batch.id)

    listener = Listener(tmp_path / "heard", {})
    assert went(monkeypatch, opt(), listener) == 0
    listener.close()
    assert heard


@pytest.mark.parametrize("policy", ["vllm", "sarathi"])
def test_what_had_ended_when_a_run_broke_is_in_its_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy: str
) -> None:
    chosen = load("opt-13b-a6000", [("policy", policy), ("rate", 2.0), ("requests", 300)])
    whole, broken = (RunFolder(tmp_path / name, {}) for name in ("whole", "broken"))
    build(chosen, whole).play()
    whole.close()
    leave, left = Columns.record, []

    def interrupted(self) -> None:
        leave(self)
        if self.first + len(self.firsts) > 100 and not left:
            left.append(len(self.firsts))
            raise KeyboardInterrupt

    monkeypatch.setattr(Columns, "record", interrupted)
    monkeypatch.setattr("servetwin.sim.llm.column_steps.BLOCK", 5)
    with pytest.raises(KeyboardInterrupt):
        build(chosen, broken).play()
    broken.close(complete=False)
    for name in ("requests.jsonl", "batches.jsonl"):
        part, all_of_them = ((tmp_path / run / name).read_bytes() for run in ("broken", "whole"))
        assert 50 < part.count(b"\n") < all_of_them.count(b"\n")
        assert all_of_them.startswith(part)
