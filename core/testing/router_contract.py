"""The contract of a router, and whether it keeps it: what ``servetwin check ROUTER`` holds it to.

A router sends requests to three workers of one stage, under first come, first served, through crowds with and without
gaps. Of each run it must be true that all invariants hold and every request ends; that a new router with the same
seed sends the same again, wherever things lie in memory; that its code reads no clock, draws only from the seed that
it is given, does no input or output; that nothing its objects share is changed, and nothing that it sees is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput, PolicyFault, ServeTwinError
from ..invariants.checker import InvariantChecker
from ..isolation.code_inspection import named, raised_at
from ..isolation.integrity import held
from ..pipeline import Module, Pipeline
from ..policy import WorkerView
from ..routing import Router, WorkerState
from ..serving.batch_worker import BatchWorker
from ..serving.client import Client
from ..serving.dispatch import Dispatcher
from ..serving.loop import ServingLoop
from .conduct import Ear, Shared, loaded, uses
from .contract import ContractBroken, scattered
from .jobs import MODULE, Job
from .promises import RULE
from .scenarios import TABLE, spread
from .timeline import Ends, InTurn, Played, Timeline, books

#: Workers of the system.
WORKERS = 3


@dataclass
class KeptByRouter:
    """What was found of a router that keeps its contract: how often it was asked, by run."""

    router: str
    asked: list[int] = field(default_factory=list)


class _Heard:
    """Asks *router*, hears what its code does, and keeps what it said."""

    def __init__(self, router: Any, loud: bool) -> None:
        self.router, self.said = router, list[tuple[float, int, str | None]]()
        self.ear = Ear(router) if loud else None
        for name in ("start", "route", "bind"):
            setattr(router, name, self._listening(name, getattr(router, name)))

    def _listening(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*given: Any) -> Any:
            try:
                answer = method(*given) if self.ear is None else self.ear.hear(method, *given)
            except PolicyFault:  # perhaps what would have ended the process, which is told below
                if self.ear is None or self.ear.found is None:
                    raise
            if self.ear is not None and self.ear.found is not None:
                what, file, line = self.ear.found
                told = named(self.router, (file, line) if file else None, name)
                raise PolicyFault(f"{told}: it {what} (right would be: {RULE})")
            if name == "route":
                self.said.append((given[2], given[0].id, answer.name if isinstance(answer, WorkerState) else None))
            elif name == "bind" and isinstance(answer, tuple) and len(answer) == 2:
                self.said.append((given[2], answer[0].id, getattr(answer[1], "name", None)))
            return answer

        return asked


def hold_router(make: Callable[[], Any], called: str = "this") -> KeptByRouter:
    """Hold the routers that *make* makes to the contract. Raises `ContractBroken`; `BadInput` if these are none."""
    with held() as intact:
        first = make()
        if not isinstance(first, Router):
            raise BadInput(f"{called} gives {first!r}", right="a router")
        kind = type(first)
        found = KeptByRouter(named(first, method="route"))
        used = uses(kind) or loaded(kind)
        if used is not None:
            what, file, line = used
            raise ContractBroken(f"{named(first, (file, line))}: it {what} (right would be: {RULE})")
        shared = Shared(kind)
        for number, gap in enumerate((0.0, 0.01, 0.05)):
            played, said = _run(make, gap, loud=True)
            changed = shared.changed()
            if changed is not None:
                right = "state in self, made in __init__ or start"
                what = f"it changed {changed} (right would be: {right})"
                raise ContractBroken(f"{found.router}: {what}", played.drawn())
            for seed in (2 * number, 2 * number + 1):  # of three workers, the first by chance is often the same
                with scattered(seed):
                    _, again = _run(make, gap, loud=False)
                _same(found.router, said, again, played)
            found.asked.append(len(said))
        put = intact.changed()
        if put:
            raise ContractBroken(f"{found.router}: it changed {put[0][0]}, which is ServeTwin's")
    return found


def _same(router: str, said: Sequence[tuple[Any, ...]], again: Sequence[tuple[Any, ...]], played: Played) -> None:
    """Raise `ContractBroken` at the first request that *router* sent to a worker in one run and elsewhere *again*."""
    for a, b in zip(said, again, strict=False):
        if a != b:
            what = f"at {a[0]:g} s request {a[1]} goes to {a[2]}, or request {b[1]} to {b[2]} (at {b[0]:g} s)"
            raise ContractBroken(f"{router}: a new object does not decide the same: {what}", played.drawn())


def _run(make: Callable[[], Any], gap: float, *, loud: bool) -> tuple[Played, Sequence[tuple[Any, ...]]]:
    """What a new router sends where, in a run in which a request comes every *gap* seconds or so."""
    played, router = Played(), make()
    heard = _Heard(router, loud)
    (stage,) = Pipeline([Module(MODULE, loop=True)], []).stages([[MODULE]])

    def estimate(module: str, batch: int) -> float:
        return TABLE[batch - 1]

    views = [WorkerView(stage, estimate, limit=3, name=f"worker{i}", slo_factor=3.0) for i in range(WORKERS)]
    workers = [BatchWorker(stage, InTurn(), view, device=f"gpu{i}") for i, view in enumerate(views)]
    steps = spread(60, 1, 12, 7)
    jobs = [Job(n, at=gap * i * (1 + i % 3) / 2, slo=0.5 + 0.1 * n) for i, n in enumerate(steps)]
    requests = [job.request(i) for i, job in enumerate(sorted(jobs, key=lambda job: job.at))]
    played.sent = {request.id: (request.arrival, request.deadline) for request in requests}
    try:
        with books():
            clock, checker = Timeline(played), InvariantChecker(Ends(played))
            loop = ServingLoop([stage], workers, clock, checker, router=Dispatcher(workers, router, seed=7))
            checker.watch(loop)
            Client(loop, iter(requests))
            while clock.step():
                pass
            if loop.live:
                raise PolicyFault(f"{len(loop.live)} requests were never sent anywhere, or never ended")
            loop.look_over()
            checker.finish()
    except (Exception, SystemExit) as error:
        told = str(error)
        if not isinstance(error, ServeTwinError):
            at = raised_at([router], error)
            if at is None:
                raise
            told = f"{named(router, at[1:3])}: the router failed in {at[3]}: {type(error).__name__}: {error}"
        if "(" not in told.partition(":")[0]:
            told = f"{named(router, method='route')}: {told}"
        raise ContractBroken(told, played.drawn()) from error
    return played, heard.said


__all__ = ["KeptByRouter", "hold_router"]
