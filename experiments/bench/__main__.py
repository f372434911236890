"""``python -m servetwin.experiments.bench``: how fast the simulator is.

CPU seconds (user and system), median of several rounds with the least and the most; cases that are compared take
turns within each round, so that a noisy machine disturbs them alike. Results are compared before times are.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from servetwin.experiments import resolve
from servetwin.experiments.bench.step_edf import STYLES, Case
from servetwin.experiments.build import run
from servetwin.experiments.sweep import sweep

ROUNDS = 5


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds that *work* takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def spread(seconds: list[float], unit: float = 1e3, name: str = "ms") -> str:
    low, middle, high = min(seconds) * unit, statistics.median(seconds) * unit, max(seconds) * unit
    return f"{middle:8.1f} {name} ({low:.1f} to {high:.1f})"


def styles() -> None:
    """ServeTwin, a naive SimPy model and a bare loop, at loads below, at and above the knee."""
    print("step-level EDF, 500 requests of 50 steps: equal results in three styles")
    for rate in (0.6, 1.2, 1.4, 1.6):
        case = Case(rate=rate)
        results = {name: style(case) for name, style in STYLES.items()}
        if len({r.key for r in results.values()}) != 1:
            sys.exit(f"the styles disagree at rate {rate:g}")
        times: dict[str, list[float]] = {name: [] for name in STYLES}
        for _ in range(ROUNDS):
            for name, style in STYLES.items():
                times[name].append(cpu(partial(style, case)))
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, times["twin"], strict=True))
            print(f"  rate {rate:g}  {name:6}{spread(seconds)}  {ratio:5.2f} x twin")


def single_runs() -> None:
    """One run of 500 requests of DiT-S/2: some 110,000 request-steps."""
    print("one run of dit-s2-256-rtx4090, 500 requests")
    for policy in ("neustream", "clockwork", "edf"):
        for rate in (0.5, 2.0, 4.0):
            experiment = resolve.load("dit-s2-256-rtx4090", [("policy", policy), ("rate", rate)])
            seconds = [cpu(partial(run, experiment)) for _ in range(ROUNDS)]
            print(f"  {policy:10} rate {rate:<4g}{spread(seconds)}")


def figures() -> None:
    """Figures 11 and 12; wall seconds on all cores, starting the processes included."""
    print("figures 11 and 12, wall seconds")
    with TemporaryDirectory() as folder:
        for name in ("figure11", "figure12"):
            start = time.perf_counter()
            rows = sweep(name, Path(folder) / f"{name}.csv")
            print(f"  {name}{time.perf_counter() - start:8.1f} s for {len(rows)} points")


def memory() -> None:
    """Live memory at the end of runs of different length: it must not grow with what has finished."""
    print("memory at its peak (edf, one stage, 50 steps)")
    for requests in (1_000, 10_000, 50_000):
        case = Case(requests=requests, rate=1.0)
        tracemalloc.start()
        STYLES["twin"](case)
        print(f"  {requests:6} requests {tracemalloc.get_traced_memory()[1] / 2**20:6.1f} MiB")
        tracemalloc.stop()


def main() -> None:
    styles()
    single_runs()
    memory()
    figures()


if __name__ == "__main__":
    main()
