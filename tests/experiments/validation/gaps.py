"""How far the simulation of a language model's runs is off.

`python tests/experiments/validation/gaps.py RECORDING` gives what docs/reports/2026-11-h100-llm.md says of a
recording's latencies, and the throughput of our scheduler over vLLM's own.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np


def relative(real, simulated, what, of=np.mean):
    """Per cent by which a latency is longer in simulation."""
    return 100 * (of(getattr(simulated, what)) / of(getattr(real, what)) - 1)


def within(runs, what, of, most):
    """In how many of *runs*, (measured, simulated), a latency is off by so many per cent at *most*."""
    return sum(abs(relative(real, simulated, what, of)) <= most for real, simulated in runs)


def p99(values):
    return np.percentile(values, 99)


def unique(pairs):
    """(run, measured, simulated) of what `servetwin.experiments.validation.replay.llm.scored` gives, each run
    once."""
    return list({(run.id, run.repeat): (run, a, b) for run, _, a, b in pairs}.values())


def main(path):
    from servetwin.experiments.validation.replay.llm import read, scored
    from servetwin.profiles import load

    campaign = read(path)
    runs = unique(scored(campaign, load(campaign.profile), jobs=-1))
    pairs = [(a, b) for _, a, b in runs]
    for what in ("ttft", "tpot", "e2el"):
        for name, of, most in (("mean", np.mean, 3), ("median", np.median, 3), ("p99", p99, 10)):
            off = [relative(a, b, what, of) for a, b in pairs]
            print(
                f"{what} {name}: within {most} % in {within(pairs, what, of, most)} of {len(pairs)} runs, "
                f"off by {np.mean(np.abs(off)):.2f} % on average"
            )
            for (run, *_), far in zip(runs, off, strict=True):
                if abs(far) > most:
                    print(f"    {run.id}, repeat {run.repeat}: {far:+.1f} %")
    with gzip.open(path, "rt") as file:
        turns = json.load(file).get("adapter", [])
    for one, other in zip(turns[::2], turns[1::2], strict=True):
        seconds = {turn["which"]: turn["seconds"] for turn in (one, other)}
        print(f"ours over vLLM's own: {seconds['own'] / seconds['ours']:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
