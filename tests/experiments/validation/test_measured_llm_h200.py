"""OPT-13B, OPT-30B and OPT-66B on H200s, repeated in simulation by profiles taken once before: a gate without a GPU.

The aim for OPT-13B (a mean gap of 1 point, 3 at most) is not reached by the first runs, with synchronous scheduling,
and is by the long ones, with asynchronous scheduling. Held is what is reached; docs/reports/2026-11-h200-llm.md
tells how.
"""

from functools import cache

import numpy as np
import pytest
from gaps import p99, relative, unique, within
from held_points import hold_scored
from servetwin.experiments.validation.comparison.compare_grids import decide, grid_of
from servetwin.experiments.validation.replay.llm import MEASURED, read, scored
from servetwin.experiments.validation.score import entries, of_tokens, score
from servetwin.profiles import load


@cache
def found(model):
    campaign = read(MEASURED / "h200" / f"llm-{model}.json.gz")
    assert campaign.engine["device"] == "NVIDIA H200"
    return list(scored(campaign, load(campaign.profile)))


def gaps(model, rate=None, cv=1):
    return [
        100 * abs(b.good - a.good) / a.requests
        for run, _, a, b in found(model)
        if rate is None or (run.rate, run.cv) == (rate, cv)
    ]


def test_goodput_of_opt_13b():
    assert len(gaps("opt-13b")) == 33
    assert np.mean(gaps("opt-13b")) < 3.2
    assert max(gaps("opt-13b")) < 17
    assert np.mean(gaps("opt-13b", 14.0)) < 1.3
    assert np.mean(gaps("opt-13b", 22.4)) < 2.0


def test_latencies_of_opt_13b():
    at_most = {14.0: 4.5, 22.4: 5.0, 30.8: 11.0}  # the more decode at once, the more the host's slowness counts
    for run, _, a, b in found("opt-13b"):
        if run.cv == 1:
            assert abs(relative(a, b, "tpot")) < at_most[run.rate]
            assert abs(relative(a, b, "e2el")) < at_most[run.rate]


def test_opt_30b():
    assert gaps("opt-30b") == [0] * 6
    for _, _, a, b in found("opt-30b"):
        for what in ("tpot", "e2el"):
            assert abs(relative(a, b, what)) < 3.1
            assert abs(relative(a, b, what, np.median)) < 3
            assert abs(relative(a, b, what, p99)) < 10


def test_winners_and_largest_rates(tmp_path):
    scored_ones = score(MEASURED / "h200" / "llm-opt-13b.json.gz", tmp_path / "gaps.csv")
    hold_scored("h200/llm-opt-13b.json.gz", scored_ones, 10)
    both = entries(scored_ones)
    decided = decide(*map(grid_of, both))
    assert (decided.settings, decided.decided, decided.same) == (8, 6, 6)
    assert (decided.pairs, decided.swaps) == (34, [])
    assert (decided.curves, decided.within) == (8, 8)


@pytest.mark.parametrize("model", ["opt-13b", "opt-30b"])
def test_what_the_gpu_takes_does_not_differ_between_runs(model):
    """Milliseconds a step of one rate in CUDA graphs; what is beside them is the host's."""
    by_rate = {}
    for run, _, _, _ in found(model):
        assert 0 < run.gpu < run.busy
        if run.cv == 1 and run.policy in ("vllm-v1", "vllm"):
            by_rate.setdefault(run.rate, []).append(1e3 * run.gpu / run.steps)
    for graphs in by_rate.values():
        assert max(graphs) / min(graphs) < 1.03


# -- asynchronous scheduling, long runs on four GPUs -------------------------------------------------------------


@cache
def long(model):
    campaign = read(MEASURED / "h200-long" / f"llm-{model}.json.gz")
    assert campaign.engine["device"] == "NVIDIA H200"
    return campaign, list(scored(campaign, load(campaign.profile), 2, jobs=2))


def points(a, b):
    return 100 * abs(b.good - a.good) / a.requests


def test_long_runs_of_opt_13b_are_within_the_aim():
    """Each by the profile of its own GPU; the first run on each GPU was made a part of the profiles, and does not
    count."""
    campaign, pairs = long("opt-13b")
    hold_scored("h200-long/llm-opt-13b.json.gz", of_tokens(campaign, pairs), 2)
    assert [run.id for run in campaign.runs if run.profiled] == [
        f"vllm-v1_any_r{rate}_cv1_s10_0" for rate in (48.4, 33.9, 12.4, 14.9)
    ]
    assert len({run.profile for run, *_ in pairs}) == 4
    assert min(a.requests for _, _, a, _ in pairs) > 600
    found = [points(a, b) for _, _, a, b in pairs]
    assert len(found) == 56
    assert np.mean(found) < 0.75
    assert max(found) < 2.2


def test_latencies_of_long_runs():
    """Tokens and ends are within the aim but for a run; the first token's time is not where many come at once or are
    dropped."""
    runs = [(a, b) for _, a, b in unique(long("opt-13b")[1])]
    assert len(runs) == 38

    for what, mean, middle, tail in (("ttft", 31, 29, 31), ("tpot", 36, 37, 38), ("e2el", 38, 38, 38)):
        assert within(runs, what, np.mean, 3) >= mean
        assert within(runs, what, np.median, 3) >= middle
        assert within(runs, what, p99, 10) >= tail


@pytest.mark.parametrize(
    ("model", "scores", "mean", "largest"), [("opt-30b", 19, 2.8, 8.5), ("opt-66b", 17, 2.1, 4.8)]
)
def test_larger_models(model, scores, mean, largest):
    """OPT-66B on two GPUs. Runs of 200 to 380 requests, and profiles without traffic."""
    campaign, pairs = long(model)
    hold_scored(f"h200-long/llm-{model}.json.gz", of_tokens(campaign, pairs), 2)
    assert campaign.engine["options"]["tensor_parallel"] == (2 if model == "opt-66b" else 1)
    found = [points(a, b) for _, _, a, b in pairs]
    assert len(found) == scores
    assert np.mean(found) < mean
    assert max(found) < largest
    for _, _, a, b in pairs:
        assert abs(relative(a, b, "e2el")) < 3.5


@pytest.mark.parametrize(
    ("model", "settings", "decided", "pairs", "curves"),
    [("opt-13b", 16, 10, 35, 16), ("opt-30b", 4, 3, 3, 4), ("opt-66b", 3, 3, 3, 4)],
)
def test_winners_and_largest_rates_of_long_runs(model, settings, decided, pairs, curves):
    found = decide(*map(grid_of, entries(of_tokens(*long(model)))))
    assert (found.settings, found.decided, found.same) == (settings, decided, decided)
    assert (found.pairs, found.swaps) == (pairs, [])
    assert (found.curves, found.within) == (curves, curves)
