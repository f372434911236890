"""Random small worlds in which workers fail, slow down, stand still and come back, for the property tests."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from engines import Anything, Linear, Log, view_of
from harness import Simulation, WorkerSetup, simulate
from hypothesis import strategies as st
from servetwin.core import Pipeline, Recorder, ServingLoop, Worker
from servetwin.core.faults.faults import Faults
from servetwin.core.faults.schedule import Event, OutOfMemory, Retry, Rules, drawn, in_order
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import EngineLimits, TokenDeadlines, TokenPolicy, TokenRequest
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.llm.speculation import Speculation
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.llm.andes import Andes
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.fastserve import FastServe
from servetwin.policies.llm.orca import Orca
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.policies.llm.vtc import VTC
from servetwin.policies.routing.central import Central
from servetwin.policies.routing.jsq import JSQ
from servetwin.policies.routing.least_loaded import LeastLoaded
from servetwin.policies.routing.power_of_two import PowerOfTwo
from servetwin.policies.routing.round_robin import RoundRobin
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming
from worlds import PIPELINES, POLICIES, World, worlds

ROUTERS: dict[str, Any] = {
    "central": Central,
    "jsq": JSQ,
    "least_loaded": LeastLoaded,
    "power_of_two": PowerOfTwo,
    "round_robin": RoundRobin,
}


@dataclass
class FaultRules:
    """What goes wrong: *script* rows are (at, kind, place of the worker, seconds, factor), *mtbf* and *mttr* of drawn
    failures (None: none), a *batch* for which memory does not last, and what is done about it."""

    script: list[tuple[float, str, int, float, float]]
    drawn: tuple[float, float] | None
    seed: int
    detect: float
    retry: tuple[int, float] | None
    out_of_memory: tuple[int, float | None] | None

    def of(self, workers: Sequence[Worker]) -> Faults:
        names = [worker.name for worker in workers]
        script = [
            Event(at, kind, (names[place % len(names)],), at + seconds, factor=factor, seconds=factor / 8)
            for at, kind, place, seconds, factor in self.script
        ]
        lines = []
        if self.drawn is not None:
            devices = dict.fromkeys(worker.device for worker in workers)
            for device in devices:
                here = [worker.name for worker in workers if worker.device == device]
                lines.append(drawn(device, here, *self.drawn, self.seed))
        memory = {}
        if self.out_of_memory is not None:
            memory = {name: OutOfMemory(*self.out_of_memory) for name in names}
        rules = Rules(self.detect, Retry(*self.retry) if self.retry is not None else None, memory)
        return Faults(workers, in_order(script, *lines), rules)


@dataclass
class FaultyWorld:
    """*world*, *copies* times behind a router."""

    world: World
    copies: int
    router: str
    faults: FaultRules

    def run(self, recorder: Recorder | None = None, *, breaks: bool = True) -> Simulation:
        """Under all invariants; with *breaks* off as if there were no such thing as a fault."""
        world = self.world
        modules, edges, _ = PIPELINES[world.pipeline]
        setups, tables = [], {}
        for copy in range(self.copies):
            for i, group in enumerate(world.placement):
                name = "+".join(group)
                tables |= dict.fromkeys(group, world.timings[i]["device"])
                setups.append(
                    WorkerSetup(
                        group,
                        POLICIES[world.policies[i]](),
                        limit=world.limits[i],
                        intake=world.intakes[i],
                        timing=world._timing(i, f"{name}.{copy}"),
                        device=f"gpu{copy}",
                        name=f"{name}.{copy}",
                    )
                )
        n = len(world.placement)
        delays = {
            (source, setups[i].name): (lambda task, seconds=seconds: seconds)
            for i, seconds in enumerate(world.delays * self.copies)
            if seconds
            for source in [None, *[setup.name for setup in setups]]
        }
        contention = {
            (setups[n * copy + a].name, setups[n * copy + b].name): (host, device)
            for copy in range(self.copies)
            for a, b, host, device in world.contention
            if a != b
        }
        return simulate(
            Pipeline(modules, edges),
            setups,
            world.requests(),
            estimate=lambda module, size: world.estimate_error * tables[module][size],
            recorder=recorder,
            router=lambda workers: Dispatcher(workers, ROUTERS[self.router]()),
            stop_at=world.stop_at,
            faults=self.faults.of if breaks else None,
            contention=contention,
            delays=delays,
        )


ENGINE_POLICIES: dict[str, Any] = {
    "andes": Andes,
    "anything": lambda: Anything(7),
    "edf-llm": EDFLLM,
    "fastserve": FastServe,
    "orca": Orca,
    "sarathi": Sarathi,
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "vtc": VTC,
}


SLO = TokenDeadlines(3.0, 1.5, 0.045, 1e-6, Linear().prefill)


@dataclass
class FaultyEngines:
    """Engines behind a router; *rows* are (gap, prompt, output)."""

    policy: str
    copies: int
    router: str
    ahead: bool
    host: bool
    caching: bool
    drafts: int
    blocks: int
    noise: int | None
    rows: list[tuple[float, int, int]]
    stop_at: float | None
    faults: FaultRules

    def requests(self) -> list[TokenRequest]:
        now, made = 0.0, []
        for i, (gap, prompt, output) in enumerate(self.rows):
            now += gap
            made.append(TokenRequest(i, now, {"llm": (prompt, output)}, {"llm": output}, slo=8.0))
        return made

    def run(self, log: Recorder | None = None, *, breaks: bool = True) -> tuple[ServingLoop, list[TokenRequest]]:
        times = Linear()
        limits = {"blocks": self.blocks, "block_size": 4, "max_sequences": 6, "enable_prefix_caching": self.caching}
        drafts = 0 if self.ahead else self.drafts
        view = view_of(times, EngineLimits(**limits, num_speculative_tokens=drafts))
        host = None
        if (self.ahead or self.host) and self.policy != "anything":  # which a busy host lets idle for too long
            host = Host(lambda n: 0.002, 0.001, ahead=self.ahead, begins=0.003)
        workers: list[TokenWorker] = []
        for copy in range(self.copies):
            own = type(view)(
                view.stage,
                view.limits,
                estimate_prefill=partial(prefill_of_some, times),
                estimate_decode=times.decode,
                estimate_step=times.step,
                slo=SLO,
                name=f"engine.{copy}",
            )
            policy: TokenPolicy = ENGINE_POLICIES[self.policy]()
            worker = TokenWorker(view.stage, policy, own, device=f"gpu{copy}", host=host)
            if drafts:
                worker.speculation = Speculation(drafts, (0.6,) * drafts, seed=3)
            workers.append(worker)
        dice = random.Random(self.noise)
        draw = (lambda: dice.uniform(0.8, 1.25)) if self.noise is not None else None
        executor = SimExecutor(lambda worker: TokenTiming(times, draw))
        executor.breaks = breaks
        checker = InvariantChecker(log or Log())
        router = Dispatcher(workers, ROUTERS[self.router]())
        faults = self.faults.of(workers) if breaks else None
        loop = ServingLoop([view.stage], workers, executor, checker, router=router, fleet=faults)
        checker.watch(loop)
        sent = self.requests()
        play(loop, iter(sent))
        if self.stop_at is not None:
            executor.call_at(self.stop_at, loop.stop)
        for _ in range(200_000):
            if executor.calendar.peek() == math.inf:
                break
            executor.calendar.step()
        else:
            raise AssertionError(f"the run does not come to an end: it is {executor.now():g} s")
        checker.finish()
        return loop, sent


seconds = st.sampled_from([0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0])
kinds = st.sampled_from(["fail", "crash", "pause", "slow", "late", "lost"])


def prefill_of_some(times: Linear, tokens: int, *more: float) -> float:
    """What a prefill takes; as of profiles, nothing is known of less than one token."""
    assert tokens >= 1, f"a prefill of {tokens} tokens"
    return times.prefill(tokens, *more)


@st.composite
def fault_rules(draw: st.DrawFn, engines: bool = False) -> FaultRules:
    row = st.tuples(
        st.floats(0.0, 12.0, allow_subnormal=False) | st.sampled_from([0.0, 0.25, 1.0, 3.0]),
        kinds,
        st.integers(0, 3),
        seconds | st.just(math.inf),
        st.sampled_from([1.5, 2.0, 4.0]),
    )
    again = st.none() | st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.1, 1.0]))
    memory = st.none() | st.tuples(st.integers(2, 4), seconds if engines else st.none() | seconds)
    return FaultRules(
        script=draw(st.lists(row, max_size=5)),
        drawn=draw(st.none() | st.tuples(st.sampled_from([1.0, 3.0, 10.0]), st.sampled_from([0.1, 0.5, 2.0]))),
        seed=draw(st.integers(0, 99)),
        detect=draw(st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.0])),
        retry=draw(again),
        out_of_memory=draw(memory),
    )


@st.composite
def faulty_worlds(draw: st.DrawFn, most: int = 20) -> FaultyWorld:
    policies = sorted(set(POLICIES) - {"anything"})
    return FaultyWorld(
        world=draw(worlds(policies=policies, most=most)),
        copies=draw(st.integers(1, 3)),
        router=draw(st.sampled_from(sorted(ROUTERS))),
        faults=draw(fault_rules()),
    )


@st.composite
def faulty_engines(draw: st.DrawFn, most: int = 15) -> FaultyEngines:
    gaps = st.sampled_from([0.0, 0.0, 0.02, 0.1, 0.5, 2.0])
    row = st.tuples(gaps, st.integers(1, 60), st.integers(1, 30))
    return FaultyEngines(
        policy=draw(st.sampled_from(sorted(ENGINE_POLICIES))),
        copies=draw(st.integers(1, 3)),
        router=draw(st.sampled_from(sorted(ROUTERS))),
        ahead=draw(st.booleans()),
        host=draw(st.booleans()),
        caching=draw(st.booleans()),
        drafts=draw(st.sampled_from([0, 0, 2])),
        blocks=draw(st.sampled_from([25, 40, 400])),
        noise=draw(st.none() | st.integers(0, 9)),
        rows=draw(st.lists(row, min_size=1, max_size=most)),
        stop_at=draw(st.none() | st.none() | st.sampled_from([0.5, 3.0])),
        faults=draw(fault_rules(engines=True)),
    )
