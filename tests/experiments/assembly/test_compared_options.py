"""Runs with options of engines, compared: their steps are held against their own step times, and what only they have
is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison import compare_runs
from test_autoscalers import LLM, scaled
from test_engine_options import AHEAD, FP8, drafts, experiment, hosted

from servetwin import compare

MEASURED = ("time.table", "measured")
CLASSES = {"chat": {"share": 3}, "code": {"share": 1}, "plain": {"share": 1}}
ADAPTERS = {"chat": "a", "code": "b"}
STATED = {"load_seconds": 0.5, "slowdown": 1.3, "source": "assumed"}
LORA = {"lora": {"max_loras": 1, "adapters": ADAPTERS, **STATED}}
#: Options whose steps take other times than the profile's table says.
OWN: dict[str, Callable[[Path], Experiment]] = {
    "drafts": lambda folder: drafts(folder, draft={"seconds": 0.02, "source": "assumed"}),
    "drafts of a model": lambda folder: drafts(
        folder,
        engine={"blocks": 1000},
        devices={"small": "h200/codellama-7b"},
        method="draft_model",
        draft={"device": "small"},
    ),
    "drafts on a profile of asynchronous scheduling": lambda folder: drafts(folder, AHEAD),
    "adapters": lambda folder: experiment(folder, LORA, MEASURED, classes=CLASSES),
    "adapters that come in no time": lambda folder: experiment(
        folder, LORA, MEASURED, ("time.costs", False), classes=CLASSES
    ),
    "KV in host memory": lambda folder: hosted(folder, MEASURED, gb_per_s=0.1),
    "KV in 8 bits": lambda folder: experiment(folder, FP8, MEASURED),
}


def ran(made: Experiment, folder: Path) -> Path:
    build.run(made, folder)
    return folder


@pytest.mark.parametrize("name", OWN)
def test_steps_are_held_against_what_the_engines_options_make_of_the_table(name: str, tmp_path: Path) -> None:
    folder = ran(OWN[name](tmp_path), tmp_path / "run")
    found = compare_runs.compare(folder, folder)["steps"]["llm"]
    assert sum(kind["first"]["steps"] for kind in found.values()) > 100
    # (The last request of an idle engine leaves nothing between two steps to wait for.)
    assert [kind["first"]["over_table"] for kind in found.values()] == pytest.approx([1.0] * len(found), abs=0.01)


def test_what_moves_for_a_step_is_recorded(tmp_path: Path) -> None:
    folder = ran(OWN["adapters"](tmp_path), tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    assert sum(line.get("moved", 0) for line in lines) == summary["adapter_loads"] > 0
    long = [line["end"] - line["start"] for line in lines if "moved" in line]
    assert min(long) > STATED["load_seconds"]


def test_rows_that_only_one_run_has(tmp_path: Path) -> None:
    plain = ran(experiment(tmp_path, {}), tmp_path / "plain")
    told = {}
    for name in ("drafts", "adapters", "KV in host memory"):
        folder = ran(OWN[name](tmp_path), tmp_path / name)
        for row in compare(plain, folder):
            if row["first"] is None and row["second"] is not None:
                told[row["metric"]] = row["second"]
        summary = json.loads((folder / "summary.json").read_text())
        keys = {
            "drafts": ("mean_acceptance_length", "tokens a step of a request of llm"),
            "adapters": ("adapter_loads", "adapters loaded of llm"),
            "KV in host memory": (
                "prefix_cache_hit_rate_on_host",
                "prefix cache hit rate, in host memory alone of llm",
            ),
        }
        key, metric = keys[name]
        assert told[metric] == summary[key] > 0
    assert {"drafts of llm", "drafts accepted of llm", "prefix cache hit rate of llm"} <= told.keys()


def test_replicas_that_come_and_go_are_compared(servetwin, tmp_path: Path) -> None:
    one, two = (ran(scaled(LLM, params={"target": n}), tmp_path / str(n)) for n in (2, 8))
    found = compare_runs.compare(one, two)["fleet"]
    summary = json.loads((one / "summary.json").read_text())
    assert found["starts"]["first"] == summary["fleet"]["starts"] > found["starts"]["second"]
    hours = summary["fleet"]["mean_replicas"] * summary["duration"] / 3600.0
    assert found["replica_hours"]["first"] == pytest.approx(hours)
    out = servetwin("compare", one, two)[1]
    assert "replica-hours" in out
    assert "replicas, at most" in out
    fixed = ran(experiment(tmp_path, {}), tmp_path / "fixed")
    assert compare_runs.compare(fixed, one)["fleet"]["starts"] == {
        "first": None,
        "second": summary["fleet"]["starts"],
        "gap": None,
    }
    assert "fleet" not in compare_runs.compare(fixed, fixed)
    summary["fleet"]["starts"] = "many"
    (one / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(BadInput, match=r"fleet\.starts is many"):
        compare_runs.compare(one, two)


def test_failures_are_compared(servetwin, tmp_path: Path) -> None:
    plain = experiment(tmp_path, {})
    one = ran(plain, tmp_path / "plain")
    first = json.loads((one / "requests.jsonl").read_text().splitlines()[0])["arrival"]
    script = [{"at": first + 1e-3, "kind": "fail", "device": device, "for": 1.0} for device in ("gpu0", "gpu0.2")]
    told = {"detect_seconds": 0.2, "retry": {"attempts": 3}, "script": script}
    failing = load(plain.as_dict(), [("deployment.replicas", 2), ("deployment.faults", told)])
    two = ran(failing, tmp_path / "failing")
    summary = json.loads((two / "summary.json").read_text())
    found = compare_runs.compare(one, two)["faults"]
    assert found["failures"] == {"first": None, "second": 2, "gap": None}
    assert found["visits_lost"]["second"] == summary["faults"]["visits_lost"] > 0
    lines = [line for line in servetwin("compare", one, two)[1].splitlines() if "visits lost" in line]
    assert lines[0].split()[-1] == str(summary["faults"]["visits_lost"])
    rows = {row["metric"]: row["second"] for row in compare(one, two)}
    assert rows["seconds until a failure was noticed, mean"] == pytest.approx(0.2)
    summary["faults"]["gave_up"] = "all"
    (two / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(BadInput, match=r"faults\.gave_up is all"):
        compare_runs.compare(one, two)
