"""Why requests of a real run were late: the same as of a simulation, from the same records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servetwin.experiments.backends.diffusion import Backend, Setup
from servetwin.experiments.explaining.causes import Cause
from servetwin.experiments.explaining.explanation import explain
from servetwin.experiments.spec.loading import load


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_a_real_run_is_explained(tmp_path: Path, policy: str) -> None:
    changes = [("requests", 40), ("rate", 240.0), ("policy", policy)]
    Backend(Setup(devices=("cpu",), foreign=True)).run(load("tiny-dit-cpu", changes), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    found = explain(tmp_path / "run", requests=[r["id"] for r in records])
    assert len(found) == 40
    missed = 0
    for one in found:
        assert sum(one.seconds.values()) == pytest.approx(one.latency, abs=1e-9)
        assert Cause.HELD not in one.seconds  # on a real host nobody knows that
        if one.outcome in ("met", "late"):
            assert one.slack.lost == (one.outcome == "late") == (one.lost is not None)
        missed += one.outcome != "met"
    assert missed, "at this rate not all can be met"
