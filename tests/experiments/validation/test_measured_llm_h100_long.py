"""OPT-13B on four H100s with asynchronous scheduling, repeated in simulation by profiles taken before: a gate without
a GPU.

All 46 runs count, under every SLO that they can be scored for. docs/reports/2026-11-h100-llm.md tells what was
predicted before they were made, and what the program has learnt since.
"""

from functools import cache

import numpy as np
from gaps import p99, relative, unique, within
from held_points import hold_scored
from servetwin.experiments.validation.comparison.compare_grids import decide, grid_of
from servetwin.experiments.validation.replay.llm import MEASURED, read, scored
from servetwin.experiments.validation.score import entries, of_tokens
from servetwin.profiles import load


@cache
def found():
    campaign = read(MEASURED / "h100-long" / "llm-opt-13b.json.gz")
    assert campaign.engine["device"] == "NVIDIA H100 80GB HBM3"
    return campaign, list(scored(campaign, load(campaign.profile), 3, jobs=2))


def runs():
    return unique(found()[1])


def test_goodput_is_within_the_aim():
    campaign, pairs = found()
    hold_scored("h100-long/llm-opt-13b.json.gz", of_tokens(campaign, pairs), 3)
    assert not any(run.profiled for run in campaign.runs)
    assert len({run.profile for run, *_ in pairs}) == 4
    assert min(a.requests for _, _, a, _ in pairs) > 650
    gaps = [100 * abs(b.good - a.good) / a.requests for _, _, a, b in pairs]
    assert len(gaps) == 67
    assert np.mean(gaps) < 0.78
    assert max(gaps) < 2.8


def beyond_its_knee(run):
    return (run.policy, run.slo) == ("neustream-llm", "5+2") and run.rate > 40


def test_latencies():
    """Of the time to the first token most misses, and all far ones, are NeuStream's beyond its knee."""
    pairs = [(a, b) for _, a, b in runs()]
    assert len(pairs) == 46
    for what, mean, middle, tail in (("ttft", 35, 33, 42), ("tpot", 40, 42, 43), ("e2el", 44, 44, 46)):
        assert within(pairs, what, np.mean, 3) >= mean
        assert within(pairs, what, np.median, 3) >= middle
        assert within(pairs, what, p99, 10) >= tail
    others = {run: (a, b) for run, a, b in runs() if not beyond_its_knee(run)}
    assert len(others) == 40
    # Most of its steps decode 224 to 256 sequences, of which profiles hold one context: the rest are as neighbours.
    (full,) = [run for run in others if (run.policy, run.rate, run.cv) == ("vllm", 73.2, 1)]
    for run, (a, b) in others.items():
        most = 5.2 if run is full else 4.3
        assert all(abs(relative(a, b, what)) < most for what in ("ttft", "tpot", "e2el"))


def test_the_same_run_on_four_gpus():
    """NeuStream at the knee of the others is in another mood each time: measured medians differ by a fifth."""
    same = [(run, a) for run, a, _ in runs() if beyond_its_knee(run) and (run.rate, run.cv) == (54.2, 1)]
    assert sorted(run.repeat for run, _ in same) == [0, 1, 2, 3]
    assert len({run.profile for run, _ in same}) == 4
    medians = [np.median(a.ttft) for _, a in same]
    assert 1.15 < max(medians) / min(medians) < 1.25


def test_winners_and_largest_rates():
    decided = decide(*map(grid_of, entries(of_tokens(*found()))))
    assert (decided.settings, decided.decided, decided.same) == (20, 14, 14)
    assert decided.pairs == 47
    assert len(decided.swaps) <= 1
    assert (decided.curves, decided.within) == (16, 16)
