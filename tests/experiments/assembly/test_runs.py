"""One run: what comes out, what is left in its folder, and that nothing is left when something is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.experiment import Time
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.compare_runs import read
from servetwin.sim.measured import TimeOptions

RECORDS = ["batches.jsonl", "experiment.yaml", "meta.json", "requests.jsonl", "summary.json"]


@pytest.mark.parametrize("policy", ["neustream", "clockwork", "fcfs", "edf"])
def test_every_policy_serves_the_toy(toy: Path, policy):
    summary = build.run(load(toy, [("policy", policy)]))
    assert summary.requests == 60
    assert sum(summary.outcomes.values()) == 60
    assert summary.met > 0


def test_the_folder_holds_the_run_and_the_experiment_that_repeats_it(toy: Path, tmp_path: Path):
    experiment = load(toy)
    summary = build.run(experiment, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == RECORDS
    assert load(tmp_path / "run" / "experiment.yaml") == experiment
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert meta["kind"] == "simulated"
    assert meta["experiment"] == experiment.as_dict()
    assert set(meta["profiles"]) == {"mine/toy"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary.as_dict()


def test_same_seed_same_bytes(toy: Path, tmp_path: Path):
    for name in ("a", "b"):
        build.run(load(toy), tmp_path / name)
    for name in RECORDS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    other = build.run(load(toy, [("seed", 1)]), tmp_path / "c")
    assert other.requests == 60
    assert (tmp_path / "a" / "requests.jsonl").read_bytes() != (tmp_path / "c" / "requests.jsonl").read_bytes()


def test_the_stop_cuts_off_what_is_in_flight(toy: Path):
    everything = build.run(load(toy)).as_dict()
    stopped = build.run(load(toy, [("system.stop_after", 0.0)])).as_dict()
    assert everything["failed"] == 0
    assert stopped["failed"] > 0
    assert stopped["duration"] == stopped["arrival_span"]
    later = build.run(load(toy, [("system.stop_after", 60.0)])).as_dict()
    assert later["failed"] == 0


def test_a_module_may_branch(toy: Path):
    text = toy.read_text().replace(
        "    encode: {}\n    denoise: {loop: true}\n",
        "    encode: {}\n    denoise: {loop: true}\n  edges: [[encode, denoise]]\n",
    )
    toy.write_text(text)
    assert build.run(load(toy)).requests == 60


def test_a_policy_of_ones_own_for_one_worker(toy: Path):
    text = toy.read_text().replace(
        "{modules: [encode], device: gpu0, limit: 8}",
        "{modules: [encode], device: gpu0, limit: 8, name: front, policy: {name: fcfs}}",
    )
    toy.write_text(text)
    experiment = load(toy)
    assert experiment.deployment.workers[0].policy.params == {"max_batch": None}
    assert "front" in build.run(experiment).as_dict()["workers"]


WRONG = {
    "unknown profile": (
        ("deployment.devices.gpu0", "rtx409/dit"),
        r"deployment.devices.gpu0: unknown profile 'rtx409/dit'",
    ),
    "profile without the module": (("deployment.devices.gpu0", "rtx4090/palette-256"), r"no module 'encode'"),
    "edges into nowhere": (("pipeline.edges", [["encode", "nowhere"]]), r"unknown module 'nowhere'"),
    "a bound that no SLO factor gives": (("slo", {"seconds": 1.0}), r"bounds its batches by an SLO factor"),
    "a limit beyond the table": (("deployment.workers.1.limit", 9), r"no value for a batch of 9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_shows_before_anything_is_written(toy: Path, tmp_path: Path, case):
    override, message = WRONG[case]
    experiment = load(toy, [("policy", "neustream"), ("policy.params.step_delta", 0.95), override])
    with pytest.raises(BadInput, match=message) as caught:
        build.run(experiment, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_left_alone(toy: Path, tmp_path: Path):
    build.run(load(toy), tmp_path / "run")
    before = (tmp_path / "run" / "requests.jsonl").read_bytes()
    with pytest.raises(BadInput, match="holds a run already"):
        build.run(load(toy, [("seed", 1)]), tmp_path / "run")
    assert (tmp_path / "run" / "requests.jsonl").read_bytes() == before


def test_the_terms_of_time_are_those_of_the_simulator():
    # *host* goes into the profile, before there is a simulator
    ours = {name: field.default for name, field in Time.model_fields.items() if name != "host"}
    assert ours == {f.name: f.default for f in dataclasses.fields(TimeOptions)}


def test_records_that_lack_a_request_are_refused(toy: Path, tmp_path: Path):
    build.run(load(toy, [("policy", "edf")]), tmp_path / "run")
    file = tmp_path / "run" / "requests.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    with pytest.raises(BadInput, match=rf"it has {len(lines) - 1} requests, and summary.json counts {len(lines)}"):
        read(tmp_path / "run")
