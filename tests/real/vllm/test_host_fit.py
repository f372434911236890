"""What the host takes to launch steps, found again in samples made up from known numbers."""

import numpy as np
import pytest
from servetwin.profiles.tables.costs import (
    BEGINS,
    BEGINS_EACH,
    HOST_SLOWDOWN,
    HOST_SLOWDOWN_LASTS,
    LAUNCH,
    LAUNCH_BACK,
    LAUNCH_BACK_TOKEN,
    LAUNCH_EACH,
    LAUNCH_LEFT,
    LAUNCH_PIECES,
    TOLD,
    TOLD_EACH,
)
from servetwin.real.vllm.profiling.fitting import host_fit
from servetwin.real.vllm.profiling.measuring.device_steps import Sample

EACH, SCHEDULING, SAMPLING = 3e-5, 2e-4, 8e-4
MEANS = {"graph": 2e-3, "pieces": 10e-3, "kernels": 30e-3}
LASTS = 0.3


def _samples(count: int = 3000) -> list[Sample]:
    rng = np.random.default_rng(3)
    now, until, slowdown = 0.0, 0.0, 1.0
    found = []
    for _ in range(count):
        now += 0.03
        while now >= until:
            until, slowdown = until + rng.exponential(LASTS), rng.choice([0.7, 1.0, 1.3])
        how = rng.choice(["graph", "pieces", "kernels"])
        decode = int(rng.choice([4, 8, 16, 32, 64]))
        chunks = [] if how == "graph" else [(100 if how == "pieces" else 600, 0)]
        launched = slowdown * (MEANS[how] + EACH * (decode + len(chunks)))
        sampled = launched + slowdown * SAMPLING
        found.append(
            Sample(
                "traffic", chunks, decode, 100 * decode, 100, 5e-3, True, how, SCHEDULING + launched, False,
                0.0, SCHEDULING, sampled, now,
            )
        )  # fmt: skip
    return found


def test_launches_and_their_slowdown_are_found_again():
    costs = host_fit.host([], _samples(), 512, {"file": "here"})
    assert costs[LAUNCH_EACH()]["value"] == pytest.approx(EACH, rel=0.5)
    assert costs[BEGINS()]["value"] == pytest.approx(SCHEDULING + MEANS["graph"], rel=0.1)
    for how, name in (("pieces", LAUNCH_PIECES()), ("kernels", LAUNCH())):
        wanted = SCHEDULING + MEANS[how] + SAMPLING + host_fit.TAIL
        assert costs[name]["value"] == pytest.approx(wanted, rel=0.06)
    quantiles = costs[HOST_SLOWDOWN()]["quantiles"]
    spread = np.interp([0.1, 0.5, 0.9], quantiles["p"], quantiles["values"])
    assert spread == pytest.approx([0.7, 1.0, 1.3], abs=0.06)
    assert costs[HOST_SLOWDOWN_LASTS()]["value"] == pytest.approx(LASTS, rel=0.4)


def test_what_telling_the_processes_that_launch_takes_is_found_again():
    """And what launching a step takes is without what they were still at."""
    own, found = _samples(), _samples()
    assert TOLD() not in host_fit.host([], own, 512, {"file": "here"})
    for sample in found:
        sample.told, sample.held = 3e-4 + 2e-6 * (sample.decode + len(sample.chunks)), 0.01
    costs = host_fit.host([], found, 512, {"file": "here"})
    assert costs[TOLD()]["value"] == pytest.approx(SCHEDULING + 3e-4, rel=0.02)
    assert costs[TOLD_EACH()]["value"] == pytest.approx(2e-6, rel=0.1)
    assert costs[LAUNCH_PIECES()] == host_fit.host([], own, 512, {"file": "here"})[LAUNCH_PIECES()]


def test_a_few_launches_tell_no_slowdown():
    costs = host_fit.host([], _samples(60), 512, {"file": "here"})
    assert HOST_SLOWDOWN() not in costs
    assert LAUNCH_PIECES() in costs


def test_what_sequences_that_leave_and_come_back_cost_is_found_again():
    left, back, token = 1.2e-5, 1.5e-5, 5e-8
    rng = np.random.default_rng(5)
    found = []
    for i in range(900):
        size = int(rng.choice([4, 8, 16, 32, 64, 128]))
        gone, returned = (int(rng.integers(5, 60)) if rng.random() < 0.2 else 0 for _ in range(2))
        tokens = returned * int(rng.integers(60, 4000))
        taken = 2e-3 + 1e-5 * size + left * gone + back * returned + token * tokens + rng.exponential(5e-5)
        if i % 50 == 0:
            taken += 0.02  # a stall
        found.append(
            Sample(
                "decode", [], size, 100 * size, 100, 5e-3, True, "graph", SCHEDULING + taken, False, 0.0, SCHEDULING,
                taken + SAMPLING, 0.03 * i, gone, returned, tokens,
            )
        )  # fmt: skip
    costs = host_fit.host([], found, 512, {"file": "here"})
    assert costs[LAUNCH_LEFT()]["value"] == pytest.approx(left, rel=0.2)
    assert costs[LAUNCH_BACK()]["value"] == pytest.approx(back, rel=0.3)
    assert costs[LAUNCH_BACK_TOKEN()]["value"] == pytest.approx(token, rel=0.05)
    assert costs[BEGINS()]["value"] == pytest.approx(SCHEDULING + 2e-3, rel=0.1)
    assert costs[BEGINS_EACH()]["value"] == pytest.approx(1e-5, rel=0.2)
    assert LAUNCH_BACK() not in host_fit.host([], found[:20], 512, {"file": "here"})
