"""Which terms of a profile end up in simulated time."""

from __future__ import annotations

import pytest
from servetwin.core import Module, Pipeline, Policy, Worker, WorkerView
from servetwin.policies.edf import EDF
from servetwin.policies.fcfs import FCFS
from servetwin.policies.neustream import NeuStream
from servetwin.profiles import Profile, load
from servetwin.sim.measured import Clock, TimeOptions

NAME = "h100/sd15-256-graphs"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load(NAME)


def workers(profile: Profile, policy: Policy) -> list[Worker]:
    pipeline = Pipeline.chain(Module("clip"), Module("unet", loop=True), Module("vae"), Module("safety"))
    stages = pipeline.stages([["clip"], ["unet"], ["vae", "safety"]])
    return [Worker(s, policy, WorkerView(s, profile.estimate(), limit=4, slo_factor=4.0)) for s in stages]


def test_an_iteration_holds_the_time_that_the_workers_own_policy_takes(profile: Profile) -> None:
    clock = Clock({"gpu0": profile}, TimeOptions(), 0)
    table = profile.table("unet", "measured")
    gap, own = profile.cost_table("unet.gap"), profile.cost_table("unet.gap.edf")
    for policy, extra in ((EDF(), own(2) - gap(2)), (FCFS(), 0.0)):
        timing = clock.timing(workers(profile, policy)[1])
        assert timing.plain(2, 0.0)[1] == pytest.approx(table(2) + extra)
    bare = Clock({"gpu0": profile}, TimeOptions(costs=False), 0).timing(workers(profile, NeuStream())[1])
    assert bare.plain(2, 0.0)[1] == table(2)


def test_rates_go_by_both_batches(profile: Profile) -> None:
    rates = Clock({"gpu0": profile}, TimeOptions(), 0).contention(workers(profile, EDF()))
    _, rate = rates["unet", "vae+safety"]
    assert not isinstance(rate, float)
    one, two, four = (profile.cost_table(f"unet.device_beside.vae{more}") for more in ("", ".2", ".4"))
    for n in (1, 2, 3, 6):
        row = rate[n]
        assert not isinstance(row, float)
        assert list(row[:3]) == [1.0, one(n), two(n)]
        assert row[3] == pytest.approx((two(n) + four(n)) / 2)
    _, beside_clip = rates["unet", "clip"]
    assert not isinstance(beside_clip, float)
    assert beside_clip[5] == pytest.approx(profile.cost_table("unet.device_beside.clip")(5))
