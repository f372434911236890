"""Sweeps: which points a file means, one row for each, and nothing lost when one is killed."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from servetwin.core import BadInput
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps import point as engine
from servetwin.experiments.sweeps import sweep
from servetwin.experiments.validation.comparison.compare_grids import read_rows


def write(toy: Path, text: str) -> Path:
    path = toy.parent / "sweep.yaml"
    path.write_text(text)
    return path


def axes_of(path: Path) -> list[tuple[str, float, float]]:
    experiments, _ = sweep.points(sweep.read(path), path)
    return [(e.policy.name, e.workload.arrivals.rate, e.slo.factor) for e in experiments]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_blocks_set_differently_is_in_the_table_and_parts_their_points(toy: Path):
    text = "sweeps:\n"
    for replicas, policy in ((1, "edf"), (2, "fcfs")):
        own = f"{{replicas: {replicas}, requests: {20 * replicas}}}"
        text += f"  - {{extends: toy.yaml, set: {own}, grid: {{policy: [{policy}]}}}}\n"
    path, out = write(toy, text), toy.parent / "out.csv"
    sweep.sweep(path, out, jobs=1)
    assert [(row["policy"], row["deployment.replicas"]) for row in table(out)] == [("edf", "1"), ("fcfs", "2")]
    with pytest.raises(BadInput, match="no point of policy 'edf' to compare fcfs with"):
        sweep.sweep(path, out, jobs=1, seeds=2, versus="edf")


# -- which points ---------------------------------------------------------------------------------------


def test_a_grid_is_every_combination(toy: Path):
    path = write(toy, "extends: toy.yaml\ngrid:\n  policy: [edf, fcfs]\n  rate: [2.0, 4.0]\n")
    assert axes_of(path) == [("edf", 2.0, 3.0), ("edf", 4.0, 3.0), ("fcfs", 2.0, 3.0), ("fcfs", 4.0, 3.0)]


def test_zipped_axes_go_together(toy: Path):
    path = write(toy, "extends: toy.yaml\nzip:\n  rate: [2.0, 4.0]\n  slo: [1.5, 2.5]\n")
    assert axes_of(path) == [("edf", 2.0, 1.5), ("edf", 4.0, 2.5)]


def test_varied_axes_go_one_at_a_time_and_meet_in_one_point(toy: Path):
    path = write(toy, "extends: toy.yaml\nvary:\n  rate: [2.0, 4.0]\n  slo: [3.0, 5.0]\n")
    assert axes_of(path) == [("edf", 2.0, 3.0), ("edf", 4.0, 3.0), ("edf", 4.0, 5.0)]


def test_several_blocks_and_what_holds_for_one(toy: Path):
    text = "sweeps:\n  - {extends: toy.yaml, set: {rate: 8.0}, grid: {slo: [2.0]}}\n"
    text += "  - {grid: {workload: [toy.yaml], policy: [fcfs]}}\n"
    assert axes_of(write(toy, text)) == [("edf", 8.0, 2.0), ("fcfs", 4.0, 3.0)]


def test_the_published_figures_are_grids_of_some_250_points():
    found = []
    for name in ("figure11", "figure12"):
        path = sweep.find(name)
        experiments, _ = sweep.points(sweep.read(path), path)
        found += experiments
    assert len(found) == 6 * 2 * 22
    assert len({e.name for e in found}) == 6
    assert {e.policy.name for e in found} == {"neustream", "clockwork"}


WRONG = {
    "unknown key": ("extends: toy.yaml\ngird: {rate: [1.0]}\n", ["sweep.yaml:2", "unknown key 'gird'", "grid"]),
    "empty axis": ("extends: toy.yaml\ngrid: {rate: []}\n", ["sweep.yaml:2", "grid.rate", "at least 1 item"]),
    "axis that is no list": ("extends: toy.yaml\ngrid: {rate: 3}\n", ["grid.rate", "grid.rate: ", "a list: [3]"]),
    "unknown axis": ("extends: toy.yaml\ngrid: {rte: [1.0]}\n", ["the experiment has no key 'rte'"]),
    "value that does not fit": ("extends: toy.yaml\ngrid: {rate: [1.0, -1]}\n", ["rate", "-1", "greater than 0"]),
    "zip of two lengths": ("extends: toy.yaml\nzip: {rate: [1.0], slo: [2.0, 3.0]}\n", ["zip", "rate: 1, slo: 2"]),
    "nothing to sweep": ("grid: {rate: [1.0]}\n", ["nothing to sweep", "extends"]),
    "unknown workload": ("extends: dit-s2\n", ["unknown workload 'dit-s2'"]),
    "an experiment": (
        "extends: toy.yaml\npolicy: {name: edf}\n",
        ["sweep.yaml: this is an experiment", "`extends: sweep.yaml` and `grid: {"],
    ),
    "an axis of no key": ("extends: toy.yaml\ngrid: {policies: [edf]}\n", ["sweep.yaml: grid.policies: ", "no key"]),
    "a setting that does not fit": (
        "extends: toy.yaml\nset: {requests: -3}\ngrid: {rate: [1.0]}\n",
        ["sweep.yaml: set.requests: -3 does not fit"],
    ),
    "a key of an experiment": ("extends: toy.yaml\npolicy: edf\ngrid: {rate: [1.0]}\n", ["unknown key 'policy'"]),
    "no mapping": ("- a\n", ["no mapping"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_sweep_is_told_before_anything_runs(toy: Path, case):
    text, expected = WRONG[case]
    with pytest.raises(BadInput) as caught:
        sweep.sweep(write(toy, text), toy.parent / "out.csv", jobs=1)
    assert "\n" not in str(caught.value)
    for part in expected:
        assert part in str(caught.value), str(caught.value)
    assert not list(toy.parent.glob("out*"))


# -- what comes out -------------------------------------------------------------------------------------

GRID = "extends: toy.yaml\ngrid:\n  policy: [edf, fcfs]\n  rate: [4.0, 8.0, 16.0]\n  system.stop_after: [1.0]\n"


def test_one_tidy_row_per_point(toy: Path):
    path = write(toy, GRID)
    rows = sweep.sweep(path, toy.parent / "out.csv", jobs=1)
    written = table(toy.parent / "out.csv")
    assert [(r["policy"], float(r["rate"])) for r in written] == list(
        itertools.product(["edf", "fcfs"], [4.0, 8.0, 16.0])
    )
    assert {r["system.stop_after"] for r in written} == {"1.0"}
    for row in rows:
        assert row["met"] + row["late"] + row["dropped"] + row["failed"] == row["requests"] == 60
    assert sorted(p.name for p in toy.parent.glob("out*")) == ["out.csv", "out.csv.spec.yaml"]


def test_parquet_holds_the_same_with_types(toy: Path):
    path = write(toy, GRID)
    rows = sweep.sweep(path, toy.parent / "out.parquet", jobs=1)
    assert pyarrow.parquet.read_table(toy.parent / "out.parquet").to_pylist() == rows


def test_processes_change_nothing(toy: Path):
    path = write(toy, GRID)
    sweep.sweep(path, toy.parent / "one.csv", jobs=1)
    sweep.sweep(path, toy.parent / "two.csv", jobs=2)
    assert (toy.parent / "one.csv").read_bytes() == (toy.parent / "two.csv").read_bytes()


def test_a_table_of_no_kind(toy: Path):
    with pytest.raises(BadInput, match=r".txt is no kind of table \(right would be: .csv or .parquet\)"):
        sweep.sweep(write(toy, GRID), toy.parent / "out.txt", jobs=1)


def test_points_are_known_by_all_that_can_change_them(toy: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from servetwin.policies.diffusion.edf import EDF\n\n\nclass Mine(EDF):\n    pass\n"
    )
    experiment = load(toy, [("policy", str(tmp_path / "mine.py"))])
    key = engine.key_of(experiment)
    assert engine.key_of(experiment) == key
    assert engine.key_of(experiment.model_copy(update={"seed": 1})) != key
    profile = tmp_path / "profile.yaml"
    profile.write_text(profile.read_text().replace("0.020", "0.0205"))
    changed = engine.key_of(experiment)
    assert changed != key
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n# changed\n")
    assert engine.key_of(experiment) != changed


# -- when it is killed ----------------------------------------------------------------------------------


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> list[str]:
    """Let the next sweep break off after that many points; the list tells which points are run."""
    ran: list[str] = []
    original = engine.run_point

    def run_point(experiment):
        if len(ran) == after:
            raise KeyboardInterrupt
        ran.append(engine.title(experiment))
        return original(experiment)

    monkeypatch.setattr(engine, "run_point", run_point)
    return ran


def test_what_had_finished_is_not_run_again(toy: Path, monkeypatch: pytest.MonkeyPatch):
    path, out = write(toy, GRID), toy.parent / "out.csv"
    sweep.sweep(path, toy.parent / "undisturbed.csv", jobs=1)
    first = interrupted(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(path, out, jobs=1)
    assert not out.exists()
    with (toy.parent / "out.csv.part").open("a") as file:
        file.write('{"key": "torn')
    monkeypatch.undo()
    second = interrupted(monkeypatch, after=99)
    sweep.sweep(path, out, jobs=1)
    assert (len(first), len(second)) == (2, 4)
    assert not set(first) & set(second)
    assert out.read_bytes() == (toy.parent / "undisturbed.csv").read_bytes()
    assert not (toy.parent / "out.csv.part").exists()


def test_what_is_no_longer_true_is_run_again(toy: Path, monkeypatch: pytest.MonkeyPatch):
    path, out = write(toy, GRID), toy.parent / "out.csv"
    interrupted(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(path, out, jobs=1)
    monkeypatch.undo()
    profile = toy.parent / "profile.yaml"
    profile.write_text(profile.read_text().replace("0.020", "0.0205"))
    second = interrupted(monkeypatch, after=99)
    sweep.sweep(path, out, jobs=1)
    assert len(second) == 6


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_sweep_that_was_killed_resumes(toy: Path):
    text = "extends: toy.yaml\nset: {requests: 3000}\ngrid:\n  rate: [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]\n"
    path, out = write(toy, text), toy.parent / "out.csv"
    command = [
        sys.executable,
        "-m",
        "servetwin.experiments.cli",
        "sweep",
        str(path),
        "--out",
        str(out),
        "--jobs",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = toy.parent / "out.csv.part"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not partial.exists() or partial.read_bytes().count(b'"row"') < 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if partial.exists():  # it was not too fast for us
        assert not out.exists()
        kept = [json.loads(line)["key"] for line in partial.read_text().split("\n")[:-1] if line]
        assert len(kept) >= 2
    sweep.sweep(path, out, jobs=1)
    sweep.sweep(path, toy.parent / "undisturbed.csv", jobs=1)
    assert out.read_bytes() == (toy.parent / "undisturbed.csv").read_bytes()


def test_a_table_that_a_spreadsheet_wrote_is_read(toy: Path):
    path, out = write(toy, "extends: toy.yaml\ngrid: {rate: [2.0]}\n"), toy.parent / "out.csv"
    sweep.sweep(path, out, jobs=1)
    rows = read_rows(out)
    out.write_text(out.read_text(), encoding="utf-8-sig")
    assert read_rows(out) == rows


def test_a_sweep_that_is_refused_leaves_nothing(toy: Path, servetwin):
    path = write(toy, "extends: toy.yaml\nset: {deployment.workers.0.limit: 64}\ngrid: {rate: [2.0, 4.0]}\n")
    before = {p.name for p in toy.parent.iterdir()}
    code, _, err = servetwin("sweep", path, "--out", toy.parent / "out.csv", "--jobs", 1, "--no-cache")
    assert (code, err.count("\n")) == (2, 1)
    assert {p.name for p in toy.parent.iterdir()} == before


def test_who_shares_a_device_in_time_is_said(servetwin, tmp_path: Path):
    """It came out in the report of a run only."""
    workers = [{"modules": ["dit"], "device": "gpu0", "limit": 8, "name": name} for name in "ab"]
    workers.append({"modules": ["vae"], "device": "gpu0", "limit": 8})
    spec = tmp_path / "two.yaml"
    settings = {"deployment.workers": workers, "time.unmeasured": "shared", "requests": 20, "policy": "edf"}
    spec.write_text(
        json.dumps({"sweeps": [{"extends": "dit-s2-256-rtx4090", "set": settings, "grid": {"rate": [2]}}]})
    )
    code, _, err = servetwin("sweep", spec, "--out", tmp_path / "out.csv", "--jobs", 1)
    assert code == 0
    assert "a and b share gpu0 in time: what they cost each other was not measured" in err
