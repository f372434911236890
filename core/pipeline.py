"""Modules, and the graph of them that a request passes through.

A request takes all plain edges that leave a module. Where edges have a probability, it may take one of them instead:
to skip something, to go one of several ways, or back to try again, a bounded number of times.

A pipeline says what depends on what. Where modules run is another matter: a *placement* groups neighbouring
modules into stages, and each worker serves one stage. NeuStream gives each module a worker of its own;
Clockwork has one worker for the whole pipeline. Both are the same pipeline.

>>> sd = Pipeline.chain(Module("clip"), Module("unet", loop=True), Module("vae"), Module("safety"))
>>> [stage.name for stage in sd.stages([["clip"], ["unet"], ["vae", "safety"]])]
['clip', 'unet', 'vae+safety']
>>> whole, = sd.stages([["clip", "unet", "vae", "safety"]])
>>> whole.loop, whole.before, whole.after
('unet', ('clip',), ('vae', 'safety'))

Code that fails one time in three is written again, twice at most:

>>> agent = Pipeline(
...     [Module("write", loop=True), Module("execute"), Module("judge")],
...     [("write", "execute"), Edge("execute", "write", probability=1 / 3, most=2), ("execute", "judge")],
... )
>>> agent.likely
('write', 'execute', 'judge')
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .arithmetic import float_sum
from .errors import BadInput

#: Ways through a graph that are looked at to see whether all its joins are fed.
MOST_PATHS = 4096


@dataclass(frozen=True, slots=True)
class StepActions:
    """What a policy may do with the steps (iterations) of a loop, and what the result is worth then.

    *quality* are pairs (share, quality) in rising order, the last with share 1: what a result is worth if the network
    ran in that share of the steps that were asked for, in straight lines between. A policy may go down to the first
    share, and to no fewer than *min_steps*. With *reuse* a step may take the network's last prediction again.

    Where a branch leaves the loop, *confidence* says that a policy chooses who takes it, and holds pairs (confidence,
    quality): the part of its quality that a result keeps if its request does not, by how good it is thought to be.

    >>> actions = StepActions(quality=((0.5, 0.8), (1.0, 1.0)), min_steps=12)
    >>> actions.fewest(50), actions.fewest(20), actions.fewest(10)
    (25, 12, 10)
    >>> actions.worth(25, 50), round(actions.worth(40, 50), 2)
    (0.8, 0.92)
    """

    quality: tuple[tuple[float, float], ...]
    min_steps: int = 1
    reuse: bool = False
    confidence: tuple[tuple[float, float], ...] = ()

    def fewest(self, asked: int) -> int:
        """The fewest steps in which the network must run, of so many that are *asked* for."""
        share = math.ceil(self.quality[0][0] * asked - 1e-9)
        return min(asked, max(self.min_steps, share))

    def worth(self, ran: int, asked: int) -> float:
        """The quality of a result for which the network *ran* in so many steps of those that were *asked* for. Below
        the first share it is that of the first."""
        return _between(self.quality, ran / asked)

    def kept(self, confidence: float) -> float:
        """The part of its quality that a result keeps which is thought to be so good."""
        return _between(self.confidence, confidence)


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at *at*, in straight lines between *points*; before the first of them its own, and after the last."""
    (start, value), *rest = points
    for after, more in rest:
        if at < after:
            return value + (more - value) * max(0.0, at - start) / (after - start)
        start, value = after, more
    return value


@dataclass(frozen=True, slots=True)
class Module:
    """A compute stage as users know it. A *loop* module runs many iterations per request.

    Where several plain edges come together, a request's visit begins when it has come along "all" of them, or each
    time that it comes along "any". *actions* say what a policy may do with the iterations of a loop (None: nothing).
    """

    name: str
    loop: bool = False
    join: Literal["all", "any"] = "all"
    actions: StepActions | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge from *source* to *target*, taken with a *probability* instead of the other edges of its source.

    *most* bounds how often one request takes it; an edge that leads back needs such a bound. Once it is used up, the
    other edges are taken in its place.
    """

    source: str
    target: str
    probability: float
    most: int | None = None

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Branch:
    """An `Edge` between stages."""

    edge: Edge
    target: Stage


@dataclass(eq=False)
class Stage:
    """Neighbouring modules that one worker serves together, and where requests go from there.

    A stage has one loop module at most. What stands *before* the loop runs with a request's first iteration,
    what stands *after* it with its last; a stage without a loop runs all its modules once, one after the other.
    *rest* holds every module that a request has still to pass once it has left this stage, *hops* the longest
    number of transfers to the end; where the path is not certain, both are of the likeliest one, without any retry.

    *next* are the stages that follow, *branches* those that may be taken instead, *likely* where a request most
    likely goes. *inputs* is how many transfers a visit waits for (0: it begins with the request's arrival). *again*
    says that a request may come more than once. *actions* say what a policy may do with the steps of its loop.
    """

    name: str
    modules: tuple[str, ...]
    loop: str | None
    before: tuple[str, ...]
    after: tuple[str, ...]
    next: list[Stage] = field(default_factory=list, repr=False)
    inputs: int = 0
    rest: tuple[str, ...] = ()
    hops: int = 0
    branches: list[Branch] = field(default_factory=list, repr=False)
    again: bool = False
    likely: list[Stage] = field(default_factory=list, repr=False)
    actions: StepActions | None = None


class Pipeline:
    """A directed graph of modules; edges are (from, to) pairs of module names, or `Edge` where they are not certain.

    Raises `BadInput` if a name is used twice, an edge names an unknown module, the graph has a cycle that is not
    bounded, probabilities do not fit, or a join would wait for ever.
    """

    def __init__(self, modules: Sequence[Module], edges: Iterable[tuple[str, str] | Edge], name: str = "") -> None:
        self.name = name
        self.modules: dict[str, Module] = {}
        for module in modules:
            if module.name in self.modules:
                raise BadInput(f"module {module.name!r} stands twice in the pipeline", where=name or None)
            self.modules[module.name] = module
        if not self.modules:
            raise BadInput("a pipeline needs at least one module", where=name or None)
        self.successors: dict[str, list[str]] = {m: [] for m in self.modules}
        self.predecessors: dict[str, list[str]] = {m: [] for m in self.modules}
        self.branches: dict[str, list[Edge]] = {m: [] for m in self.modules}
        for edge in edges:
            a, b = (edge.source, edge.target) if isinstance(edge, Edge) else edge
            for end in (a, b):
                if end not in self.modules:
                    known = ", ".join(self.modules)
                    raise BadInput(f"edge {a} -> {b} names unknown module {end!r}", right=f"one of {known}")
            if isinstance(edge, Edge):
                self.branches[a].append(edge)
            else:
                self.successors[a].append(b)
                self.predecessors[b].append(a)
        order = self._topological(self.successors)
        self._back = self._edges_back()
        ahead = {m: [*self.successors[m], *(e.target for e in self._forward(m))] for m in self.modules}
        self._order = self._topological(ahead) if any(self.branches.values()) else order
        self._entries = [m for m in order if not self.predecessors[m] and m not in self._jumped_to()]
        self.likely = self._likely()
        if any(self.branches.values()) or any(m.join == "any" for m in self.modules.values()):
            self._check_joins()

    @classmethod
    def chain(cls, *modules: Module, name: str = "") -> Pipeline:
        """A pipeline in which each module feeds the next."""
        names = [m.name for m in modules]
        return cls(modules, list(itertools.pairwise(names)), name)

    def _topological(self, successors: Mapping[str, Sequence[str]]) -> list[str]:
        missing = dict.fromkeys(self.modules, 0)
        for m in itertools.chain.from_iterable(successors.values()):
            missing[m] += 1
        ready = [m for m, n in missing.items() if n == 0]
        order: list[str] = []
        while ready:
            m = ready.pop(0)
            order.append(m)
            for s in successors[m]:
                missing[s] -= 1
                if missing[s] == 0:
                    ready.append(s)
        if len(order) < len(self.modules):
            stuck = ", ".join(m for m in self.modules if m not in order)
            right = "a loop module, an edge with a probability and a bound, or no cycle"
            raise BadInput(f"the pipeline has a cycle through {stuck}", right=right)
        return order

    # -- paths that are not certain -----------------------------------------------------------------------

    def _edges_back(self) -> set[Edge]:
        """Checks the uncertain edges; gives those that lead back."""
        back: set[Edge] = set()
        ahead = {m: set(s) for m, s in self.successors.items()}
        for m, edges in self.branches.items():
            for edge in edges:
                if not 0.0 < edge.probability <= 1.0:
                    raise BadInput(f"edge {edge} has probability {edge.probability:g}", right="above 0, at most 1")
                if edge.most is not None and edge.most < 1:
                    raise BadInput(f"edge {edge} is taken {edge.most} times at most", right="1 or more")
                if edge.target in self.successors[m] or sum(e.target == edge.target for e in edges) > 1:
                    raise BadInput(f"edge {edge} stands twice", right="one edge between two modules")
                if m in _reach(ahead, edge.target):
                    back.add(edge)
                    if edge.most is None:
                        raise BadInput(f"edge {edge} leads back without a bound", right="most: 3, say")
                else:
                    ahead[m].add(edge.target)
            total = float_sum(e.probability for e in edges)
            if total > 1.0 + 1e-9:
                raise BadInput(
                    f"the edges that leave {m} have probabilities of {total:g} together", right="1 at most"
                )
        return back

    def _forward(self, module: str) -> list[Edge]:
        return [e for e in self.branches[module] if e not in self._back]

    def _jumped_to(self) -> set[str]:
        return {e.target for m in self.modules for e in self._forward(m)}

    def follow(self, module: str) -> list[str]:
        """Where a request most likely goes from *module*, retries left out."""
        edges = self._forward(module)
        best = max(edges, key=lambda e: e.probability, default=None)
        if best is None or best.probability < 1.0 - float_sum(e.probability for e in edges):
            return self.successors[module]
        return [best.target]

    def _likely(self) -> tuple[str, ...]:
        """The modules that a request most likely passes."""
        reached = set(self._entries)
        for m in self._order:
            if m in reached:
                reached.update(self.follow(m))
        return tuple(m for m in self._order if m in reached)

    def inputs(self, module: str) -> int:
        """How many transfers a visit to *module* waits for."""
        feeders = len(self.predecessors[module])
        if module in self._entries:
            return 0
        return max(feeders, 1) if self.modules[module].join == "all" else 1

    def _check_joins(self) -> None:
        """Send a request along every path; whether it takes an edge back once or more does not matter to joins."""
        asked = [m for m in self.modules if self.branches[m]]
        options: list[list[Edge | None]] = [
            [
                *self.branches[m],
                *(
                    [None]
                    if float_sum(e.probability for e in self.branches[m]) < 1 - 1e-9
                    or all(e.most is not None for e in self.branches[m])
                    else []
                ),
            ]
            for m in asked
        ]
        if math.prod(map(len, options)) > MOST_PATHS:
            raise BadInput(f"there are more than {MOST_PATHS} paths through the pipeline", right="fewer branches")
        for edges in itertools.product(*options):
            self._check_route(dict(zip(asked, edges, strict=True)))

    def _check_route(self, route: dict[str, Edge | None]) -> None:
        held: dict[str, int] = {}
        tokens = list(self._entries)
        taken: set[Edge] = set()
        while tokens:
            m = tokens.pop(0)
            edge = route.get(m)
            if edge is not None and (edge not in self._back or edge not in taken):
                taken.add(edge)
                tokens.append(edge.target)
                continue
            for after in self.successors[m]:
                held[after] = held.get(after, 0) + 1
                if held[after] >= self.inputs(after):
                    held[after] = 0
                    tokens.append(after)
        for m, n in held.items():
            if n:
                via = ", ".join(str(e) for e in route.values() if e is not None) or "plain edges only"
                what = f"{m} waits for {self.inputs(m)} inputs and gets {n} on the way by {via}"
                raise BadInput(what, where=self.name or None, right=f"join: any at {m}, or edges that feed it")

    def stages(self, placement: Sequence[Sequence[str]]) -> list[Stage]:
        """Group the modules into stages as *placement* says and link them, in order from source to sink.

        Raises `BadInput` unless every module stands in exactly one group, each group is a path of the graph that
        is entered only at its head and left only at its tail, and no group holds two loops.
        """
        stages: dict[str, Stage] = {}
        for group in placement:
            for name in group:
                if name not in self.modules:
                    raise BadInput(f"unknown module {name!r} in a placement", right=", ".join(self.modules))
                if name in stages:
                    raise BadInput(f"module {name!r} is placed twice")
            stage = self._stage(tuple(group))
            stages.update(dict.fromkeys(group, stage))
        unplaced = [m for m in self.modules if m not in stages]
        if unplaced:
            raise BadInput(f"no worker serves {', '.join(unplaced)}", right="every module placed once")
        ordered = list({id(stages[m]): stages[m] for m in self._order}.values())
        for stage in ordered:
            tail = stage.modules[-1]
            stage.next = [stages[m] for m in self.successors[tail]]
            stage.branches = [Branch(edge, stages[edge.target]) for edge in self.branches[tail]]
            stage.inputs = self.inputs(stage.modules[0])
        for stage in reversed(ordered):
            stage.likely = [stages[m] for m in self.follow(stage.modules[-1])]
            later = {m for s in stage.likely for m in (*s.modules, *s.rest)}
            stage.rest = tuple(m for m in self._order if m in later)
            stage.hops = max((s.hops + 1 for s in stage.likely), default=0)
        around = {m: [*self.successors[m], *(e.target for e in self.branches[m])] for m in self.modules}
        for stage in ordered:
            head = stage.modules[0]
            merges = self.modules[head].join == "any" and len(self.predecessors[head]) > 1
            if merges or (self._back and any(head in _reach(around, m) for m in around[head])):
                for m in _reach(around, head) if merges else (head,):
                    stages[m].again = True
        return ordered

    def _stage(self, group: tuple[str, ...]) -> Stage:
        if not group:
            raise BadInput("a worker serves no module", right="at least one module per worker")
        for a, b in itertools.pairwise(group):
            jumps = self.branches[a] or any(e.target == b for edges in self.branches.values() for e in edges)
            if self.successors[a] != [b] or self.predecessors[b] != [a] or jumps:
                raise BadInput(f"{a} and {b} cannot share a stage", right="neighbours on an unbranched path")
        loops = [m for m in group if self.modules[m].loop]
        if len(loops) > 1:
            raise BadInput(f"stage {'+'.join(group)} holds two loops: {', '.join(loops)}", right="one at most")
        cut = group.index(loops[0]) if loops else 0
        return Stage(
            name="+".join(group),
            modules=group,
            loop=loops[0] if loops else None,
            before=group[:cut] if loops else (),
            after=group[cut + 1 :] if loops else group,
            actions=self.modules[loops[0]].actions if loops else None,
        )


def _reach(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """What can be reached from *start*, itself included."""
    found = {start}
    todo = [start]
    while todo:
        for after in graph[todo.pop()]:
            if after not in found:
                found.add(after)
                todo.append(after)
    return found
