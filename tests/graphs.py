"""Random pipelines for the property tests: modules in a row, side by side, one or the other, skipped, tried again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from harness import Simulation, WorkerSetup, simulate
from hypothesis import strategies as st
from servetwin.core import Edge, Module, Pipeline, Policy, Recorder, Request
from servetwin.core.serving.budget import Alone, Budget, equal, proportional
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.diffusion.neustream import NeuStream
from servetwin.sim.pool_lane import CallTimes

POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs": FCFS,
    "edf": EDF,
    "edf-keep": lambda: EDF(drop_late=False),
    "neustream": NeuStream,
}

Piece = tuple[str, str]  # first and last module
chances = st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0])


@dataclass
class Graph:
    """A pipeline in the making."""

    modules: list[Module] = field(default_factory=list)
    edges: list[tuple[str, str] | Edge] = field(default_factory=list)

    def module(self, draw: st.DrawFn, join: str = "all") -> str:
        name = f"m{len(self.modules)}"
        self.modules.append(Module(name, loop=draw(st.booleans()), join=join))
        return name

    def piece(self, draw: st.DrawFn, depth: int) -> Piece:
        kinds = ["single", "row", "fork", "either", "retry", "skip"]
        return getattr(self, draw(st.sampled_from(kinds if depth else kinds[:1])))(draw, depth - 1)

    def single(self, draw: st.DrawFn, depth: int) -> Piece:
        name = self.module(draw)
        return name, name

    def _link(self, a: str, b: str) -> None:
        self.edges.append((a, b))

    def row(self, draw: st.DrawFn, depth: int) -> Piece:
        one, two = self.piece(draw, depth), self.piece(draw, depth)
        self._link(one[1], two[0])
        return one[0], two[1]

    def fork(self, draw: st.DrawFn, depth: int) -> Piece:
        head = self.module(draw)
        sides = [self.piece(draw, depth) for _ in range(draw(st.integers(2, 3)))]
        tail = self.module(draw)
        for first, last in sides:
            self._link(head, first)
            self._link(last, tail)
        return head, tail

    def either(self, draw: st.DrawFn, depth: int) -> Piece:
        head, one, other = self.module(draw), self.piece(draw, depth), self.piece(draw, depth)
        tail = self.module(draw, join="any")
        self.edges.append(Edge(head, one[0], draw(chances)))
        self._link(head, other[0])
        self._link(one[1], tail)
        self._link(other[1], tail)
        return head, tail

    def skip(self, draw: st.DrawFn, depth: int) -> Piece:
        head, middle, tail = self.module(draw), self.piece(draw, depth), self.module(draw)
        self._link(head, middle[0])
        self._link(middle[1], tail)
        self.edges.append(Edge(head, tail, draw(chances)))
        return head, tail

    def retry(self, draw: st.DrawFn, depth: int) -> Piece:
        first, last = self.piece(draw, depth)
        check = self.module(draw)
        self._link(last, check)
        self.edges.append(Edge(check, first, draw(chances), draw(st.integers(1, 3))))
        return first, check


@dataclass
class World:
    graph: Graph
    threads: dict[str, int]  # modules that are tools
    policies: dict[str, str]
    seconds: dict[str, float]
    arrivals: list[tuple[float, float, int]]  # gap, SLO, iterations
    budget: tuple[str, bool, str] | None  # split, carry, forward
    seed: int

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(self.graph.modules, self.graph.edges)

    def requests(self) -> list[Request]:
        requests, now = [], 0.0
        loops = [m.name for m in self.graph.modules if m.loop]
        for i, (gap, slo, steps) in enumerate(self.arrivals):
            now += gap
            requests.append(Request(i, now, slo, dict.fromkeys(loops, steps)))
        return requests

    def run(self, recorder: Recorder | None = None, policies: dict[str, str] | None = None) -> Simulation:
        chosen = policies or self.policies
        setups = []
        for module in self.graph.modules:
            name, seconds = module.name, self.seconds[module.name]
            if name in self.threads:
                calls = CallTimes(name, "exponential", mean=seconds, seed=self.seed)
                setups.append(WorkerSetup([name], FCFS(), [seconds], threads=self.threads[name], calls=calls))
            else:
                setups.append(
                    WorkerSetup([name], POLICIES[chosen[name]](), [seconds, 1.3 * seconds], limit=4, device=name)
                )
        return simulate(
            self.pipeline,
            setups,
            self.requests(),
            recorder=recorder,
            budget=self._budget if self.budget else None,
            seed=self.seed,
        )

    def _budget(self, stages) -> Budget:
        split, carry, forward = self.budget
        alone = Alone(stages, self.seconds)
        allowance = {"none": None, "equal": equal(alone), "proportional": proportional(alone)}[split]
        left = lambda task: alone.after(task.request, task.stage)  # noqa: E731
        return Budget(allowance, carry=carry, forward=forward, left=left)


@st.composite
def worlds(draw: st.DrawFn, budgets: bool = True) -> World:
    graph = Graph()
    graph.piece(draw, 2)
    names = [m.name for m in graph.modules]
    plain = [m.name for m in graph.modules if not m.loop]
    tools = draw(st.lists(st.sampled_from(plain), unique=True, max_size=3)) if plain else []
    budget = st.tuples(
        st.sampled_from(["none", "equal", "proportional"]),
        st.booleans(),
        st.sampled_from(["always", "budget", "left"]),
    )
    arrivals = st.tuples(
        st.sampled_from([0.0, 0.01, 0.1, 0.4, 2.0]), st.sampled_from([0.5, 2.0, 5.0, 1e6]), st.integers(1, 4)
    )
    return World(
        graph,
        {t: draw(st.integers(1, 3)) for t in tools},
        {n: draw(st.sampled_from(sorted(POLICIES))) for n in names},
        {n: draw(st.sampled_from([0.0625, 0.1, 0.25, 1 / 3])) for n in names},
        draw(st.lists(arrivals, min_size=1, max_size=12)),
        draw(st.none() | budget) if budgets else None,
        draw(st.integers(0, 9)),
    )
