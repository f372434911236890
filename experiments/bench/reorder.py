"""What policies cost that reorder, and engines that decide a step ahead, beside a checkout with the same results.

python -m servetwin.experiments.bench.reorder [CASE ...] [--rounds N] [--against PYTHON]

PYTHON is the interpreter of the other checkout, whose `servetwin` it imports. Each round runs every case in a process
of its own, in turns; what is printed, as a table of Markdown, are CPU microseconds a request, the least and the
median of the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time

#: By name: experiment, requests, and what is set.
CASES: dict[str, tuple[str, int, dict[str, object]]] = {
    **{
        f"{policy} at {rate}/s": ("opt-13b-a6000", requests, {"policy": policy, "rate": float(rate)})
        for policy, rate, requests in (
            ("neustream-llm", 2, 1500),
            ("neustream-llm", 4, 1500),
            ("edf-llm", 4, 1500),
            ("vtc", 4, 500),
            ("slos-serve", 4, 500),
            ("slack-admission", 4, 500),
            ("fastserve", 4, 250),
            ("andes", 4, 250),
        )
    },
    **{
        f"{policy} at {rate}/s, H100": ("opt-13b-h100", 1500, {"policy": policy, "rate": float(rate)})
        for policy, rate in (("neustream-llm", 12), ("edf-llm", 12))
    },
    **{
        f"{policy} at 4/s": (
            "opt-13b-a6000",
            500,
            {"policy": policy, "rate": 4.0, "workload.lengths.llm.predict": {"model": "noisy", "sigma": 0.5}},
        )
        for policy in ("sjf", "srpt-llm")
    },
    **{
        f"DiT-S/2, neustream at {rate}/s": (
            "dit-s2-256-rtx4090",
            500,
            {"variant": "neustream-ae", "rate": float(rate)},
        )
        for rate in (2, 4, 8)
    },
    **{
        f"{policy} at {rate}/s, a step ahead": ("opt-13b-h100-async", 1500, {"policy": policy, "rate": float(rate)})
        for policy, rate in (("vllm-v1", 4), ("vllm-v1", 12), ("vllm-v1", 24), ("neustream-llm", 4), ("sarathi", 4))
    },
    "MatPlotAgent, four engines": ("matplotagent-rtx4090", 300, {}),
    "vllm-v1, long outputs, a step ahead": (
        "opt-13b-h100-async",
        1000,
        {
            "policy": "vllm-v1",
            "rate": 2.0,
            "workload.lengths.llm.output": {"draw": "uniform", "low": 100, "high": 300},
        },
    ),
}


def once(name: str) -> None:
    """Run a case three times; print the least CPU seconds and what says whether results are the same."""
    from servetwin.experiments.assembly import build
    from servetwin.experiments.spec.loading import load

    workload, requests, settings = CASES[name]
    experiment = load(workload, [*settings.items(), ("requests", requests)])
    least = float("inf")
    for _ in range(3):
        run = build.build(experiment)
        began = time.process_time()
        summary = run.play()
        least = min(least, time.process_time() - began)
    steps = sum(sizes.total() for sizes in summary.sizes.values())
    told = hashlib.sha256(json.dumps([summary.as_dict(), [*summary.e2el]]).encode()).hexdigest()
    print(json.dumps({"each": 1e6 * least / requests, "steps": steps / requests, "told": told}))


def compare(names: list[str], rounds: int, pythons: list[str]) -> None:
    """Print a line a case. Ends the process if results differ."""
    columns = ["case", "steps a request", "us a step", "us a request"]
    columns += ["in the other checkout", "times as fast"] if len(pythons) > 1 else []
    print(_row(columns), _row(["---"] * len(columns)), sep="\n", flush=True)
    for name in names:
        found: dict[str, list[dict[str, float]]] = {python: [] for python in pythons}
        for _ in range(rounds):
            for python in pythons:
                ran = subprocess.run([python, __file__, "--once", name], capture_output=True, text=True, check=True)
                found[python].append(json.loads(ran.stdout))
        if len({one["told"] for ones in found.values() for one in ones}) > 1:
            raise SystemExit(f"{name}: the results differ")
        each = {python: [one["each"] for one in ones] for python, ones in found.items()}
        steps = found[pythons[0]][0]["steps"]
        here, *others = each.values()
        said = [name, f"{steps:.1f}", f"{min(here) / steps:.1f}"]
        said += [f"{min(e):.1f} ({statistics.median(e):.1f})" for e in each.values()]
        said += [f"{min(other) / min(here):.2f}" for other in others]
        print(_row(said), flush=True)


def _row(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("case", nargs="*", default=[*CASES], help="some of the cases")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", metavar="PYTHON", help="the interpreter of another checkout")
    parser.add_argument("--once", action="store_true", help="run the case here")
    asked = parser.parse_args()
    if asked.once:
        once(asked.case[0])
    else:
        compare(asked.case, asked.rounds, [sys.executable, *([asked.against] if asked.against else [])])


if __name__ == "__main__":
    main()
