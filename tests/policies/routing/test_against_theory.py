"""Routers against queueing theory: a central queue is M/M/c, and the others wait longer, in a known order."""

from __future__ import annotations

import heapq
import math
from collections import deque

import numpy as np
import pytest
from servetwin.core import BatchWorker, Module, Pipeline, Recorder, Request, ServingLoop, WorkerView
from servetwin.core.random_streams import stream
from servetwin.core.routing import Router
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.experiments.registry import router_registry
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.sim import SimExecutor, TableTiming

SERVERS = 4


class Waits(Recorder):
    """Sums up how long requests waited, and keeps who was served where."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0
        self.where: dict[str, int] = {}

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        (task,) = request.tasks
        self.waited += task.started - request.arrival
        self.where[task.worker.name] = self.where.get(task.worker.name, 0) + 1


def draws(load: float, requests: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrivals, and service times of one second on average."""
    gaps = stream(1, "arrivals").exponential(1.0 / (load * SERVERS), requests)
    return gaps.cumsum(), stream(1, "service").exponential(1.0, requests)


def serve(router: Router, load: float, requests: int, *, stale: float = 0.0, seed: int = 0) -> Waits:
    arrivals, service = draws(load, requests)
    (stage,) = Pipeline.chain(Module("server")).stages([["server"]])
    workers = []
    for i in range(SERVERS):
        view = WorkerView(stage, lambda _, n: 1.0, limit=1, name=f"server{i}")
        workers.append(BatchWorker(stage, FCFS(), view, device=f"gpu{i}"))
    left = deque(service.tolist())  # drawn in the order in which requests begin
    executor = SimExecutor(lambda _: TableTiming([math.nan, 1.0], draw=left.popleft))
    log = Waits()
    dispatcher = Dispatcher(workers, router, stale={router: stale}, seed=seed)
    loop = ServingLoop([stage], workers, executor, log, router=dispatcher)
    play(loop, (Request(i, at, 1e9, {}) for i, at in enumerate(arrivals.tolist())))
    executor.run_until_idle()
    assert log.summary.finished == requests
    assert dispatcher.waiting(stage) == 0
    return log


def test_a_central_queue_is_a_queue_with_several_servers_to_the_last_request() -> None:
    """By the recursion of Kiefer and Wolfowitz for the very same draws."""
    requests = 5_000
    arrivals, service = draws(0.8, requests)
    free, waited = [0.0] * SERVERS, 0.0
    for at, seconds in zip(arrivals.tolist(), service.tolist(), strict=True):
        start = max(at, heapq.heappop(free))
        waited += start - at
        heapq.heappush(free, start + seconds)
    log = serve(router_registry.make("central", {}), 0.8, requests)
    assert log.waited == pytest.approx(waited, rel=1e-9)


def test_its_mean_wait_is_by_erlangs_formula() -> None:
    requests, load = 20_000, 0.7
    arrivals, service = draws(load, requests)
    rate, mean = requests / arrivals[-1], service.mean()
    offered = rate * mean
    busy = offered**SERVERS / math.factorial(SERVERS) / (1 - offered / SERVERS)
    waits = busy / (sum(offered**k / math.factorial(k) for k in range(SERVERS)) + busy)
    expected = waits * mean / (SERVERS - offered)
    log = serve(router_registry.make("central", {}), load, requests)
    assert log.waited / requests == pytest.approx(expected, rel=0.08)


def test_routers_wait_in_the_known_order() -> None:
    """A central queue never lets a server idle while somebody waits; the shortest queue nearly so; two choices do
    much better than none; and turns are more even than chance. (Mitzenmacher 2001; Winston 1977.)"""
    requests, load = 8_000, 0.9
    mean = {
        name: serve(router_registry.make(name, {}), load, requests).waited / requests
        for name in ("central", "jsq", "power_of_two", "round_robin", "random")
    }
    assert mean["central"] < mean["jsq"] < mean["power_of_two"] < mean["round_robin"] < mean["random"]
    assert mean["jsq"] < 1.5 * mean["central"]
    assert mean["power_of_two"] < 0.5 * mean["random"]


def test_chance_makes_single_server_queues() -> None:
    """Each of the servers sees a Poisson process: a mean wait of load / (1 - load)."""
    requests, load = 12_000, 0.5
    log = serve(router_registry.make("random", {}), load, requests)
    assert log.waited / requests == pytest.approx(load / (1 - load), rel=0.08)
    assert all(many == pytest.approx(requests / SERVERS, rel=0.06) for many in log.where.values())


def test_stale_loads_make_the_shortest_queue_herd_and_two_choices_less() -> None:
    """Mitzenmacher, "How useful is old information?" (1999): with old loads the least loaded server draws a herd."""
    requests, load, old = 6_000, 0.8, 10.0
    fresh = serve(router_registry.make("jsq", {}), load, requests).waited
    herd = serve(router_registry.make("jsq", {}), load, requests, stale=old).waited
    two = serve(router_registry.make("power_of_two", {}), load, requests, stale=old).waited
    assert fresh < herd
    assert fresh < two
    assert two < serve(router_registry.make("random", {}), load, requests).waited * 2


def test_the_seed_decides_what_routers_draw() -> None:
    one, again, other = [
        serve(router_registry.make("power_of_two", {}), 0.8, 500, seed=seed).where for seed in (3, 3, 4)
    ]
    assert one == again != other
