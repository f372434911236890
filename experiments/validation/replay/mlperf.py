"""MLPerf's Server scenario of SDXL, in simulation, beside what NVIDIA published of DGX-H100 and GH200.

``measured/mlperf-sdxl`` holds the arrivals of both runs, which follow from the published seed, and quantiles of their
latencies (MLPerf Inference v4.1, closed division; ``runs.csv``). The workloads ``mlperf-sdxl-h100x8`` and
``mlperf-sdxl-gh200`` repeat them: by the times that follow from the throughput of the Offline scenario alone
(``time.table: scheduler``), and by these times a factor that is fitted to the mean latency of DGX-H100 ("measured").
``python -m servetwin.experiments.validation.replay.mlperf`` prints what comes of it.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from servetwin.core import Recorder, Request

from ...assembly.build import build
from ...registry.catalog import MEASURED
from ...spec.loading import load

RUNS = MEASURED / "mlperf-sdxl" / "runs.csv"
#: What repeats a published system.
WORKLOADS = {"DGX-H100x8_TRT": "mlperf-sdxl-h100x8", "GH200-144GBx1_TRT": "mlperf-sdxl-gh200"}
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p97": 97.0, "p99": 99.0}
#: MLPerf's limit on the 99th percentile, in seconds.
LIMIT = 20.0


@dataclass(frozen=True)
class ServerRun:
    """A published run: requests per second that were *scheduled* and *completed*, and latencies in *seconds* by the
    names of `PERCENTILES` and "mean"."""

    system: str
    scheduled: float
    completed: float
    seconds: dict[str, float]

    @property
    def workload(self) -> str:
        return WORKLOADS[self.system]


def read(path: Path = RUNS) -> list[ServerRun]:
    """The published runs of the Server scenario."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scenario"] == "Server"]
    return [
        ServerRun(
            row["system"],
            float(row["qps_scheduled"]),
            float(row["qps_completed"]),
            {name: float(row[f"{name}_s"]) for name in ("mean", *PERCENTILES)},
        )
        for row in rows
    ]


class Latencies(Recorder):
    """Keeps when each request came and how long it took, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[float, float]] = []

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.rows.append((request.arrival, now - request.arrival))


def simulate(workload: str, table: str, rate: float | None = None) -> np.ndarray:
    """The latencies of its requests, in order of arrival, by that *table* of its profile; with *rate* the published
    arrivals are stretched to so many requests per second."""
    changes = [("time.table", table), *([("workload.arrivals.rate", rate)] if rate is not None else [])]
    log = Latencies()
    build(load(workload, changes), log).play()
    return np.array([seconds for _, seconds in sorted(log.rows)])


def off(run: ServerRun, seconds: np.ndarray) -> dict[str, float]:
    """Percent by which simulated latencies are off, by the names of those that were published."""
    found = {name: float(np.percentile(seconds, p)) for name, p in PERCENTILES.items()}
    found["mean"] = float(np.mean(seconds))
    return {name: 100.0 * (found[name] / was - 1.0) for name, was in run.seconds.items()}


def largest_rate(workload: str, table: str, low: float, high: float, within: float = 0.002) -> float:
    """The largest rate between *low* and *high* at which the 99th percentile keeps `LIMIT`, to a share *within*."""
    while high / low - 1.0 > within:
        rate = (low * high) ** 0.5
        if np.percentile(simulate(workload, table, rate), 99.0) <= LIMIT:
            low = rate
        else:
            high = rate
    return low


def main() -> None:
    for run in read():
        for table in ("scheduler", "measured"):
            seconds = simulate(run.workload, table)
            told = ", ".join(f"{name} {value:+.1f} %" for name, value in off(run, seconds).items())
            rate = largest_rate(run.workload, table, 0.8 * run.scheduled, 1.25 * run.scheduled)
            held = f"p99 of {LIMIT:g} s up to {rate:.2f} requests/s; {run.scheduled:.2f} were scheduled, and held it"
            sys.stdout.write(f"{run.system}, {table}: {told}; {held}\n")


if __name__ == "__main__":
    main()
