"""Random small worlds for the property tests: a pipeline, its placement, policies, times and requests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness import Simulation, Stepping, WorkerSetup, simulate
from hypothesis import strategies as st
from servetwin.core import Decision, Module, Pipeline, Policy, Recorder, Repeat, Request, WorkerView
from servetwin.policies.diffusion.clockwork import Clockwork
from servetwin.policies.diffusion.deadline_degree import DeadlineDegree
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.diffusion.fewer_steps import FewerSteps
from servetwin.policies.diffusion.fixed_degree import FixedDegree
from servetwin.policies.diffusion.from_similar import FromSimilar
from servetwin.policies.diffusion.lsf import LSF
from servetwin.policies.diffusion.neustream import NeuStream
from servetwin.policies.diffusion.nexus import Nexus
from servetwin.policies.diffusion.shepherd import Shepherd
from servetwin.policies.diffusion.slack_batch import SlackBatch
from servetwin.policies.diffusion.slack_or_neustream import SlackOrNeuStream
from servetwin.policies.diffusion.srpt import SRPT
from servetwin.policies.diffusion.symphony import Symphony
from servetwin.policies.diffusion.tetriserve import TetriServe
from servetwin.sim import MeasuredTiming, TableTiming
from servetwin.sim.batch_lane import Rate


class Steps(Policy):
    """First come, first served, at step level: a full batch goes on as it is, and says so, while others wait."""

    def decide(self, view: WorkerView, now: float) -> Decision:
        run = [*view.running, *view.waiting][: view.limit]
        full = len(run) == view.limit or not view.waiting
        return Decision(run, repeat=Repeat(min(t.left for t in run)) if run and full else None)


POLICIES: dict[str, Callable[[], Policy]] = {
    "neustream-sticky": NeuStream,
    "neustream-front": lambda: NeuStream(requeue="front", handover=0.05),
    "neustream-bound": lambda: NeuStream(bound=2),
    "clockwork-tracked": Clockwork,
    "clockwork-table": lambda: Clockwork(pacing="table"),
    "deadline-degree": DeadlineDegree,
    "fcfs": FCFS,
    "fewer-steps": FewerSteps,
    "fixed-degree": FixedDegree,
    "from-similar": FromSimilar,
    "edf": EDF,
    "steps": Steps,
    "edf-keep": lambda: EDF(max_batch=2, drop_late=False),
    "lsf": LSF,
    "lsf-keep": lambda: LSF(max_batch=2, drop_late=False),
    "nexus": Nexus,
    "slack-batch": SlackBatch,
    "slack-batch-tight": lambda: SlackBatch(tight=1e9),
    "slack-or-neustream": SlackOrNeuStream,
    "shepherd": lambda: Shepherd(preempt=1.5),
    "srpt": SRPT,
    "srpt-drop": lambda: SRPT(max_batch=2, drop_late=True),
    "symphony": Symphony,
    "tetriserve": lambda: TetriServe(round_steps=2),
    "tetriserve-drop": lambda: TetriServe(drop_late=True),
}

#: name -> (modules, edges, placements)
PIPELINES: dict[str, tuple[list[Module], list[tuple[str, str]], list[list[list[str]]]]] = {
    "single": ([Module("a", loop=True)], [], [[["a"]]]),
    "chain": (
        [Module("a"), Module("b", loop=True), Module("c")],
        [("a", "b"), ("b", "c")],
        [[["a"], ["b"], ["c"]], [["a", "b"], ["c"]], [["a"], ["b", "c"]], [["a", "b", "c"]]],
    ),
    "two loops": (
        [Module("a", loop=True), Module("b"), Module("c", loop=True)],
        [("a", "b"), ("b", "c")],
        [[["a"], ["b"], ["c"]], [["a", "b"], ["c"]]],
    ),
    "diamond": (
        [Module("a"), Module("b", loop=True), Module("c"), Module("d", loop=True)],
        [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")],
        [[["a"], ["b"], ["c"], ["d"]]],
    ),
    "fork": (  # two exits
        [Module("a", loop=True), Module("b"), Module("c", loop=True)],
        [("a", "b"), ("a", "c")],
        [[["a"], ["b"], ["c"]]],
    ),
    "join": (  # two entries
        [Module("a", loop=True), Module("b"), Module("c")],
        [("a", "c"), ("b", "c")],
        [[["a"], ["b"], ["c"]]],
    ),
}


@dataclass
class World:
    pipeline: str
    placement: list[list[str]]
    policies: list[str]
    limits: list[int]
    intakes: list[str]
    timings: list[dict[str, Any]]  # plain or measured, by worker
    contention: list[tuple[int, int, Rate, Rate]]  # worker, other, host rate, device rate
    delays: list[float]  # transport to each worker
    noise: int | None  # seed
    arrivals: list[tuple[float, float, int]]  # gap, SLO, iterations
    estimate_error: float = 1.0
    stop_at: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def requests(self) -> list[Request]:
        modules = PIPELINES[self.pipeline][0]
        loops = [m.name for m in modules if m.loop]
        requests, now = [], 0.0
        for i, (gap, slo, steps) in enumerate(self.arrivals):
            now += gap
            requests.append(Request(i, now, slo, {m: steps + k for k, m in enumerate(loops)}))
        return requests

    def run(
        self, recorder: Recorder | None = None, *, stepping: bool = False, requests: list[Request] | None = None
    ) -> Simulation:
        modules, edges, _ = PIPELINES[self.pipeline]
        setups, tables = [], {}
        for i, group in enumerate(self.placement):
            policy = POLICIES[self.policies[i]]()
            name = "+".join(group)
            timing = self._timing(i, name)
            setup = WorkerSetup(
                group,
                Stepping(policy) if stepping else policy,
                limit=self.limits[i],
                intake=self.intakes[i],
                timing=timing,
            )
            device = self.timings[i]["device"]
            tables |= dict.fromkeys(group, device)
            setups.append(setup)
        names = ["+".join(g) for g in self.placement]
        n = len(names)
        return simulate(
            Pipeline(modules, edges),
            setups,
            self.requests() if requests is None else requests,
            estimate=lambda module, size: self.estimate_error * tables[module][size],
            recorder=recorder,
            stop_at=self.stop_at,
            contention={(names[a], names[b]): (h, d) for a, b, h, d in self.contention if a < n and b < n and a != b},
            delays={
                (source, name): (lambda task, seconds=seconds: seconds)
                for name, seconds in zip(names, self.delays, strict=False)
                if seconds
                for source in [None, *names]
            },
        )

    def _timing(self, i: int, name: str):
        draw = None
        if self.noise is not None:
            dice = random.Random(f"{self.noise}/{name}")
            draw = lambda: dice.uniform(0.8, 1.25)  # noqa: E731
        terms = dict(self.timings[i])
        device = terms.pop("device")
        if not terms:
            return TableTiming(device, draw=draw)
        return MeasuredTiming(device=device, **terms, **({"draw": draw} if draw else {}))


class SlowSpell:
    """The host is slow for a while."""

    until = 1.0

    def __call__(self, now: float) -> float:
        self.until = 1.0 if now < 1.0 else 3.0 if now < 3.0 else math.inf
        return 1.6 if self.until == 3.0 else 1.0


seconds = st.sampled_from([0.0625, 0.1, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.7])
sizes = 4


@st.composite
def tables(draw: st.DrawFn) -> list[float]:
    first = draw(seconds)
    return [float("nan"), *[first * draw(st.sampled_from([1.0, 1.0, 1.2, 1.5, 2.1])) for _ in range(sizes)]]


@st.composite
def timings(draw: st.DrawFn) -> dict[str, Any]:
    terms: dict[str, Any] = {"device": draw(tables())}
    if draw(st.booleans()):
        terms["host"] = draw(tables())
        terms["join"] = draw(st.sampled_from([0.0, 0.05]))
        terms["leave"] = draw(st.sampled_from([(0.0, 0.0), (0.01, 0.02)]))
        terms["cold"] = draw(st.sampled_from([(), (0.1,), (0.2, 0.1, 0.05)]))
        terms["cold_long"], terms["long_spell"] = draw(st.sampled_from([((), 1e9), ((0.3, 0.2), 2.0)]))
        terms["deciding"] = draw(st.sampled_from([0.0, 0.01]))
        terms["slow_spells"] = draw(st.sampled_from([None, SlowSpell()]))
        if draw(st.booleans()):
            terms["ahead"] = draw(tables())
    return terms


@st.composite
def worlds(draw: st.DrawFn, policies: list[str] | None = None, most: int = 25, stops: bool = True) -> World:
    pipeline = draw(st.sampled_from(sorted(PIPELINES)))
    placement = draw(st.sampled_from(PIPELINES[pipeline][2]))
    n = len(placement)

    def each(strategy: st.SearchStrategy) -> list:
        return [draw(strategy) for _ in range(n)]

    gaps = st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.25, 0.4, 1.0, 4.0])
    slos = st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 1e6])
    return World(
        pipeline=pipeline,
        placement=placement,
        policies=each(st.sampled_from(sorted(policies or POLICIES))),
        limits=each(st.integers(1, sizes)),
        intakes=each(st.sampled_from(["before", "after"])),
        timings=each(timings()),
        contention=draw(
            st.lists(
                st.tuples(
                    st.integers(0, n - 1),
                    st.integers(0, n - 1),
                    st.sampled_from([1.0, 0.7, 0.5, [1.0, 1.0, 0.8, 0.6]]),
                    st.sampled_from([1.0, 0.6, 0.5, [1.0, 0.9, 0.7, 0.5, 0.4]]),
                ),
                max_size=4,
            )
        ),
        delays=each(st.sampled_from([0.0, 0.0, 0.03, 0.1])),
        noise=draw(st.none() | st.integers(0, 9)),
        arrivals=draw(st.lists(st.tuples(gaps, slos, st.integers(1, 12)), min_size=1, max_size=most)),
        estimate_error=draw(st.sampled_from([1.0, 1.0, 0.9, 1.2])),
        stop_at=draw(st.none() | st.sampled_from([0.35, 2.0, 10.0])) if stops else None,
    )
