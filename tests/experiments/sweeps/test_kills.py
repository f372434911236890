"""A sweep is killed at random, parent or worker, and resumed: the table is that of an undisturbed sweep."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux: SIGKILL, and /proc")

SWEEP = """
extends: toy.yaml
set: {requests: 1500}
grid:
  policy: [edf, fcfs, clockwork]
  rate: [4.0, 6.0, 8.0, 10.0]
  seed: [0, 1]
"""


def command(spec: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "servetwin.experiments.cli", "sweep", str(spec), "--out", str(out), "--jobs", "2"]


def children(pid: int) -> list[int]:
    """The worker processes of a sweep."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    workers = []
    for child in map(int, found):
        try:
            if b"loky" in Path(f"/proc/{child}/cmdline").read_bytes():
                workers.append(child)
        except OSError:
            continue
    return workers


def kill_one(spec: Path, out: Path, luck: random.Random, after: int) -> tuple[str, int]:
    """Start the sweep, kill something once *after* more points are done; what it was, and the exit code."""
    part = out.with_name(out.name + ".part")
    had = part.read_bytes().count(b'"key"') if part.exists() else 0
    process = subprocess.Popen(
        command(spec, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while process.poll() is None:
            time.sleep(0.005)
            done = part.read_bytes().count(b'"key"') if part.exists() else 0
            workers = children(process.pid)
            if done >= had + after and workers:
                time.sleep(0.03 * luck.random())
                victim, name = (process.pid, "parent") if luck.random() < 0.5 else (luck.choice(workers), "worker")
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    break
                return name, process.wait(60)
        return "nothing", process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def disturbed(toy: Path, monkeypatch: pytest.MonkeyPatch, kills: int, seed: int) -> None:
    luck = random.Random(seed)
    spec = toy.with_name("sweep.yaml")
    spec.write_text(SWEEP)
    undisturbed = toy.with_name("undisturbed.csv")
    subprocess.run([*command(spec, undisturbed), "--no-cache"], check=True, stdout=subprocess.DEVNULL)
    killed: list[str] = []
    tables = 0
    while len(killed) < kills:
        tables += 1
        folder = toy.with_name(f"table{tables}")
        folder.mkdir()
        monkeypatch.setenv("SERVETWIN_CACHE", str(folder / "cache"))
        out, ended = folder / "out.csv", False
        for _ in range(4):  # kills to a table, at most
            name, code = kill_one(spec, out, luck, luck.randint(1, 4))
            ended = code == 0  # it was over just then, or an idle worker was hit
            killed += [name] if name != "nothing" else []
            if ended or len(killed) == kills:
                break
        if not ended:
            subprocess.run(command(spec, out), check=True, stdout=subprocess.DEVNULL)
        assert out.read_bytes() == undisturbed.read_bytes()


def test_two_kills(toy: Path, monkeypatch: pytest.MonkeyPatch):
    disturbed(toy, monkeypatch, kills=2, seed=1)


@pytest.mark.slow
def test_ten_kills(toy: Path, monkeypatch: pytest.MonkeyPatch):
    disturbed(toy, monkeypatch, kills=10, seed=int(os.environ.get("SERVETWIN_LUCK", "2")))
