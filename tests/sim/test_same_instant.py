"""What arrives, or is handed over, at the same instant is there together when somebody decides."""

from __future__ import annotations

import pytest
from engines import Linear, Log, requests, view_of
from harness import Script, WorkerSetup, one_stage, simulate
from servetwin.core import Decision, Module, Pipeline, Request, ServingLoop
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import EngineLimits
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.serving.client import play
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.diffusion.neustream import NeuStream
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.pool_lane import CallTimes

SLOW = Linear(c0=1.0, c1=0.0, d0=1.0, d1=0.0)


def plain(*arrivals: float, steps: int = 1, slo: float = 100.0) -> list[Request]:
    return [Request(i, at, slo, {"m": steps, "unet": steps}) for i, at in enumerate(arrivals)]


def starts(run, stage: str = "m") -> list[float]:
    """When each request was first run at *stage*."""
    return [start for _, start, _ in run.stamps(stage)]


def steps(
    policy, *rows, host: Host | None = None, times: Linear = SLOW, stamp="sent"
) -> list[tuple[float, int, int]]:
    """When each step began, how many prompts it computed and how many requests decoded in it."""
    view = view_of(times, EngineLimits(1000, stamp=stamp))
    executor = SimExecutor(lambda _: TokenTiming(times))
    found = []

    class Steps(Log):
        def batch(self, batch) -> None:
            found.append((batch.start, len(batch.prefill), batch.decode))
            super().batch(batch)

    checker = InvariantChecker(Steps())
    loop = ServingLoop([view.stage], [TokenWorker(view.stage, policy, view, host=host)], executor, checker)
    checker.watch(loop)
    play(loop, iter(requests(*rows)))
    executor.run_until_idle()
    checker.finish()
    return found


@pytest.mark.parametrize("policy", [FCFS, EDF, lambda: NeuStream(), Script])
def test_an_idle_worker_takes_all_that_come_together(policy) -> None:
    run = one_stage(policy(), plain(1.0, 1.0, 1.0, 1.0, steps=2), seconds=[1.0, 1.0, 1.0, 1.0])
    assert starts(run) == [1.0] * 4


def test_also_those_that_come_when_a_batch_ends() -> None:
    run = one_stage(FCFS(), plain(0.0, 1.0, 1.0), seconds=[1.0, 1.0, 1.0])
    assert starts(run) == [0.0, 1.0, 1.0]


def test_also_those_that_are_handed_over_together() -> None:
    pipeline = Pipeline.chain(Module("unet", loop=True), Module("vae"))
    for delays in ({}, {("unet", "vae"): lambda task: 0.25}):
        setups = [WorkerSetup(["unet"], FCFS(), [1.0, 1.0, 1.0]), WorkerSetup(["vae"], FCFS(), [1.0, 1.0, 1.0])]
        run = simulate(pipeline, setups, plain(0.0, 0.0, 0.0), delays=delays)
        assert len(set(starts(run, "vae"))) == 1


def test_a_pool_orders_what_comes_together() -> None:
    last_first = Script(lambda view, now: Decision(list(view.waiting)[-1:]))
    last_first.pools = True
    setup = WorkerSetup(["tool"], last_first, threads=2, calls=CallTimes("tool", "list", values=(1.0,)))
    run = simulate(Pipeline([Module("tool")], []), [setup], [Request(i, 1.0, 9.0, {}) for i in range(4)])
    assert [start for _, start, _ in run.stamps("tool")] == [2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("policy", [VLLM, VLLMV1, Sarathi])
@pytest.mark.parametrize("stamp", ["sent", "seen"])
def test_an_idle_engine_prefills_all_that_come_together(policy, stamp) -> None:
    found = steps(policy(), (1.0, 5, 2), (1.0, 3, 2), (1.0, 4, 2), stamp=stamp)
    assert found[:2] == [(1.0, 3, 0), (2.0, 0, 3)]


def test_also_those_that_come_when_a_step_ends() -> None:
    # The first is prefilled from 0 to 1 s and would decode then; vLLM prefills those that have come first.
    assert steps(VLLM(), (0.0, 5, 2), (1.0, 3, 1), (1.0, 3, 1))[:2] == [(0.0, 1, 0), (1.0, 2, 0)]
    # Also if they stand on the calendar later than the step does.
    assert steps(VLLM(), (0.0, 5, 2), (0.5, 3, 1), (1.0, 3, 1))[:2] == [(0.0, 1, 0), (1.0, 2, 0)]


@pytest.mark.parametrize("ahead", [False, True])
def test_an_engine_with_a_host_takes_in_all_that_come_together(ahead: bool) -> None:
    host = Host(lambda n: 0.0, 0.0, ahead=ahead)
    found = steps(VLLMV1(), (1.0, 5, 3), (1.0, 3, 3), (1.0, 4, 3), host=host)
    assert found[0] == (1.0, 3, 0)
