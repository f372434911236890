"""Engines without any option beside those of another checkout.

``python -m servetwin.experiments.bench.against PYTHON``; that is the interpreter of the other checkout. Each case is
a process of its own here and there, in turns, of few and of many requests: CPU seconds of the difference, so that
neither imports nor building a run count.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any

#: Policy, workload, rate, and the fewer and the more requests.
CASES: dict[str, tuple[str, str, float, int, int]] = {
    "vllm": ("vllm", "opt-13b-a6000", 1.2, 2_000, 60_000),
    "vllm-v1": ("vllm-v1", "opt-13b-a6000", 1.2, 2_000, 20_000),
    "ahead": ("vllm-v1", "opt-13b-h100-async", 10.0, 500, 4_000),
}


def one(case: str, requests: int) -> float:
    """CPU seconds of one run, here."""
    from servetwin.experiments.assembly.build import build
    from servetwin.experiments.spec.loading import load

    policy, workload, rate, _, _ = CASES[case]
    sets: list[tuple[str, Any]] = [
        ("requests", requests),
        ("workload.draws", "seeded"),
        ("workload.arrivals", {"process": "poisson", "rate": rate}),
        ("workload.lengths.llm.prompt", {"draw": "uniform", "low": 100, "high": 900}),
        ("workload.lengths.llm.output", {"draw": "uniform", "low": 50, "high": 250}),
        ("policy", policy),
    ]
    run = build(load(workload, sets))
    began = time.process_time()
    run.play()
    return time.process_time() - began


def asked(python: str, case: str, requests: int) -> float:
    """The same with the interpreter *python*, in a process of its own."""
    command = [python, __file__, python, "--one", case, str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{python} failed")
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="the interpreter of the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=tuple(CASES), help="one case")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(one(told.one[0], int(told.one[1])))
        return
    for case, (_, _, _, few, many) in CASES.items():
        if told.only not in (None, case):
            continue
        found = []
        for turn in range(told.rounds):
            order = (sys.executable, told.python)[:: 1 if turn % 2 else -1]
            took = {python: asked(python, case, many) - asked(python, case, few) for python in order}
            found.append(took[sys.executable] / took[told.python])
        middle = statistics.median(found)
        print(f"{case:>8}: {middle:.3f} times ({min(found):.3f}-{max(found):.3f}), {many - few} requests", flush=True)


if __name__ == "__main__":
    main()
