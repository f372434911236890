"""Results of each kind to report about, small and real."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.sweep import SweepFile, sweep
from servetwin.experiments.validation.comparison import run_table
from servetwin.experiments.validation.score import score

#: The policy of a language model, and limits that some of its requests miss.
CHAT = [("policy", "vllm-v1"), ("requests", 60), ("rate", 25.0), ("slo.limits", {"ttft_ms": 60})]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A folder with runs of a language model (``chat``) and of a diffusion model (``images``), a sweep's table with
    intervals (``sweep.csv``), and the score of a few measured runs (``score.csv``)."""
    folder = tmp_path_factory.mktemp("results")
    build.run(load("opt-13b-h100-async", CHAT), folder / "chat")
    busy = [("requests", 60), ("rate", 8.0), ("slo", 2.0)]
    build.run(load("dit-s2-256-rtx4090", busy), folder / "images")
    block = {
        "extends": "dit-s2-256-rtx4090",
        "set": {"requests": 60},
        "grid": {"policy": ["neustream", "edf"], "rate": [2.0, 4.0, 8.0], "slo": [1.5, 3.0]},
    }
    asked = SweepFile.model_validate({"name": "images", "about": "Two policies under load", "sweeps": [block]})
    sweep(asked, folder / "sweep.csv", jobs=1, seeds=2)
    lines = run_table.NEUSTREAM.read_text(encoding="utf-8").splitlines(keepends=True)
    of_one = [line for line in lines[1:] if line.startswith("dit-s2-256-rtx4090,") and ",rate," in line]
    (folder / "measured.csv").write_text("".join([lines[0], *of_one]), encoding="utf-8")
    score(folder / "measured.csv", folder / "score.csv", seeds=1, jobs=1)
    return folder
