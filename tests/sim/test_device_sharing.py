"""No second worker gets a device for nothing (invariant 14): what was not measured is refused, or shared in time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servetwin.core import BadInput, InvariantBroken
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.experiments.assembly.build import build, run, time_shared
from servetwin.experiments.spec import loading
from servetwin.experiments.spec.loading import load_profiles
from servetwin.profiles import Profile
from servetwin.sim.device_sharing import unmeasured

UNMEASURED = "share a device, and .* does not say what they cost each other"
SHARED = ("time.unmeasured", "shared")

MIXED = """
name: mixres
pipeline:
  modules: {clip: {}, u512: {loop: true}, u1024: {loop: true}, vae: {join: any}}
  edges: [[clip, u512], [u512, vae], [u1024, vae]]
  branches: [{from: clip, to: u1024, probability: 0.3}]
workload:
  requests: 200
  arrivals: {process: poisson, rate: 5.0}
  steps: {u512: {draw: constant, steps: 30}, u1024: {draw: constant, steps: 30}}
slo: {seconds: 6.0}
policy: {name: edf}
deployment:
  devices: {gpu0: mixres.csv}
  workers:
    - {modules: [clip], device: gpu0, limit: 8}
    - {modules: [u512], device: gpu0, limit: 8}
    - {modules: [u1024], device: gpu0, limit: 8}
    - {modules: [vae], device: gpu0, limit: 8}
"""
TIMES = {"clip": 0.01, "u512": 0.03, "u1024": 0.12, "vae": 0.05}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two resolutions, written as a branch to two workers of one GPU."""
    rows = [f"{m},{n},{t * (1 + 0.8 * (n - 1))}" for m, t in TIMES.items() for n in range(1, 9)]
    (tmp_path / "mixres.csv").write_text("\n".join(["module,batch,seconds", *rows]) + "\n")
    (tmp_path / "mixres.yaml").write_text(MIXED)
    return tmp_path / "mixres.yaml"


def two(*more: tuple[str, object], workload: str = "dit-xl2-256-h100") -> list[tuple[str, object]]:
    workers = [
        {"modules": ["dit"], "device": "gpu0", "limit": 8},
        {"modules": ["dit"], "device": "gpu0", "limit": 8},
        {"modules": ["vae"], "device": "gpu0", "limit": 4},
    ]
    return [("policy", "edf"), ("requests", 200), ("deployment.workers", workers),
            ("deployment.router", "round_robin"), *more]  # fmt: skip


def work(experiment, folder: Path) -> float:
    """Seconds of a device's work that a run did in each second between its first batch and its last, by the table."""
    run(experiment, folder)
    lines = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
    seconds = 0.0
    for line in lines:
        (module,) = line["modules"]
        n = len(line["requests"])
        seconds += len(line.get("ends", [0])) * TIMES[module] * (1 + 0.8 * (n - 1))
    return seconds / (max(line["end"] for line in lines) - min(line["start"] for line in lines))


def keeps_invariants(experiment) -> None:
    checker = InvariantChecker()
    built = build(experiment, checker)
    checker.watch(built.loop)
    built.play()
    checker.finish()


@pytest.mark.parametrize("more", [[], [("time.contention", False)], [("time.noise", False)]])
def test_a_second_worker_of_a_module_is_refused(more: list) -> None:
    with pytest.raises(BadInput, match=f"dit, dit@gpu0 {UNMEASURED}.*dit.device_beside.dit"):
        build(loading.load("dit-xl2-256-h100", two(*more)))


@pytest.mark.parametrize("rate", [20.0, 30.0])
def test_or_shares_the_device_and_gains_nothing(rate: float) -> None:
    one = run(loading.load("dit-xl2-256-h100", [("policy", "edf"), ("rate", rate), ("requests", 200)]))
    both = loading.load("dit-xl2-256-h100", two(("rate", rate), SHARED))
    assert run(both).attainment <= one.attainment + 0.02
    assert time_shared(both) == ["dit and dit@gpu0 share gpu0 in time: what they cost each other was not measured"]
    keeps_invariants(both)


def test_mixed_resolutions_as_branches(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=UNMEASURED):
        build(loading.load(str(mixed)))
    shared = loading.load(str(mixed), [SHARED])
    keeps_invariants(shared)
    assert 0.9 < work(shared, tmp_path / "run") <= 1.0 + 1e-9
    meta = json.loads((tmp_path / "run/meta.json").read_text())
    assert "u512 and u1024 share gpu0 in time: what they cost each other was not measured" in meta["time_shared"]


def test_two_models_of_which_only_one_direction_was_measured(tmp_path: Path) -> None:
    experiment = loading.load("dit-xl2-256-h100")
    built = build(experiment)
    profiles = load_profiles(experiment)
    workers = built.loop.workers
    assert unmeasured(workers, profiles) == []
    data = profiles["gpu0"].data
    known = {name: cost for name, cost in data.costs.items() if name != "vae.device_beside.dit"}
    profiles["gpu0"] = Profile(data.model_copy(update={"costs": known}))
    assert [(a.name, b.name) for a, b in unmeasured(workers, profiles)] == [("dit", "vae")]


@pytest.mark.parametrize("contention", [True, False])
def test_two_engines(contention: bool) -> None:
    workers = [{"modules": ["llm"], "device": "gpu0", "limit": 32, "name": name} for name in "ab"]
    given = [("policy", "vllm"), ("deployment.workers", workers), ("requests", 60), ("rate", 2.0),
             ("time.contention", contention)]  # fmt: skip
    with pytest.raises(BadInput, match=f"a, b {UNMEASURED}.*prefill.rate_beside.prefill"):
        build(loading.load("opt-13b-a6000", given))
    with pytest.raises(BadInput, match=r"engine.blocks of a: a and b share gpu0, whose memory each would have whole"):
        build(loading.load("opt-13b-a6000", [*given, SHARED]))
    workers = [worker | {"engine": {"blocks": 500}} for worker in workers]
    shared = loading.load("opt-13b-a6000", [*given, ("deployment.workers", workers), SHARED])
    keeps_invariants(shared)
    alone = run(loading.load("opt-13b-a6000", [*given[:1], ("requests", 60), ("rate", 2.0)]))
    assert run(shared).as_dict()["duration"] > 0.95 * alone.as_dict()["duration"]


def test_an_engine_beside_another_model_is_refused() -> None:
    workers = [
        {"modules": ["plan"], "device": "gpu1", "limit": 8},
        {"modules": ["captioner"], "device": "gpu1", "limit": 64, "policy": {"name": "vllm-v1"}},
    ]
    tree = loading.load("sdxl-caption-synthetic").as_dict()
    tree["pipeline"]["modules"] = {"plan": {}, "captioner": tree["pipeline"]["modules"]["captioner"]}
    tree["pipeline"]["branches"] = []
    tree["workload"]["steps"] = {}
    tree["deployment"] |= {"workers": workers}
    with pytest.raises(BadInput, match="has the device 'gpu1' to itself"):
        build(loading.load(tree))


def test_replicas_have_devices_of_their_own() -> None:
    assert time_shared(loading.load("dit-xl2-256-h100", [("deployment.replicas", 3), SHARED])) == []


@pytest.mark.parametrize("name", ["sd15-512-rtx4090", "sd15-512-h100", "sdxl-caption-synthetic", "tiny-sd-cpu"])
def test_shipped_workloads_that_share_keep_the_invariant(name: str) -> None:
    experiment = loading.load(name, [("requests", 60)])
    assert time_shared(experiment)
    keeps_invariants(experiment)


def test_the_invariant_sees_a_device_that_is_used_twice() -> None:
    experiment = loading.load("dit-xl2-256-h100", two(("rate", 30.0), SHARED))
    checker = InvariantChecker()
    built = build(experiment, checker)
    for pair in [key for key in built.executor._contention if key[0].startswith("dit")]:
        built.executor._contention[pair] = (1.0, 1.0)
    checker.watch(built.loop)
    with pytest.raises(InvariantBroken, match=r"invariant 14 .* get on at 2 times the speed of their device"):
        built.play()
