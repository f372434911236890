"""OPT-13B and OPT-30B on an H200, repeated in simulation by profiles taken once before: a gate without a GPU.

The aim for OPT-13B (a mean gap of 1 point, 3 at most) is not reached; what is held here is what is reached, and
docs/vllm.md tells what the rest is made of.
"""

from functools import cache

import numpy as np
import pytest
from servetwin.experiments.fidelity import decide, grid_of
from servetwin.experiments.llm_replay import MEASURED, read, scored
from servetwin.experiments.score import entries, score
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


def relative(a, b, what, of=np.mean):
    return abs(100 * (of(getattr(b, what)) / of(getattr(a, what)) - 1))


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
            assert relative(a, b, "tpot") < at_most[run.rate]
            assert relative(a, b, "e2el") < at_most[run.rate]


def test_opt_30b():
    assert gaps("opt-30b") == [0] * 6
    for _, _, a, b in found("opt-30b"):
        for what in ("tpot", "e2el"):
            assert relative(a, b, what) < 3.1
            assert relative(a, b, what, np.median) < 3
            assert relative(a, b, what, lambda x: np.percentile(x, 99)) < 10


def test_winners_and_largest_rates(tmp_path):
    both = entries(score(MEASURED / "h200" / "llm-opt-13b.json.gz", tmp_path / "gaps.csv"))
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
