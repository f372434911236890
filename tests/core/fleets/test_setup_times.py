"""Fleets against queueing theory: queues whose servers are set up when work comes and turned off when there is none.

Sources: Welch, "On a generalized M/G/1 queuing process in which the first customer of each busy period receives
exceptional service" (Operations Research 12, 1964); Gandhi, Doroudi, Harchol-Balter and Scheller-Wolf, "Exact
analysis of the M/M/k/setup class of Markov chains" (SIGMETRICS 2013), the ON/OFF policy.
"""

from __future__ import annotations

import math
from collections import deque

import pytest
from servetwin.core import BatchWorker, Module, Pipeline, Recorder, Request, ServingLoop, WorkerView
from servetwin.core.fleets.fleet import Fleet, Rules
from servetwin.core.random_streams import stream
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.routing.central import Central
from servetwin.policies.scaling.by_queue import ByQueue
from servetwin.sim import SimExecutor, TableTiming
from setup_chain import chain


class Times(Recorder):
    """Sums up how long requests are there."""

    def __init__(self) -> None:
        super().__init__()
        self.there = 0.0

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.there += now - request.arrival


def on_off(servers: int, rate: float, requests: int, setup: float, *, drawn: bool) -> tuple[float, float]:
    """The mean time in an M/M/k queue, of mean service 1 s, whose servers are turned off as soon as nothing waits and
    set up, one for each that waits, when something does; and how many are held on average."""
    (stage,) = Pipeline.chain(Module("server")).stages([["server"]])
    workers = []
    for i in range(servers):
        view = WorkerView(stage, lambda _, n: 1.0, limit=1, name=f"server{i}")
        workers.append(BatchWorker(stage, FCFS(), view, device=f"gpu{i}"))
    left = deque(stream(3, "service").exponential(1.0, requests).tolist())
    setups = stream(3, "setup")
    executor = SimExecutor(lambda _: TableTiming([math.nan, 1.0], draw=left.popleft))
    fleet = Fleet(
        [[worker] for worker in workers],
        ByQueue(target=1.0),
        Rules(0, servers, 0, every=None),
        lambda _: setup * (setups.standard_exponential() if drawn else 1.0),
    )
    log = Times()
    loop = ServingLoop([stage], workers, executor, log, router=Dispatcher(workers, Central()), fleet=fleet)
    arrivals = stream(3, "arrivals").exponential(1.0 / rate, requests).cumsum().tolist()
    play(loop, (Request(i, at, 1e9, {}) for i, at in enumerate(arrivals)))
    executor.run_until_idle()
    assert log.summary.finished == requests
    assert {replica.state for replica in fleet.replicas} == {"off"}
    return log.there / requests, fleet.summary(arrivals[0], log.summary.last_end)["mean_replicas"]


@pytest.mark.parametrize("drawn", [False, True])
def test_one_server_that_is_set_up_waits_as_welch_says(drawn: bool) -> None:
    rate, setup = 0.5, 2.0
    second = 2 * setup**2 if drawn else setup**2
    expected = 1 / (1 - rate) + (2 * setup + rate * second) / (2 * (1 + rate * setup))
    # It is held while it serves, and while it is set up, once for each time that it was off.
    off = (1 - rate) * (1 / rate) / (1 / rate + setup)
    mean, held = on_off(1, rate, 10_000, setup, drawn=drawn)
    assert mean == pytest.approx(expected, rel=0.06)
    assert held == pytest.approx(1 - off, rel=0.02)


@pytest.mark.parametrize(("servers", "rate", "setup"), [(2, 1.2, 3.0), (4, 2.0, 1.5)])
def test_several_servers_are_the_chain_of_on_and_off(servers: int, rate: float, setup: float) -> None:
    expected, held_by_chain = chain(servers, rate, setup, 120)
    mean, held = on_off(servers, rate, 8_000, setup, drawn=True)
    assert mean == pytest.approx(expected, rel=0.06)
    assert held == pytest.approx(held_by_chain, rel=0.02)


def test_the_chain_itself_is_right_where_one_server_has_a_formula() -> None:
    mean, held = chain(1, 0.5, 2.0, 200)
    assert mean == pytest.approx(1 / (1 - 0.5) + 2.0)
    assert held == pytest.approx(1 - 0.5 * 2.0 / (2.0 + 2.0))
