"""Batches are closed by count, by the clock, and after quiet; and stay together behind a queue of batches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.policies.diffusion.batcher import Batcher


def served(tmp_path: Path, arrivals: list[float], **params: Any) -> Experiment:
    (tmp_path / "t.csv").write_text("arrival\n" + "".join(f"{at}\n" for at in arrivals))
    workload = {"arrivals": {"file": str(tmp_path / "t.csv")}}
    return load({"extends": "mlperf-sdxl-gh200", "workload": workload, "policy": {"params": params}})


def batches(experiment: Experiment, folder: Path) -> list[tuple[float, list[int]]]:
    run(experiment, folder)
    rows = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
    return [(round(row["start"], 6), row["requests"]) for row in rows]


def test_a_full_batch_runs_at_once(tmp_path: Path) -> None:
    arrivals = [0.0, 0.1, 0.2, 5.0, 5.5]
    found = batches(served(tmp_path, arrivals, max_batch=3, seconds=2.0), tmp_path / "run")
    # The second is closed with its first: that came more than two seconds after the first batch was closed.
    assert found == [(0.2, [0, 1, 2]), (5.0, [3]), (7.5, [4])]


def test_after_quiet_who_is_there_runs(tmp_path: Path) -> None:
    assert batches(served(tmp_path, [0.0, 1.0], seconds=3.0), tmp_path / "run") == [(4.0, [0, 1])]


def test_batches_close_by_the_clock_while_the_device_is_busy(tmp_path: Path) -> None:
    """What comes while a batch of 3.6 s runs is not one batch, though it could be."""
    arrivals = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0, 1.8, 2.0, 2.1]
    found = batches(served(tmp_path, arrivals, seconds=1.0), tmp_path / "run")
    assert [ids for _, ids in found] == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11]]


def test_bounds() -> None:
    for bad in ({"max_batch": 0}, {"seconds": 0.0}):
        with pytest.raises(BadInput, match="batcher"):
            Batcher(**bad)


def test_a_queue_of_batches_keeps_them_together(tmp_path: Path) -> None:
    experiment = load("mlperf-sdxl-h100x8", [("requests", 500), ("workload.arrivals.rate", 8.0)])
    checker = InvariantChecker()
    made = build(experiment, checker)
    checker.watch(made.loop)
    made.play()
    checker.finish()
    run(experiment, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/batches.jsonl").read_text().splitlines()]
    closed = [row["requests"] for row in rows if row["worker"] == "batcher"]
    ran = [row for row in rows if row["worker"] != "batcher"]
    assert sorted(closed) == sorted(row["requests"] for row in ran)
    assert len(Counter(row["worker"] for row in ran)) == 8
