"""Runs with prefill and decode apart, for tests: pools of engines with linear step times, under the invariants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from engines import Linear, Log, play_out, view_of
from servetwin.core import Recorder, ServingLoop
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import EngineLimits, TokenPolicy, TokenRequest
from servetwin.core.llm.request import Handed
from servetwin.core.llm.serving.handover import Handover, KVTransfer
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.routing import Router
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.routing.least_loaded import LeastLoaded
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming


@dataclass
class Pool:
    """*policies*, one for each engine, and what the engines of the pool have."""

    policies: Sequence[TokenPolicy]
    times: Linear = field(default_factory=Linear)
    limits: dict = field(default_factory=dict)
    ahead: bool = False  # whether its engines decide a step while the one before it runs


@dataclass
class Apart:
    loop: ServingLoop
    log: Recorder
    sent: list[TokenRequest]

    def visit(self, number: int) -> Handed:
        (task,) = self.sent[number].tasks
        assert isinstance(task, Handed)
        return task


def serve_apart(
    prefill: Pool,
    decode: Pool,
    sent: Sequence[TokenRequest],
    *,
    seconds=lambda tokens: 0.0,
    router: Router | None = None,
    slo=None,
    stop_at: float | None = None,
    recorder: Recorder | None = None,
    most_events: int = 200_000,
    fails: Sequence[tuple[float, int]] = (),
    **transfer,
) -> Apart:
    """Serve *sent* to the end; sending so many tokens takes *seconds*. *fails*: when something breaks under which."""
    sent = list(sent)
    workers, times, stage = [], {}, None
    for role, pool in (("prefill", prefill), ("decode", decode)):
        for number, policy in enumerate(pool.policies):
            view = view_of(pool.times, EngineLimits(**{"blocks": 1000, **pool.limits}), slo)
            stage = view.stage = stage or view.stage
            view.name = f"{role}{number}"
            host = Host(pool.times.between, 0.0, ahead=True) if pool.ahead else None
            workers.append(TokenWorker(stage, policy, view, device=view.name, host=host, role=role))
            times[view.name] = pool.times
    prefills = [w for w in workers if w.role == "prefill"]
    decodes = [w for w in workers if w.role == "decode"]
    kv = KVTransfer({w.name: seconds for w in prefills}, 1000.0, **transfer)
    handover = Handover(decodes, kv, Dispatcher(decodes, router or LeastLoaded()))
    for worker in workers:
        worker.handover = handover
    executor = SimExecutor(lambda worker: TokenTiming(times[worker.name]))
    log = recorder or Log()
    checker = InvariantChecker(log)
    loop = ServingLoop(
        [stage], workers, executor, checker, router=Dispatcher(prefills, LeastLoaded()), handovers=[handover]
    )
    checker.watch(loop)
    for when, number in fails:
        executor.call_at(when, partial(loop.fail, sent[number], "it broke"))
    play_out(loop, executor, sent, stop_at, most_events)
    checker.finish()
    loop.look_over()
    return Apart(loop, log, sent)
