"""What the host takes to launch steps, found again in samples made up from known numbers."""

import numpy as np
import pytest
from servetwin.profiles.costs import BEGINS, HOST_PACE, HOST_PACE_LASTS, LAUNCH, LAUNCH_EACH, LAUNCH_PIECES
from servetwin.real.vllm.profiling import host_fit
from servetwin.real.vllm.profiling.device_steps import Sample

EACH, SCHEDULING, SAMPLING = 3e-5, 2e-4, 8e-4
MEANS = {"graph": 2e-3, "pieces": 10e-3, "kernels": 30e-3}
LASTS = 0.3


def _samples(count: int = 3000) -> list[Sample]:
    rng = np.random.default_rng(3)
    now, until, pace = 0.0, 0.0, 1.0
    found = []
    for _ in range(count):
        now += 0.03
        while now >= until:
            until, pace = until + rng.exponential(LASTS), rng.choice([0.7, 1.0, 1.3])
        how = rng.choice(["graph", "pieces", "kernels"])
        decode = int(rng.choice([4, 8, 16, 32, 64]))
        chunks = [] if how == "graph" else [(100 if how == "pieces" else 600, 0)]
        launched = pace * (MEANS[how] + EACH * (decode + len(chunks)))
        sampled = launched + pace * SAMPLING
        found.append(
            Sample(
                "traffic", chunks, decode, 100 * decode, 100, 5e-3, True, how, SCHEDULING + launched, False,
                0.0, SCHEDULING, sampled, now,
            )
        )  # fmt: skip
    return found


def test_launches_and_their_pace_are_found_again():
    costs = host_fit.host([], _samples(), 512, {"file": "here"})
    assert costs[LAUNCH_EACH()]["value"] == pytest.approx(EACH, rel=0.5)
    assert costs[BEGINS()]["value"] == pytest.approx(SCHEDULING + MEANS["graph"], rel=0.1)
    for how, name in (("pieces", LAUNCH_PIECES()), ("kernels", LAUNCH())):
        wanted = SCHEDULING + MEANS[how] + SAMPLING + host_fit.TAIL
        assert costs[name]["value"] == pytest.approx(wanted, rel=0.06)
    quantiles = costs[HOST_PACE()]["quantiles"]
    spread = np.interp([0.1, 0.5, 0.9], quantiles["p"], quantiles["values"])
    assert spread == pytest.approx([0.7, 1.0, 1.3], abs=0.06)
    assert costs[HOST_PACE_LASTS()]["value"] == pytest.approx(LASTS, rel=0.4)


def test_a_few_launches_tell_no_pace():
    costs = host_fit.host([], _samples(60), 512, {"file": "here"})
    assert HOST_PACE() not in costs
    assert LAUNCH_PIECES() in costs
