"""What it takes in simulation that a request goes on to a stage on another device."""

from __future__ import annotations

import pytest
from servetwin.core import BatchWorker, Module, Pipeline, Recorder, Request, ServingLoop, Worker, WorkerView
from servetwin.core.serving.client import play
from servetwin.experiments.bound.measured_places import measured_places
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.profiles import Profile, load
from servetwin.profiles.schema import ProfileFile
from servetwin.sim.measured import TimeOptions, measured_executor

WAY, TO_VAE = "transport.between_devices", "transport.dit.vae"
NO_NOISE = TimeOptions(noise=False)


def profile_with(**seconds: float) -> Profile:
    """A profile with these costs, by name with ``~`` for a point."""
    known = load("cpu/tiny-dit").data.model_dump(exclude_none=True, by_alias=True)
    like = known["costs"]["transport.client.dit"]
    more = {
        name.replace("__", "."): {
            **like,
            "modules": [],
            "value": value,
            "quantiles": {"p": [0.0, 1.0], "values": [value / 2, 2 * value]},
        }
        for name, value in seconds.items()
    }
    return Profile(ProfileFile.model_validate({**known, "costs": {**known["costs"], **more}}))


def system(profile: Profile, devices: tuple[str, str]) -> tuple[list, list[Worker]]:
    stages = Pipeline.chain(Module("dit", loop=True), Module("vae")).stages([["dit"], ["vae"]])
    return stages, [
        BatchWorker(s, FCFS(), WorkerView(s, profile.estimate(), limit=2, slo_factor=4.0), device=device)
        for s, device in zip(stages, devices, strict=True)
    ]


def on_the_way(profiles: dict[str, Profile], devices: tuple[str, str], options: TimeOptions = NO_NOISE) -> float:
    """Seconds of one request from the end of its last iteration until it is queued at the VAE."""
    stages, workers = system(profiles[devices[0]], devices)
    executor = measured_executor(profiles, workers, options, seed=1)
    request = Request(0, 0.0, 60.0, {"dit": 3})
    loop = ServingLoop(stages, workers, executor, Recorder())
    play(loop, iter([request]))
    executor.run_until_idle()
    first, last = request.tasks
    assert first.finished is not None
    assert last.queued is not None
    return last.queued - first.finished


def test_it_takes_time_only_between_two_devices_and_by_the_profile_of_the_second() -> None:
    plain, slow = profile_with(), profile_with(transport__between_devices=0.25)
    assert on_the_way({"gpu0": slow, "gpu1": slow}, ("gpu0", "gpu0")) == on_the_way({"gpu0": plain}, ("gpu0", "gpu0"))
    usual = on_the_way({"gpu0": plain, "gpu1": plain}, ("gpu0", "gpu1"))
    assert on_the_way({"gpu0": plain, "gpu1": slow}, ("gpu0", "gpu1")) == pytest.approx(usual + 0.25)
    assert on_the_way({"gpu0": slow, "gpu1": plain}, ("gpu0", "gpu1")) == usual
    off = TimeOptions(noise=False, transport=False)
    assert on_the_way({"gpu0": plain, "gpu1": slow}, ("gpu0", "gpu1"), off) == usual


def test_it_comes_on_top_of_the_way_between_the_stages() -> None:
    slow = profile_with(transport__between_devices=0.25, transport__dit__vae=0.5)
    apart = on_the_way({"gpu0": slow, "gpu1": slow}, ("gpu0", "gpu1"))
    assert apart - on_the_way({"gpu0": slow}, ("gpu0", "gpu0")) == pytest.approx(0.25)
    drawn = on_the_way({"gpu0": slow, "gpu1": slow}, ("gpu0", "gpu1"), TimeOptions())
    assert 0.37 < drawn < 1.6
    assert drawn != pytest.approx(apart)


def test_the_bound_takes_the_least_of_it() -> None:
    slow = profile_with(transport__between_devices=0.25, transport__dit__vae=0.5)
    _, workers = system(slow, ("gpu0", "gpu1"))
    profiles = {"gpu0": slow, "gpu1": slow}
    assert measured_places(workers, profiles, NO_NOISE)[1]["dit", "vae"] == pytest.approx(0.75)
    assert measured_places(workers, profiles, TimeOptions())[1]["dit", "vae"] == pytest.approx(0.375)
    _, together = system(slow, ("gpu0", "gpu0"))
    assert measured_places(together, profiles, NO_NOISE)[1]["dit", "vae"] == pytest.approx(0.5)
