"""Devices that fail, as experiments say it: on diffusion and language models, in sweeps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput, Recorder
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.cli.output.run_output import show_run
from servetwin.experiments.registry import router_registry
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import run_point

LLM: dict[str, Any] = {
    "extends": "opt-13b-a6000",
    "name": "chat",
    "policy": {"name": "vllm-v1"},
    "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 1000, "tpot_ms": 120}},
    "workload": {
        "requests": 60,
        "draws": "seeded",
        "arrivals": {"process": "poisson", "rate": 6.0},
        "lengths": {"llm": {"output": {"draw": "uniform", "low": 4, "high": 30}}},
    },
}
RESTART = {"weights": {"gb": 3.0, "gb_per_s": 2.0}, "warm_up": 0.5, "source": "an example"}
SCRIPT = [
    {"at": 2, "kind": "fail", "device": "gpu0", "for": 3},
    {"at": 4, "kind": "crash", "worker": "llm@gpu0.2", "restart": RESTART},
]


def faulty(source: Any, replicas: int = 3, **said: Any) -> Experiment:
    told = {"detect_seconds": 0.5, "retry": {"attempts": 3, "backoff_seconds": 0.1}, **said}
    return load(source, [("deployment.replicas", replicas), ("deployment.faults", told)])


def checked(experiment: Experiment) -> tuple[build.Run, Recorder]:
    log = Recorder()
    checker = InvariantChecker(log)
    run = build.build(experiment, checker)
    checker.watch(run.loop)
    run.play()
    checker.finish()
    return run, log


@pytest.mark.parametrize("router", sorted(router_registry.router_names()))
def test_under_each_router_all_requests_end(toy: Path, router: str) -> None:
    drawn = {"mtbf": 8, "mttr": 2, "source": "an example"}
    experiment = faulty(toy, drawn=drawn)
    plan = experiment.deployment.model_copy(update={"router": router})
    _, log = checked(experiment.model_copy(update={"deployment": plan}))
    faults = log.summary.input["faults"]
    assert log.summary.requests == sum(log.summary.outcomes.values()) > 0
    assert faults["failures"] > 0
    assert faults["visits_lost"] > 0
    assert faults["mean_availability"] < 1.0


def test_engines_fail_and_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = faulty(LLM, script=SCRIPT)
    summary = build.run(experiment, tmp_path / "r")
    check_records(tmp_path / "r")
    lines = [json.loads(line) for line in (tmp_path / "r" / "faults.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["worker"], line["at"], line["until"]) for line in lines] == [
        ("fail", "llm", 2.0, 5.0),
        ("crash", "llm@gpu0.2", 4.0, 6.0),
    ]
    records = [json.loads(line) for line in (tmp_path / "r" / "requests.jsonl").read_text().splitlines()]
    lost = [record for record in records if "attempts" in record]
    assert sum(len(record["attempts"]) for record in lost) == summary.as_dict()["faults"]["visits_lost"] > 0
    assert all(attempt["lost"] in (2.0, 4.0) or attempt["started"] is None for r in lost for attempt in r["attempts"])
    show_run(experiment, summary.as_dict(), 1.0, None)
    out = capsys.readouterr().out
    assert "faults: 2 failures, noticed after 0.5 s on average" in out
    assert "a restart of llm@gpu0.2 is stated (weights 1.5 s, warm-up 0.5 s): an example" in out


def test_all_policies_meet_the_same_failures_and_requests(tmp_path: Path) -> None:
    drawn = {"mtbf": 6, "mttr": 1, "source": "an example"}
    told = []
    for policy in ("vllm-v1", "orca", "sarathi"):
        experiment = faulty({**LLM, "policy": {"name": policy}}, drawn=drawn)
        build.run(experiment, tmp_path / policy)
        lines = (tmp_path / policy / "faults.jsonl").read_text().splitlines()
        faults = {(line["worker"], line["at"]) for line in map(json.loads, lines) if line["at"] < 10.0}
        records = map(json.loads, (tmp_path / policy / "requests.jsonl").read_text().splitlines())
        told.append((faults, sorted((r["id"], r["arrival"], r["stages"][0]["prompt"]) for r in records)))
    assert told[0] == told[1] == told[2]
    assert told[0][0]


def test_faults_that_never_happen_change_nothing(tmp_path: Path, toy: Path) -> None:
    for name, source in (("llm", LLM), ("toy", toy)):
        never = faulty(source, replicas=2, script=[{"at": 1e6, "kind": "fail", "device": "gpu0"}])
        build.run(never, tmp_path / name / "never")
        plain = load(source, [("deployment.replicas", 2)])
        build.run(plain, tmp_path / name / "plain")
        one, other = ((tmp_path / name / run / "requests.jsonl").read_bytes() for run in ("never", "plain"))
        assert one == other, name


def test_a_sweep_has_what_failed_as_columns() -> None:
    row = run_point(faulty(LLM, script=SCRIPT))
    assert row["failures"] == 2
    assert row["visits_lost"] == row["visits_retried"] > 0
    assert row["gave_up"] == 0
    assert 0 < row["mean_availability"] < 1
    assert run_point(faulty(LLM, script=SCRIPT, retry=None))["gave_up"] > 0


BAD = [
    ({"script": [{"at": 1, "kind": "fail", "device": "gpu7"}]}, r"script\.0\.device: no device .* 'gpu7'"),
    ({"script": [{"at": 1, "kind": "fail", "worker": "llmm"}]}, r"script\.0\.worker: no worker .* 'llmm'.*llm"),
    ({"script": [{"at": 1, "kind": "fail"}]}, "a device or to a worker"),
    ({"script": [{"at": 1, "kind": "slow", "worker": "llm"}]}, r"script\.0\.factor: .* needs it"),
    ({"script": [{"at": 1, "kind": "late", "worker": "llm"}]}, r"script\.0\.seconds: .* needs it"),
    ({"script": [{"at": 1, "kind": "crash", "worker": "llm"}]}, r"script\.0\.restart: .* needs it"),
    ({"script": [{"at": 1, "kind": "crash", "device": "gpu0", "restart": RESTART}]}, "a worker's process"),
    ({"script": [{"at": 1, "kind": "pause", "worker": "llm", "factor": 2}]}, r"script\.0\.factor: .* has no factor"),
    ({"script": [{"at": 5, "kind": "pause", "worker": "llm", "until": 4}]}, r"until: 4 is not after at, 5"),
    ({"script": [{"at": 5, "kind": "fail", "worker": "llm", "until": 9, "for": 1}]}, "it ends by for already"),
    (
        {"script": [{"at": 5, "kind": "crash", "worker": "llm", "restart": {"source": "x"}}]},
        r"script\.0\.restart: a restart takes time",
    ),
    ({"drawn": {"mtbf": 9, "mttr": 1}}, r"drawn\.source"),
    ({"drawn": {"mtbf": 9, "mttr": 1, "source": "x", "devices": ["g"]}}, r"drawn\.devices\.0: no device"),
    ({"out_of_memory": {"batch": 4}}, r"out_of_memory\.restart: an engine"),
    ({"out_of_memory": {"batch": 4, "restart": RESTART, "workers": ["x"]}}, r"out_of_memory\.workers\.0: no worker"),
    ({"detect_seconds": None}, "detect_seconds"),
    ({"retries": 3}, "retries"),
]


@pytest.mark.parametrize(("said", "match"), BAD)
def test_what_is_wrong_is_said_in_a_line(said: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        build.build(faulty(LLM, **said))
    assert "\n" not in str(caught.value)


def test_what_does_not_go_together_is_refused_by_name(toy: Path) -> None:
    scaler = {"name": "by_queue", "start": {"source": "x"}}
    with pytest.raises(BadInput, match="faults do not go together with replicas that come and go"):
        load(LLM, [("deployment.faults", {"detect_seconds": 1}), ("deployment.autoscaler", scaler)])
    with pytest.raises(BadInput, match="faults do not go together with an SLO that is shared out"):
        load(toy, [("deployment.faults", {"detect_seconds": 1}), ("budget.split", "equal")])
    plan = load(LLM).as_dict()["deployment"]
    kind, worker = plan["devices"]["gpu0"], plan["workers"][0]
    plan |= {"devices": {"a": kind, "b": kind}, "faults": {"detect_seconds": 1}}
    plan["workers"] = [{**worker, "name": name, "device": name, "engine": {"blocks": 200}} for name in "ab"]
    plan["cards"] = {"gpu0": {"devices": ["a", "b"], "gb_per_s": 25, "source": "x"}}
    with pytest.raises(BadInput, match="faults do not go together with cards that several models share"):
        load(LLM, [("deployment", plan)])
    classes = {"all": {"share": 1, "enters": ["llm"]}}
    with pytest.raises(BadInput, match="faults do not go together with classes that enter single modules"):
        load(LLM, [("deployment.faults", {"detect_seconds": 1}), ("workload.classes", classes)])
    from servetwin.experiments.bound.most_met import most_met

    with pytest.raises(BadInput, match="the bound knows no devices that fail"):
        most_met(faulty(toy))


def test_a_router_weighs_what_was_lost_ahead_of_its_engine() -> None:
    """Steps that were scheduled ahead are lost with their engine: until that is noticed, who had them stands where it
    was, and wants no prefill of fewer than no tokens."""
    script = [{"at": 1.5, "kind": "fail", "device": "gpu0", "for": 2}]
    workload = {**LLM["workload"], "requests": 120, "arrivals": {"process": "poisson", "rate": 40.0}}
    source = {**LLM, "extends": "opt-13b-h100-async", "workload": workload}
    run, log = checked(faulty(source, script=script))
    assert run.experiment.deployment.router == "least_loaded"
    assert log.summary.input["faults"]["visits_lost"] > 0
    assert log.summary.finished == 120


def test_a_restart_that_is_stated_twice_is_told_once() -> None:
    script = [{"at": at, "kind": "crash", "worker": "llm", "restart": RESTART} for at in (1, 4)]
    _, log = checked(faulty(LLM, script=script))
    told = [line for line in log.summary.input["basis"] if line.startswith("a restart of llm ")]
    assert len(told) == 1
    assert log.summary.input["faults"]["failures"] == 2
