"""Several workers of one module on one device: each request's image is that which it has alone.

A runner's rows, its cursor on the device and the memory of its graphs are one lane's. On two lanes of one runner
11 of 24 images of a tiny DiT were wrong.
"""

import gc
import weakref

import pytest
import torch
from servetwin.core import BatchWorker, Request, ServeTwinError, WorkerView
from servetwin.policies.diffusion.edf import EDF
from servetwin.real import Options, Server

COUNT = 24
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, NO_GPU])]
#: Placements in which a module is served by several lanes of one device.
TWICE = {
    "tiny-dit": [("dit",), ("dit",), ("vae",)],
    "tiny-sd": [("clip",), ("unet",), ("unet",), ("vae", "safety"), ("vae", "safety")],
    "tiny-palette": [("unet",), ("unet",), ("unet",)],
}


def system(kind, placement, limit, devices=()):
    stages = kind.pipeline().stages(list(dict.fromkeys(placement)))
    by_modules = {stage.modules: stage for stage in stages}
    workers = []
    for i, modules in enumerate(placement):
        stage = by_modules[modules]
        view = WorkerView(stage, lambda m, n: 0.001, limit=limit, name=f"{stage.name}-{i}", slo_factor=3.0)
        device = devices[i] if devices else "gpu0"
        workers.append(BatchWorker(stage, EDF(), view, device=device))
    return stages, workers


def images(server, placement, limit, devices=(), gap=0.0):
    """Each request's image; the requests go to the workers of a stage in turn."""
    made = {}
    stages, workers = system(server.kind, placement, limit, devices)
    report = server.serve(
        stages,
        workers,
        [Request(i, i * gap, 60.0, {server.kind.loop: 6 + i % 5}) for i in range(COUNT)],
        sink=lambda number, image: made.setdefault(number, image.int()),
        router=lambda request, there, now: there[request.id % len(there)],
    )
    assert report.summary.met == COUNT
    assert sorted(made) == list(range(COUNT))
    return made, report.summary


def furthest(made, wanted):
    return max(int((made[i] - wanted[i]).abs().max()) for i in range(COUNT))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "limit"), [("tiny-dit", 1), ("tiny-dit", 3), ("tiny-sd", 2), ("tiny-palette", 1)])
def test_two_lanes_of_one_module_give_the_images_of_one(name, limit, device):
    server = Server(name, Options(device=device, slots=64))
    once = list(dict.fromkeys(TWICE[name]))
    wanted, _ = images(server, once, 1)
    for _ in range(2):  # the second run finds the runners of the first
        made, summary = images(server, TWICE[name], limit)
        assert all(summary.sizes[w].total() > 0 for w in summary.sizes)
        assert len(summary.sizes) == len(TWICE[name])
        # Alone and in company on the CPU differ by rounding, in half precision by a little more.
        assert furthest(made, wanted) <= (1 if device == "cpu" else 3)


@pytest.mark.parametrize("device", DEVICES)
def test_in_processes_too(device):
    server = Server("tiny-dit", Options(device=device, slots=64))
    wanted, _ = images(server, [("dit",), ("vae",)], 1)
    apart = Server("tiny-dit", Options(device=device, slots=64, processes=True))
    made, _ = images(apart, TWICE["tiny-dit"], 2)
    assert furthest(made, wanted) <= (1 if device == "cpu" else 3)


@pytest.mark.parametrize("device", DEVICES)
def test_two_devices_hand_requests_over(device):
    """Slots twice on one device: a request's slot is copied between them, and what is free is used again at once."""
    server = Server("tiny-dit", Options(device=device, slots=16))
    wanted, _ = images(server, [("dit",), ("vae",)], 1, gap=0.02)
    for _ in range(2):
        made, _ = images(server, TWICE["tiny-dit"], 2, devices=("gpu0", "gpu0", "gpu1"), gap=0.02)
        assert furthest(made, wanted) <= (1 if device == "cpu" else 3)


def test_a_runner_is_one_lanes_until_it_gives_it_back():
    slots = Server("tiny-dit", Options(device="cpu", slots=8)).device_slots("gpu0")
    one, two = object(), object()
    first, second = slots.lease("dit", 2, one), slots.lease("dit", 2, two)
    assert first is not second
    assert slots.lease("vae", 2, one) is not slots.lease("vae", 2, two)
    slots.give_back(one)
    assert slots.lease("dit", 1, one) is first
    third = slots.lease("dit", 3, object())
    assert third not in (first, second)
    slots.give_back(two)
    assert slots.lease("dit", 2, two) is second


def test_a_run_that_does_not_begin_gives_its_units_back():
    server = Server("tiny-dit", Options(device="cpu", slots=4))
    stages, workers = system(server.kind, [("dit",), ("vae",)], 9)  # more than there are slots
    with pytest.raises(ServeTwinError, match="do not fit"):
        server.serve(stages, workers, [])
    stages, workers = system(server.kind, [("dit",), ("vae",)], 2)
    assert server.serve(stages, workers, [Request(0, 0.0, 60.0, {"dit": 2})]).summary.met == 1
    assert not server.device_slots("gpu0")._used


def test_a_backend_lets_go_of_a_model_when_a_run_needs_another():
    """Of a sweep over models, or over so many requests that there must be more slots, one model is kept."""
    from servetwin.experiments.backends.diffusion import Backend, Setup  # not there where only torch is
    from servetwin.experiments.spec.loading import load

    backend = Backend(Setup(devices=("cpu",), foreign=True))
    networks = []
    for name, count in (("tiny-dit-cpu", 3), ("tiny-palette-cpu", 3), ("tiny-dit-cpu", 3), ("tiny-dit-cpu", 3)):
        assert backend.run(load(name, [("requests", count)])).summary.requests == count
        (server,) = backend.servers.values()
        networks.append(weakref.ref(server.device_slots("gpu0").model.networks[server.kind.loop]))
        kind, devices = server.kind, {"gpu0": "cpu"}
        del server
    assert [network() is None for network in networks] == [True, True, False, False]
    assert networks[2]() is networks[3]()
    more = backend._server(kind, devices, 1024)
    assert list(backend.servers.values()) == [more]
    assert networks[3]() is None
    backend.close()
    assert not backend.servers


def test_a_server_that_nobody_needs_is_freed():
    server = Server("tiny-dit", Options(device="cpu", slots=64))
    images(server, TWICE["tiny-dit"], 1)
    network = weakref.ref(server.device_slots("gpu0").model.networks["dit"])
    del server
    gc.collect()
    assert network() is None
