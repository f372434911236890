"""Fleets: what a request costs behind so many replicas, and how much memory a long load takes.

python -m servetwin.experiments.bench.fleet REPLICAS ROUTER REQUESTS [--stale S] [--week] [--jobs N]
    [--calendar]

OPT-13B on an H100 under vllm-v1, steps with the profile's noise, at 70 % of the rate that saturates a replica, with
the full report. With ``--stale`` the router looks every so many seconds only. With ``--calendar`` all engines go by
one calendar, as where numbers do not do. With ``--week`` the requests come over a week instead, more by day than by
night and half as many at the weekend. (The shape is made up:
it has the days and weekends that the Azure LLM inference trace of 2024 shows, Stojkovic et al., "DynamoLLM", HPCA
2025, and none of its numbers.) Prints what was measured as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from servetwin.core import Recorder
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps import one_run

from .measure import spread

#: Requests per second at which one replica is saturated: what gets through at 100/s.
SATURATED = 87.0
SHARE = 0.7
DAY = 86_400.0

#: Replicas, router, requests for each replica: a process each.
CASES = (
    *[(replicas, "round_robin", 3000) for replicas in (4, 64)],
    *[(replicas, "power_of_two", 1000) for replicas in (4, 64)],
    *[(replicas, "jsq", 1000) for replicas in (4, 64)],
    *[(replicas, "least_loaded", 1000) for replicas in (4, 64)],
)


def week(rate: float, requests: int) -> dict[str, Any]:
    """Arrivals at *rate* at most over a week; the week is as much shorter as it takes for so many *requests*."""
    mean = rate * (5 + 2 * 0.5) / 7 / 1.5
    period = requests / mean / 7
    points = [[0.0, 1.0], [5 * period, 0.5]]
    wave = {"period": period, "amplitude": 0.5, "phase": 0.75}
    return {"process": "schedule", "rate": rate / 1.5, "points": points, "wave": wave, "until": 7 * period}


def fleet_of(replicas: int, router: str | dict[str, Any], requests: int, *, weekly: bool = False) -> Experiment:
    """So many *requests* to so many *replicas*."""
    rate = SATURATED * SHARE * replicas
    arrivals = week(rate, requests) if weekly else {"process": "poisson", "rate": rate}
    slo = {"prefill": None, "decode": None, "limits": {"ttft_ms": 1000, "tpot_ms": 120}}
    given = {
        "workload.requests": None if weekly else requests,
        "workload.draws": "seeded",
        "workload.arrivals": arrivals,
        "deployment.replicas": replicas,
        "deployment.router": router,
        "policy.name": "vllm-v1",
        "slo": slo,
    }
    return load("opt-13b-h100", [*given.items()])


def measure(
    replicas: int,
    router: str,
    requests: int,
    *,
    weekly: bool = False,
    jobs: int = 1,
    calendar: bool = False,
    stale: float = 0.0,
) -> dict[str, Any]:
    """Run it in this process (and *jobs* others), by the *calendar* if that is asked for: seconds and MiB."""
    experiment = fleet_of(replicas, {"name": router, "stale": stale}, requests, weekly=weekly)
    cpu, wall = time.process_time(), time.perf_counter()
    summary = build(experiment, Recorder()).play(columns=not calendar) if jobs == 1 else one_run.run(experiment, jobs)
    report = summary.as_dict()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    memory = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    told = {"replicas": replicas, "router": router, "requests": report["requests"], "wall": wall, "memory": memory[0]}
    told |= {"cpu": cpu} if jobs == 1 else {"memory_of_a_process": memory[1]}
    return told | {"attainment": report["attainment"], "duration": report["duration"]}


def fleet(rounds: int) -> None:
    """Four replicas and 64, behind routers that look at how engines stand and one that does not."""
    print(
        f"\nfleets: OPT-13B on H100s, vllm-v1, {SHARE:.0%} load; CPU us a request, median (range) of {rounds} rounds"
    )
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for replicas, router, of_each in CASES:
            command = [sys.executable, "-m", "servetwin.experiments.bench.fleet", str(replicas), router]
            done = subprocess.run([*command, str(replicas * of_each)], capture_output=True, text=True, check=True)
            found.setdefault((replicas, router), []).append(json.loads(done.stdout))
    for (replicas, router), runs in found.items():
        each = [1e6 * run["cpu"] / run["requests"] for run in runs]
        few = [1e6 * run["cpu"] / run["requests"] for run in found[4, router]]
        more = spread([a / b for a, b in zip(each, few, strict=True)], digits=2)
        rate = 1e6 / statistics.median(each)
        memory = max(run["memory"] for run in runs)
        print(f"{replicas:>3} replicas, {router}: {spread(each)} us, {rate:.0f} requests/s, {more} of four replicas,"
              f" {memory:.0f} MiB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("replicas", type=int)
    parser.add_argument("router")
    parser.add_argument("requests", type=int)
    parser.add_argument("--stale", type=float, default=0.0)
    parser.add_argument("--week", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--calendar", action="store_true")
    asked = parser.parse_args()
    if asked.calendar and asked.jobs != 1:
        parser.error("--calendar goes with one process (right would be: without --jobs)")
    how = {"weekly": asked.week, "jobs": asked.jobs, "calendar": asked.calendar, "stale": asked.stale}
    print(json.dumps(measure(asked.replicas, asked.router, asked.requests, **how)))


if __name__ == "__main__":
    main()
