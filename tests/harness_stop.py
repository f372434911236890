"""A command that a signal ends while it serves: what it says, leaves in its folder, and leaves running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MAIN = "from servetwin.experiments.cli import main; main()"


def stop(
    arguments: list[str],
    folder: Path,
    *,
    number: int = signal.SIGTERM,
    group: bool = False,
    wait: float | None = None,
) -> tuple[int, str]:
    """Run ``servetwin`` with *arguments* in a session of its own until *folder* holds records (or, where they come at
    the end only, has been there for *wait* seconds), then send it (with *group* all its processes, as a batch system
    does) the signal *number*; gives its exit code and what it said.

    Raises `AssertionError` if one of its processes is left.
    """
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for _ in range(3000):
            there = any(f.stat().st_size for f in folder.glob("*.jsonl"))
            if there or process.poll() is not None or (wait is not None and folder.exists()):
                break
            time.sleep(0.05)
        if wait is not None:
            time.sleep(wait)
        running = _below(process.pid)
        for pid in [process.pid, *(running if group else [])]:
            with contextlib.suppress(ProcessLookupError):  # ended by the first of them, which has heard it before
                os.kill(pid, number)
        _, said = process.communicate(timeout=60)
    for _ in range(100):
        left = [pid for pid in running if Path(f"/proc/{pid}").exists()]
        if not left:
            break
        time.sleep(0.1)
    assert not left, f"processes are left: {left}"
    return process.returncode, said


def _below(pid: int) -> list[int]:
    """The processes that *pid* started, and those that they did."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def outcomes(folder: Path) -> list[tuple[str, str | None]]:
    """(outcome, reason) of each request in *folder*, whose files must be whole."""
    for file in folder.glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            json.loads(line)
    assert not (folder / "summary.json").exists()
    records = [json.loads(line) for line in (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(r["outcome"], r.get("reason")) for r in records]
