"""Invariant 8 across processes: the same seed gives the same bytes whatever the hash seed, the time zone, the locale,
optimisation, or the number of jobs.

One file of records per kind of run: image models (sums of steps, noise), a language model by objects and by numbers,
and a pipeline of several models; and the table of a sweep.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

RUNS = """
import hashlib, sys, tempfile
from pathlib import Path
from servetwin.experiments.assembly.build import run
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps import sweep

found = hashlib.sha256()
with tempfile.TemporaryDirectory() as here:
    for number, (workload, policy, count) in enumerate(
        [("sd15-512-rtx4090", "clockwork", 30), ("dit-s2-256-rtx4090", "neustream", 30),
         ("opt-13b-a6000", "andes", 30), ("opt-13b-h100-async", "vllm-v1", 30),
         ("matplotagent-rtx4090", "neustream-llm", 3)]
    ):
        folder = Path(here) / str(number)
        run(load(workload, [("policy", policy), ("requests", count), ("seed", 3)]), folder)
        for name in ("requests.jsonl", "batches.jsonl", "summary.json", "experiment.yaml"):
            found.update((folder / name).read_bytes())
    grid = {"policy": ["edf", "fcfs"], "seed": [0, 1]}
    block = sweep.Block(extends="palette-256-rtx4090", set={"requests": 40}, grid=grid)
    table = Path(here) / "t.csv"
    sweep.sweep(sweep.SweepFile(sweeps=[block]), table, jobs=int(sys.argv[1]))
    found.update(table.read_bytes())
print(found.hexdigest())
"""

SURROUNDINGS: dict[str, dict[str, str]] = {
    "another hash seed": {"PYTHONHASHSEED": "99"},
    "time zone": {"TZ": "Pacific/Kiritimati"},
    "locale": {"LC_ALL": "C", "LANG": "tr_TR.UTF-8"},
    "without assertions": {"PYTHONOPTIMIZE": "1"},
}


def digest(jobs: int = 1, **surroundings: str) -> str:
    """What the runs come to in a process of their own."""
    given = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "UTC", **surroundings}
    command = [sys.executable, "-c", RUNS, str(jobs)]
    done = subprocess.run(command, env=given, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def usual() -> str:
    return digest()


def test_the_same_bytes_with_another_hash_seed_time_zone_and_locale(usual: str) -> None:
    """All of these at once: each of them is one process, and costs a second."""
    assert len(usual) == len(hashlib.sha256().hexdigest())
    assert digest(**{name: value for given in SURROUNDINGS.values() for name, value in given.items()}) == usual


def test_the_same_bytes_with_two_jobs(usual: str) -> None:
    assert digest(2) == usual


@pytest.mark.slow
@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_the_same_bytes_with_each_of_them_alone(surroundings: dict[str, str], usual: str) -> None:
    assert digest(**surroundings) == usual


@pytest.mark.slow
@pytest.mark.parametrize("python", os.environ.get("SERVETWIN_PYTHONS", "").split())
def test_the_same_bytes_on_another_python(python: str, usual: str) -> None:
    """SERVETWIN_PYTHONS names interpreters that have ServeTwin installed, of other versions of Python or NumPy."""
    command = [python, "-c", RUNS, "1"]
    given = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "UTC"}
    done = subprocess.run(command, env=given, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == usual
