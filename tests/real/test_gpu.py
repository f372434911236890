"""On a CUDA device: graphs against eager, latency at full size, and the time between iterations. `pytest -m gpu`."""

import statistics

import pytest
import torch
from servetwin.core import Request, Worker, WorkerView
from servetwin.policies.neustream import NeuStream
from servetwin.real import Options, Server
from servetwin.real.kinds import find
from servetwin.real.rehearsal import Gather, rehearse
from servetwin.real.site import Site

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

#: Seconds of an iteration of one request, on an H100 or better.
LATENCY = {"sd15-512": 0.0126, "dit-s2-256": 0.0015, "dit-xl2-256": 0.0045}


def results(site, numbers, steps, together):
    """The latents of these requests, made in one batch or one after the other."""
    made = {}
    groups = [numbers] if together else [[n] for n in numbers]
    with torch.no_grad():
        for group in groups:
            batch = [site.take(Request(n, 0.0, 1.0, {site.kind.loop: steps})) for n in group]
            if site.kind.family == "sd":
                site.once("clip", batch)
            for progress in batch:
                site.begin(progress, steps)
            for _ in range(steps):
                site.step(batch)
            torch.cuda.synchronize()
            for progress in batch:
                made[progress.request] = site.model.state["latents"][progress.slot].clone()
                site.release(progress.request)
    return made


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-dit", "tiny-palette", "dit-s2-256"])
def test_graphs_give_what_eager_gives_and_company_does_not_matter(name):
    """Half precision: within 1 % of the size of the latents."""
    made = []
    for eager in (True, False):
        site = Site(find(name), Options(eager=eager, slots=16), torch.device("cuda", 0))
        for module in site.kind.modules:
            site.warm(module, 4)
        site.reset()
        made += [results(site, [0, 1, 2], 10, together) for together in (True, False)]
    for number in (0, 1, 2):
        first = made[0][number]
        assert torch.isfinite(first).all()
        assert first.std() > 0
        for other in made[1:]:
            assert (other[number] - first).norm() / first.norm() < 0.01


@pytest.mark.parametrize("name", LATENCY)
def test_latency_of_one_request(name):
    server = Server(name)
    spells = rehearse(
        server, server.kind.placement, [Gather(1) for _ in server.kind.placement], [60], limit=1, device="gpu0"
    )
    times = sorted(s.end - s.start for s in spells if s.worker == server.kind.loop)
    assert statistics.median(times) <= LATENCY[name]
    assert times[int(0.99 * len(times)) - 1] / statistics.median(times) <= 1.1


def test_time_between_iterations():
    server = Server("dit-s2-256")
    stages = server.kind.pipeline().stages(server.kind.placement)
    workers = [
        Worker(s, NeuStream(bound=8), WorkerView(s, lambda m, n: 0.001, limit=8, slo_factor=3.0)) for s in stages
    ]
    report = server.serve(stages, workers, [Request(i, i * 0.02, 60.0, {"dit": 30}) for i in range(200)])
    assert report.summary.met == 200
    assert report.gap_ms["median"] <= 0.3
