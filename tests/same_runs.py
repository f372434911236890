"""Runs of every family of workload, their reports, and tables: what is to be the same bytes on every Python.

    python tests/same_runs.py FOLDER [JOBS]

Prints a JSON object: a hash of each file that it wrote into FOLDER. `tests/sim/test_same_everywhere.py` calls it by
other interpreters and in other surroundings.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from servetwin.experiments.assembly.build import run
from servetwin.experiments.cli import entry
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps import sweep

CHAT: dict[str, Any] = {
    "extends": "opt-13b-a6000",
    "name": "chat",
    "workload": {
        "requests": 40,
        "draws": "seeded",
        "arrivals": {"process": "poisson", "rate": 4.0},
        "lengths": {
            "llm": {
                "prompt": {"draw": "lognormal", "median": 300, "p90": 700, "high": 1200},
                "output": {"draw": "uniform", "low": 8, "high": 60},
                "prefix": {"draw": "shared", "groups": 4, "tokens": 128},
            }
        },
    },
    "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 500, "tpot_ms": 80}},
}
TALK: dict[str, Any] = {
    **CHAT,
    "name": "talk",
    "workload": {
        **CHAT["workload"],
        "arrivals": {"process": "poisson", "rate": 0.5},
        "sessions": {
            "turns": {"draw": "uniform", "low": 2, "high": 5},
            "think": {"draw": "exponential", "mean": 5.0},
        },
        "lengths": {
            "llm": {
                "prompt": {"draw": "uniform", "low": 20, "high": 100},
                "output": {"draw": "uniform", "low": 50, "high": 150},
                "prefix": {"draw": "shared", "groups": 4, "tokens": 128},
            }
        },
    },
}
CACHED = ("deployment.workers.0.engine.enable_prefix_caching", True)
SCALED = {
    "name": "by_utilisation",
    "params": {"target": 0.7},
    "least": 1,
    "every": 2.0,
    "start": {"machine": 1.3, "weights": {"gb": 26, "gb_per_s": 7.0}, "warm_up": 0.7, "source": "an example"},
}

#: A name: the experiment, and what is set in it.
RUNS: dict[str, tuple[str | dict[str, Any], list[tuple[str, Any]]]] = {
    "steps": ("dit-s2-256-rtx4090", [("policy", "neustream"), ("requests", 40), ("rate", 5.0)]),
    "steps that are skipped": ("sdxl-actions-synthetic", [("requests", 30)]),
    "batches": ("sd15-512-rtx4090", [("policy", "clockwork"), ("requests", 30)]),
    "own policy": ("palette-256-rtx4090", [("policy", "slack-batch"), ("requests", 40)]),
    "shapes": ("sdxl-shapes-synthetic", [("requests", 40)]),
    "cascade": ("sdxl-cascade-synthetic", [("requests", 40)]),
    "groups of devices": ("flux-groups-published", [("requests", 30)]),
    "rounds": ("sdxl-shapes-synthetic", [("policy", "tetriserve"), ("requests", 30)]),
    "MLPerf": ("mlperf-sdxl-h100x8", [("requests", 60)]),
    "objects": ("opt-13b-a6000", [("policy", "andes"), ("requests", 30)]),
    "NeuStream's": ("opt-13b-a6000", [("policy", "neustream-llm"), ("requests", 40)]),
    "numbers": ("opt-13b-h100-async", [("policy", "vllm-v1"), ("requests", 60)]),
    "admission": ("opt-13b-h100-async", [("policy", "slack-admission"), ("requests", 40)]),
    "shares": (CHAT, [("policy", "vtc")]),
    "prefix cache": (CHAT, [("policy", "vllm-v1"), CACHED]),
    "sessions": (TALK, [("policy", "vllm-v1"), CACHED]),
    "agents": ("matplotagent-rtx4090", [("policy", "neustream-llm"), ("requests", 3)]),
    "fleet": (
        CHAT,
        [
            ("policy", "vllm-v1"),
            ("deployment.replicas", 3),
            ("deployment.router", {"name": "prefix_load", "params": {"beta": 0.7}, "stale": 0.3}),
            CACHED,
        ],
    ),
    "fleet of image models": (
        "dit-s2-256-rtx4090",
        [("policy", "edf"), ("requests", 60), ("rate", 8.0), ("deployment.replicas", 3)],
    ),
    "fleet that grows": (
        CHAT,
        [
            ("policy", "vllm-v1"),
            ("workload.arrivals.rate", 9.0),
            ("deployment.replicas", 3),
            ("deployment.autoscaler", SCALED),
            ("deployment.prices", {"gpu0": {"per_hour": 0.83, "source": "an example"}}),
        ],
    ),
}


def main(here: Path, jobs: int) -> None:
    for name, (workload, settings) in RUNS.items():
        experiment = load(workload, [*settings, *(() if workload is TALK else [("seed", 3)])])
        run(experiment, here / name)
    grid = {"policy": ["edf", "fcfs"], "seed": [0, 1, 2]}
    block = sweep.Block(extends="palette-256-rtx4090", set={"requests": 40}, grid=grid)
    sweep.sweep(sweep.SweepFile(sweeps=[block]), here / "sweep.csv", jobs=jobs)
    os.chdir(here)  # a report has the command in it that made it
    told(Path("report.md"), "report", "sweep.csv", "--markdown")
    told(Path("run.md"), "report", "numbers", "--markdown")
    told(Path("explained.txt"), "explain", "steps")
    found = {}
    for file in sorted(path for path in here.rglob("*") if path.is_file()):
        if file.name not in ("meta.json", "sweep.csv.spec.yaml"):  # which say by which Python they were made
            found[file.relative_to(here).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    sys.stdout.write(json.dumps(found))


def told(file: Path, *command: object) -> None:
    """Put into *file* what a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        sys.argv = ["servetwin", *map(str, command)]
        code = entry._run()
    if code:
        raise SystemExit(f"servetwin {' '.join(map(str, command))}: exit code {code}")
    file.write_text(out.getvalue())


if __name__ == "__main__":
    os.environ.setdefault("SERVETWIN_CACHE", str(Path(sys.argv[1]) / ".." / "cache"))
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
