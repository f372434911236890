"""Modules, and the graph of them that a request passes through.

A pipeline says what depends on what. Where modules run is another matter: a *placement* groups neighbouring
modules into stages, and each worker serves one stage. NeuStream gives each module a worker of its own;
Clockwork has one worker for the whole pipeline. Both are the same pipeline.

>>> sd = Pipeline.chain(Module("clip"), Module("unet", loop=True), Module("vae"), Module("safety"))
>>> [stage.name for stage in sd.stages([["clip"], ["unet"], ["vae", "safety"]])]
['clip', 'unet', 'vae+safety']
>>> whole, = sd.stages([["clip", "unet", "vae", "safety"]])
>>> whole.loop, whole.before, whole.after
('unet', ('clip',), ('vae', 'safety'))
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .errors import BadInput


@dataclass(frozen=True, slots=True)
class Module:
    """A compute stage as users know it. A *loop* module runs many iterations per request."""

    name: str
    loop: bool = False


@dataclass(eq=False)
class Stage:
    """Neighbouring modules that one worker serves together, and where requests go from there.

    A stage has one loop module at most. What stands *before* the loop runs with a request's first iteration,
    what stands *after* it with its last; a stage without a loop runs all its modules once, one after the other.
    *rest* holds every module that a request has still to pass once it has left this stage, *hops* the longest
    number of hand-overs to the end.
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


class Pipeline:
    """A directed acyclic graph of modules; edges are (from, to) pairs of module names.

    Raises `BadInput` if a name is used twice, an edge names an unknown module, or the graph has a cycle.
    """

    def __init__(self, modules: Sequence[Module], edges: Iterable[tuple[str, str]], name: str = "") -> None:
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
        for a, b in edges:
            for end in (a, b):
                if end not in self.modules:
                    known = ", ".join(self.modules)
                    raise BadInput(f"edge {a} -> {b} names unknown module {end!r}", right=f"one of {known}")
            self.successors[a].append(b)
            self.predecessors[b].append(a)
        self._order = self._topological()

    @classmethod
    def chain(cls, *modules: Module, name: str = "") -> Pipeline:
        """A pipeline in which each module feeds the next."""
        names = [m.name for m in modules]
        return cls(modules, list(itertools.pairwise(names)), name)

    def _topological(self) -> list[str]:
        missing = {m: len(p) for m, p in self.predecessors.items()}
        ready = [m for m, n in missing.items() if n == 0]
        order: list[str] = []
        while ready:
            m = ready.pop(0)
            order.append(m)
            for s in self.successors[m]:
                missing[s] -= 1
                if missing[s] == 0:
                    ready.append(s)
        if len(order) < len(self.modules):
            stuck = ", ".join(m for m in self.modules if m not in order)
            raise BadInput(f"the pipeline has a cycle through {stuck}", right="a loop module, or no cycle")
        return order

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
            stage.next = [stages[m] for m in self.successors[stage.modules[-1]]]
            stage.inputs = len(self.predecessors[stage.modules[0]])
        for stage in reversed(ordered):
            later = {m for s in stage.next for m in (*s.modules, *s.rest)}
            stage.rest = tuple(m for m in self._order if m in later)
            stage.hops = max((s.hops + 1 for s in stage.next), default=0)
        return ordered

    def _stage(self, group: tuple[str, ...]) -> Stage:
        if not group:
            raise BadInput("a worker serves no module", right="at least one module per worker")
        for a, b in itertools.pairwise(group):
            if self.successors[a] != [b] or self.predecessors[b] != [a]:
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
        )
