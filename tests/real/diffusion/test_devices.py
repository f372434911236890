"""Several devices: replicas behind routers, stages apart, what is handed over, and one device that breaks.

Two devices are the CPU twice, with a model and slots each; with two GPUs the same is done on those
(`pytest -m gpu`). The order that the events of two streams keep is held by test_gpu.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from servetwin.core import BadInput, BatchWorker, Outcome, Recorder, Request, RunFolder, ServeTwinError, WorkerView
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.routing.central import Central
from servetwin.policies.routing.least_loaded import LeastLoaded
from servetwin.policies.routing.power_of_two import PowerOfTwo
from servetwin.policies.routing.round_robin import RoundRobin
from servetwin.profiles import Profile, load
from servetwin.profiles.schema import ProfileFile
from servetwin.real import Options, Server
from servetwin.real.diffusion.profiling.hand_overs import measured_hand_overs, with_hand_overs
from servetwin.real.executor import RealExecutor

COUNT = 16
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs")
DEVICES = [("cpu", "cpu"), pytest.param(("cuda:0", "cuda:1"), marks=[pytest.mark.gpu, TWO_GPUS])]
#: By device, the groups of modules with a worker each.
REPLICAS = {"gpu0": [("dit",), ("vae",)], "gpu1": [("dit",), ("vae",)]}
APART = {
    "tiny-dit": {"gpu0": [("vae",)], "gpu1": [("dit",)]},
    "tiny-sd": {"gpu0": [("clip",), ("vae", "safety")], "gpu1": [("unet",)]},
}


def server_of(name, devices, slots=64):
    return Server(
        name, Options(device=devices[0], devices=dict(zip(("gpu0", "gpu1"), devices, strict=True)), slots=slots)
    )


def system(kind, groups, limit=2):
    placed = [(device, group) for device, some in groups.items() for group in some]
    stages = kind.pipeline().stages([g for g in kind.placement if tuple(g) in {group for _, group in placed}])
    by_modules = {stage.modules: stage for stage in stages}
    workers = []
    for device, group in placed:
        view = WorkerView(
            by_modules[group], lambda m, n: 0.001, limit=limit, name=f"{group[0]}@{device}", slo_factor=3.0
        )
        workers.append(BatchWorker(by_modules[group], EDF(), view, device=device))
    return stages, workers


def served(server, groups, router=None, recorder=None, gap=0.005, limit=2):
    """Each request's image, and the report; *router* is a router's object (None: the usual one)."""
    made = {}
    stages, workers = system(server.kind, groups, limit)
    wiring = {"router": Dispatcher(workers, router, seed=3)} if router is not None else {}
    report = server.serve(
        stages,
        workers,
        [Request(i, i * gap, 60.0, {server.kind.loop: 4 + i % 3}) for i in range(COUNT)],
        recorder,
        sink=lambda number, image: made.setdefault(number, image.int()),
        **wiring,
    )
    assert report.summary.met == COUNT
    assert sorted(made) == list(range(COUNT))
    return made, report


def test_batches_that_are_larger_than_the_slots_name_the_option() -> None:
    server = server_of("tiny-dit", ("cpu", "cpu"), slots=1)
    with pytest.raises(BadInput) as refused:
        server.device_slots("gpu0").warm("dit", 2)
    told = "--slots: batches of up to 2 do not fit into 1 slots (right would be: 2, or more)"
    assert str(refused.value) == told


def furthest(made, wanted):
    return max(int((made[i] - wanted[i]).abs().max()) for i in range(COUNT))


@pytest.mark.parametrize("devices", DEVICES)
def test_replicas_behind_each_router_give_the_images_of_one_device(devices):
    server = server_of("tiny-dit", devices)
    wanted, _ = served(server, {"gpu0": REPLICAS["gpu0"]})
    for router in (RoundRobin(), LeastLoaded(), PowerOfTwo(), Central()):
        made, report = served(server, REPLICAS, router)
        assert furthest(made, wanted) <= (1 if devices[0] == "cpu" else 3)
        sizes = report.summary.sizes
        assert {name for name in sizes if sizes[name].total() > 0} == {"dit@gpu0", "vae@gpu0", "dit@gpu1", "vae@gpu1"}
        assert report.hand_overs == {}  # the VAE beside the loop decodes what that has made


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", APART)
def test_stages_apart_give_the_images_of_one_device(name, devices):
    server = server_of(name, devices)
    wanted, _ = served(server, {"gpu0": [tuple(group) for group in server.kind.placement]})
    made, report = served(server, APART[name])
    assert furthest(made, wanted) <= (1 if devices[0] == "cpu" else 3)
    ways = ["gpu1 to gpu0"] if name == "tiny-dit" else ["gpu0 to gpu1", "gpu1 to gpu0"]
    assert sorted(report.hand_overs) == ways
    for told in report.hand_overs.values():
        assert told["ms"]["samples"] == told["host_ms"]["samples"] == COUNT
        assert told["ms"]["max"] >= told["ms"]["median"] > 0.0
    assert "hand_overs" in report.as_dict()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_request_is_there_before_anybody_decides_about_it(ordered, monkeypatch):
    """With few slots, which are taken again as soon as they are free. If it is handed over a moment later, the VAE
    decodes what lies in a slot of its own: the test must be able to see it."""
    server = server_of("tiny-dit", ("cpu", "cpu"), slots=COUNT)
    wanted, _ = served(server, {"gpu0": REPLICAS["gpu0"]})
    if not ordered:

        def late(executor, source, task, deliver):
            deliver(task)
            if source is not None:
                executor.call_at(executor.now() + 0.05, lambda: executor._hand_over(source, task))

        monkeypatch.setattr(RealExecutor, "_deliver", late)
    for _ in range(3):
        made, _ = served(server, APART["tiny-dit"], gap=0.0)
        assert (furthest(made, wanted) <= 1) == ordered
    if ordered:
        assert all(not slots.progress for slots in server.by_device.values())


def test_one_device_that_breaks_ends_the_run_and_is_named(tmp_path, monkeypatch):
    server = server_of("tiny-dit", ("cpu", "cpu"))
    slots = server.device_slots("gpu1")
    calls = []
    step = slots.step

    def breaks(*batch):
        calls.append(1)
        if len(calls) > 8:
            raise torch.OutOfMemoryError("no memory")
        step(*batch)

    monkeypatch.setattr(slots, "step", breaks)
    recorder = RunFolder(tmp_path / "run", {})
    with pytest.raises(
        ServeTwinError, match=r"^the run ended early: dit@gpu1 on gpu1: the device ran out of memory$"
    ):
        served(server, REPLICAS, RoundRobin(), recorder, gap=0.01)
    recorder.close(complete=False)
    outcomes = recorder.summary.outcomes
    assert outcomes[Outcome.MET] >= 1
    assert outcomes[Outcome.FAILED] >= 1
    assert outcomes.total() == recorder.summary.requests
    assert len((tmp_path / "run" / "requests.jsonl").read_text().splitlines()) == outcomes.total()
    monkeypatch.undo()
    assert len(served(server, REPLICAS, RoundRobin())[0]) == COUNT  # and the server serves on


@pytest.mark.parametrize("devices", DEVICES)
def test_what_hand_overs_take_goes_into_the_profile_of_where_they_come_to(devices, tmp_path):
    server = server_of("tiny-dit", devices)
    seconds = measured_hand_overs(server, "gpu0", "gpu1", times=30)
    assert len(seconds) == 30
    assert all(0.0 < s < 1.0 for s in seconds)
    assert not server.device_slots("gpu0").progress
    assert not server.device_slots("gpu1").progress
    content = load("cpu/tiny-dit").data.model_dump(exclude_none=True, by_alias=True)
    made = Profile(ProfileFile.model_validate(with_hand_overs(content, seconds, "both idle")))
    assert made.seconds("transport.between_devices") == pytest.approx(sum(seconds) / 30, abs=1e-8)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(with_hand_overs(content, seconds, "both idle")))
    assert "transport.between_devices" in load(str(tmp_path / "two.yaml")).costs
    with pytest.raises(BadInput, match="gpu0 is gpu0"):
        measured_hand_overs(server, "gpu0", "gpu0")


@pytest.mark.checkout
@pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel")
def test_the_guides_two_devices(tmp_path):
    """docs/guides/real-execution.md, with the CPU for both."""
    text = (Path(__file__).parents[3] / "docs" / "guides" / "real-execution.md").read_text()
    (file,) = re.findall(r"^```yaml\n(# two\.yaml\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^servetwin run two\.yaml --backend real.*$", text, re.MULTILINE)
    (tmp_path / "two.yaml").write_text(file)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    real = json.loads((tmp_path / "runs" / "two" / "real.json").read_text())
    # Each second request, as far as it was not dropped: the VAE is on gpu1.
    assert 0 < real["hand_overs"]["gpu0 to gpu1"]["ms"]["samples"] <= 20


@pytest.mark.gpu
@TWO_GPUS
def test_graphs_of_a_second_gpu_read_what_the_host_writes():
    """Pinned memory belongs to the device that was current; rows that were copied would all stay what they were."""
    for device in (0, 1, 0, 1):
        server = Server("tiny-dit", Options(device=f"cuda:{device}", slots=16))
        torch.cuda.set_device(1 - device)
        try:
            report = served(server, {"gpu0": REPLICAS["gpu0"]}, recorder=Recorder())[1]
        finally:
            torch.cuda.set_device(0)
        assert report.summary.met == COUNT
