"""Timing: cases take turns, round by round, and are compared within rounds, in CPU seconds."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a piece of work took: CPU and wall-clock seconds, and the largest memory of its processes in MiB."""

    cpu: float
    wall: float
    memory: float = 0.0


def in_process(work: Callable[[], Any]) -> Cost:
    """Run *work* here."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def process(arguments: Sequence[str], cache: Path) -> Cost:
    """Run ``python ARGUMENTS`` to its end, with its own cache folder; its worker processes count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    environment = {**os.environ, "SERVETWIN_CACHE": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process would compile all modules anew
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    took = time.perf_counter() - wall
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, took, after.ru_maxrss / 1024)


def turns(cases: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """The costs of *cases*, which take turns for *rounds* rounds."""
    costs: dict[str, list[Cost]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            costs[name].append(run())
    return costs


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Median and range, such as ``12.1 (11.9-13.0)``."""
    low, middle, high = (scale * f(values) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratios(above: Sequence[Cost], below: Sequence[Cost]) -> str:
    """How many times the first took of the second, round by round: median and range."""
    return spread([a.cpu / b.cpu for a, b in zip(above, below, strict=True)], digits=2)
