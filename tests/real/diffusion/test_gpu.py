"""On a CUDA device: graphs against eager, latency at full size, and the time between iterations. `pytest -m gpu`."""

import statistics

import pytest
import torch
from servetwin.core import BatchWorker, Request, WorkerView
from servetwin.policies.diffusion.neustream import NeuStream
from servetwin.real import Options, Server
from servetwin.real.diffusion.device_slots import DeviceSlots
from servetwin.real.diffusion.models import KINDS, find
from servetwin.real.diffusion.profiling.microbenchmarks import Gather, measured_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

#: Seconds of an iteration of one request, on an H100 or better.
LATENCY = {"sd15-512": 0.0126, "dit-s2-256": 0.0015, "dit-xl2-256": 0.0045}


def results(slots, numbers, steps, together):
    """The latents of these requests, made in one batch or one after the other."""
    made = {}
    groups = [numbers] if together else [[n] for n in numbers]
    with torch.no_grad():
        for group in groups:
            batch = [slots.take(Request(n, 0.0, 1.0, {slots.kind.loop: steps})) for n in group]
            for module in slots.kind.modules[: slots.kind.modules.index(slots.kind.loop)]:
                slots.once(module, batch)
            for progress in batch:
                slots.begin(progress, steps)
            for _ in range(steps):
                slots.step(batch)
            torch.cuda.synchronize()
            for progress in batch:
                made[progress.request] = slots.model.state["latents"][progress.slot].clone()
                slots.release(progress.request)
    return made


@pytest.mark.parametrize("name", [*(name for name in KINDS if name.startswith("tiny-")), "dit-s2-256"])
def test_graphs_give_what_eager_gives_and_company_does_not_matter(name):
    """Half precision: within 1 % of the size of the latents; bfloat16, which is eight times as coarse: within 8 %."""
    near = 0.01 if find(name).precision == "float16" else 0.08
    made = []
    for eager in (True, False):
        slots = DeviceSlots(find(name), Options(eager=eager, slots=16), torch.device("cuda", 0))
        for module in slots.kind.modules:
            slots.warm(module, 4)
        slots.reset()
        made += [results(slots, [0, 1, 2], 10, together) for together in (True, False)]
    for number in (0, 1, 2):
        first = made[0][number]
        assert torch.isfinite(first).all()
        assert first.std() > 0
        for other in made[1:]:
            assert (other[number] - first).norm() / first.norm() < near


@pytest.mark.parametrize("name", LATENCY)
def test_latency_of_one_request(name):
    server = Server(name)
    spells = measured_run(
        server, server.kind.placement, [Gather(1) for _ in server.kind.placement], [60], limit=1, device="gpu0"
    )
    times = sorted(s.end - s.start for s in spells if s.worker == server.kind.loop)
    assert statistics.median(times) <= LATENCY[name]
    assert times[int(0.99 * len(times)) - 1] / statistics.median(times) <= 1.1


def test_time_between_iterations():
    server = Server("dit-s2-256")
    stages = server.kind.pipeline().stages(server.kind.placement)
    workers = [
        BatchWorker(s, NeuStream(bound=8), WorkerView(s, lambda m, n: 0.001, limit=8, slo_factor=3.0)) for s in stages
    ]
    report = server.serve(stages, workers, [Request(i, i * 0.02, 60.0, {"dit": 30}) for i in range(200)])
    assert report.summary.met == 200
    assert report.gap_ms["median"] <= 0.3


#: GPU cycles for which a stream is held up: some 0.1 s, in which whoever does not wait is long through.
HOLD = 200_000_000


TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs")


@pytest.mark.parametrize("second", [0, pytest.param(1, marks=TWO)])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_hand_over_waits_for_the_source_and_is_waited_for(ordered, second, monkeypatch):
    """On one GPU slots twice stand for two devices. The source's stream is held up before it writes the latents, and
    the target reads them on a stream of its own: without the events (as it was) it would read what was there before.
    """
    if not ordered:  # then the test must be able to see it
        monkeypatch.setattr(torch.cuda.Stream, "wait_event", lambda stream, event: None)
    device, other_device = torch.device("cuda", 0), torch.device("cuda", second)
    kind, options = find("tiny-dit"), Options(slots=4)
    here, there = DeviceSlots(kind, options, device), DeviceSlots(kind, options, other_device)
    here.meet(there)  # the first copy between two GPUs waits for much else
    source, target = torch.cuda.Stream(device), torch.cuda.Stream(other_device)
    written, seen = torch.cuda.Event(), []
    torch.cuda.synchronize(device)
    torch.cuda.synchronize(other_device)
    for number in range(12):  # more than there are slots
        request = Request(number, 0.0, 1.0, {"dit": 4})
        with torch.no_grad(), torch.cuda.stream(source):
            progress = here.take(request)
            here.begin(progress, 4)
            torch.cuda._sleep(HOLD if number % 4 == 0 else HOLD // 50)
            here.model.state["latents"][progress.slot].fill_(float(number + 1))
            written.record(source)
        here.hand_over(number, there, written)
        with torch.no_grad(), torch.cuda.stream(target):
            moved = there.take(request)
            seen.append(there.model.state["latents"][moved.slot].clone())
        with torch.no_grad(), torch.cuda.stream(source):  # the slot that is free here goes to somebody else at once
            other = here.take(Request(1000 + number, 0.0, 1.0, {"dit": 4}))
            here.model.state["latents"][other.slot].fill_(-1.0)
            here.release(1000 + number)
        if number % 2:
            there.release(number - 1)
            there.release(number)
    torch.cuda.synchronize(device)
    torch.cuda.synchronize(other_device)
    right = [bool((latents == number + 1).all()) for number, latents in enumerate(seen)]
    assert all(right) == ordered, right
