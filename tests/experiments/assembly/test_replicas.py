"""Several devices behind a router, as experiments say it."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core import BadInput, Recorder
from servetwin.experiments.assembly import build
from servetwin.experiments.assembly.replicas import expanded
from servetwin.experiments.spec.loading import load

TWO_KINDS = """
extends: toy.yaml
deployment:
  devices: {gpu0: profile.yaml, gpu1: slow.yaml}
  workers:
    - {modules: [encode], device: gpu0, limit: 8}
    - {modules: [denoise], device: gpu0, limit: 8}
    - {modules: [encode], device: gpu1, limit: 8}
    - {modules: [denoise], device: gpu1, limit: 8}
"""


@pytest.fixture
def two_kinds(toy: Path) -> Path:
    """A fast device and one that takes twice as long."""
    text = (toy.parent / "profile.yaml").read_text().replace("mine/toy", "mine/slow")
    text = text.replace("[0.010, 0.011, 0.014, 0.020]", "[0.020, 0.022, 0.028, 0.040]")
    (toy.parent / "slow.yaml").write_text(text)
    (toy.parent / "two.yaml").write_text(TWO_KINDS)
    return toy.parent / "two.yaml"


def test_replicas_get_devices_and_names_of_their_own(toy: Path):
    plan = expanded(load(toy, [("replicas", 2)])).deployment
    assert list(plan.devices) == ["gpu0", "gpu0.2"]
    assert [w.name for w in plan.workers] == ["encode", "denoise", "encode@gpu0.2", "denoise@gpu0.2"]


def test_one_replica_is_left_as_it_is(toy: Path):
    experiment = load(toy)
    assert expanded(experiment) is experiment


def test_two_replicas_hold_twice_the_rate(toy: Path):
    def met(rate: float, replicas: int) -> float:
        return build.run(load(toy, [("rate", rate), ("requests", 600), ("replicas", replicas)])).attainment

    assert met(40.0, 2) >= met(20.0, 1) - 0.02
    assert met(40.0, 2) > met(40.0, 1) + 0.2


@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "least_violating"])
@pytest.mark.parametrize("policy", ["edf", "fcfs", "neustream"])
def test_every_request_ends_on_the_device_that_it_began_on(two_kinds: Path, router: str, policy: str):
    seen = []

    class Devices(Recorder):
        def ended(self, request, now):
            seen.append({t.worker.device for t in request.tasks})
            super().ended(request, now)

    experiment = load(two_kinds, [("router", router), ("policy", policy), ("rate", 20.0)])
    summary = build.build(experiment, Devices()).play()
    assert sum(summary.outcomes.values()) == 60
    assert all(len(devices) == 1 for devices in seen)
    assert {"gpu0", "gpu1"} <= set().union(*seen)


def test_routers_that_know_the_devices_do_better(two_kinds: Path):
    def met(router: str) -> int:
        changes = [("router", router), ("rate", 12.0), ("requests", 1000)]
        return sum(build.run(load(two_kinds, [*changes, ("seed", s)])).met for s in range(3))

    assert met("least_loaded") > met("round_robin")
    assert met("least_violating") > met("round_robin")


def test_workers_that_share_only_some_modules(two_kinds: Path):
    bad = two_kinds.with_name("bad.yaml")
    bad.write_text(
        TWO_KINDS.replace("{modules: [denoise], device: gpu1", "{modules: [encode, denoise], device: gpu1")
    )
    with pytest.raises(BadInput, match=r"encode\+denoise overlaps"):
        load(bad)
