"""Which terms of a profile end up in simulated time."""

from __future__ import annotations

import pytest
from servetwin.core import (
    Batch,
    BatchWorker,
    Module,
    Pipeline,
    Policy,
    Recorder,
    Request,
    ServingLoop,
    Task,
    Worker,
    WorkerView,
)
from servetwin.core.serving.client import play
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.diffusion.neustream import NeuStream
from servetwin.profiles import Profile, load
from servetwin.profiles.schema import ProfileFile
from servetwin.sim.measured import Clock, TimeOptions, measured_executor

NAME = "h100/sd15-256-graphs"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load(NAME)


def workers(profile: Profile, policy: Policy) -> list[Worker]:
    pipeline = Pipeline.chain(Module("clip"), Module("unet", loop=True), Module("vae"), Module("safety"))
    stages = pipeline.stages([["clip"], ["unet"], ["vae", "safety"]])
    return [BatchWorker(s, policy, WorkerView(s, profile.estimate(), limit=4, slo_factor=4.0)) for s in stages]


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


def test_what_a_crowd_costs_goes_before_what_each_costs(profile: Profile) -> None:
    def costs(more: dict[str, list[float]]) -> Profile:
        known = {k: v.model_dump(exclude_none=True) for k, v in profile.data.costs.items()}
        for name, values in more.items():
            by_batch = {"batch": list(range(1, len(values) + 1)), "values": values}
            known[name] = {**known["unet.p99"], "unit": "seconds", "by_batch": by_batch}
        data = {**profile.data.model_dump(exclude_none=True, by_alias=True), "costs": known}
        return Profile(ProfileFile.model_validate(data))

    crowds = {"unet.joins": [0.1, 0.15], "unet.leaves": [0.01, 0.02], "unet.pauses": [0.3, 0.2]}
    worker = workers(profile, EDF())[1]
    tasks = [Task(Request(i, 0.0, 1.0, {"unet": 1}), worker.stage, 0.0, worker.place) for i in range(3)]
    plain, timing = (Clock({"gpu0": p}, TimeOptions(), 0).timing(worker) for p in (costs({}), costs(crowds)))
    for n, join, leave, pause in ((1, 0.1, 0.01, 0.3), (2, 0.15, 0.02, 0.2), (3, 0.15, 0.02, 0.2)):
        batch = Batch(0, worker.place, tasks[:n])
        batch.joiners, batch.leaves = tasks[:n], n
        usual = plain.demand(batch, 0.0, 0.0)[1] - n * profile.seconds("unet.join")
        assert timing.demand(batch, 0.0, 0.0)[1] == pytest.approx(usual + join)
        assert timing.hand_over(batch) == leave
        assert timing.pause(batch) == pause
        assert plain.pause(batch) == pytest.approx(n * profile.seconds("unet.pause"))


def test_a_worker_pauses_after_each_whole_batch(profile: Profile) -> None:
    known = {k: v.model_dump(exclude_none=True) for k, v in profile.data.costs.items()}
    by_batch = {"batch": [1, 2, 4], "values": [0.001, 0.002, 0.004]}
    known["whole.pause"] = {**known["unet.p99"], "unit": "seconds", "by_batch": by_batch}
    data = {**profile.data.model_dump(exclude_none=True, by_alias=True), "costs": known}
    slower = Profile(ProfileFile.model_validate(data))
    pipeline = Pipeline.chain(Module("clip"), Module("unet", loop=True), Module("vae"), Module("safety"))

    def gaps(profile: Profile, options: TimeOptions) -> list[float]:
        (stage,) = pipeline.stages([["clip", "unet", "vae", "safety"]])
        worker = BatchWorker(stage, FCFS(max_batch=2), WorkerView(stage, profile.estimate(), limit=2, slo_factor=4.0))
        heard: list[tuple[float, float]] = []

        class Spells(Recorder):
            wants_batches = True

            def batch(self, batch: Batch) -> None:
                super().batch(batch)
                heard.append((batch.start, batch.end))

        executor = measured_executor({"gpu0": profile}, [worker], options, seed=0)
        loop = ServingLoop([stage], [worker], executor, Spells())
        play(loop, iter([Request(i, 1e-6 if i else 0.0, 60.0, {"unet": 3}) for i in range(5)]))  # one, two, two
        executor.run_until_idle()
        starts, ends = zip(*heard, strict=True)
        assert starts[1:] == ends[:-1]  # a batch is in the worker's hands while the worker pauses
        return [ends[2] - ends[1], ends[1] - ends[0]]

    noiseless = TimeOptions(noise=False)
    with_it, without = gaps(slower, noiseless), gaps(profile, noiseless)
    assert with_it[0] - without[0] == pytest.approx(0.002)  # after a batch of two
    assert with_it[1] - without[1] == pytest.approx(0.001)  # after one alone
    assert gaps(slower, TimeOptions(noise=False, costs=False)) == gaps(profile, TimeOptions(noise=False, costs=False))
