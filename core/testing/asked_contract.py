"""The contracts of routers and autoscalers, and whether they are kept: what ``servetwin check NAME`` holds them to.

A router sends requests to three workers of one stage, under first come, first served, through crowds with and without
gaps; an autoscaler is asked at intervals how many of them there should be, of which none is there at first. Of each
run it must be true that all invariants hold and every request ends; that a new object with the same seed answers the
same again, wherever things lie in memory; that its code reads no clock, draws only from the seed that it is given,
does no input or output; that nothing its objects share is changed, and nothing that it sees is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput, PolicyFault, ServeTwinError
from ..fleets.fleet import Fleet, Rules
from ..invariants.checker import InvariantChecker
from ..isolation.code_inspection import named, raised_at
from ..isolation.integrity import held
from ..pipeline import Module, Pipeline, Stage
from ..policy import WorkerView
from ..request import Request
from ..routing import Router, WorkerState
from ..scaling.autoscaler import Autoscaler
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

#: What was asked in a run, and answered.
Said = Sequence[tuple[Any, ...]]


@dataclass
class Kept:
    """What was found of something that keeps its contract: where it is defined, and how often it was asked, by
    run."""

    name: str
    asked: list[int] = field(default_factory=list)


class _Heard:
    """Hears what the code of *thing* does in its *methods*, and keeps what *told* makes of each question and
    answer (None: nothing)."""

    def __init__(
        self, thing: Any, loud: bool, methods: Sequence[str], told: Callable[..., tuple[Any, ...] | None]
    ) -> None:
        self.thing, self.told, self.said = thing, told, list[tuple[Any, ...]]()
        self.ear = Ear(thing) if loud else None
        for name in methods:
            setattr(thing, name, self._listening(name, getattr(thing, name)))

    def _listening(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*given: Any) -> Any:
            try:
                answer = method(*given) if self.ear is None else self.ear.hear(method, *given)
            except PolicyFault:  # perhaps what would have ended the process, which is told below
                if self.ear is None or self.ear.found is None:
                    raise
            if self.ear is not None and self.ear.found is not None:
                what, file, line = self.ear.found
                told = named(self.thing, (file, line) if file else None, name)
                raise PolicyFault(f"{told}: it {what} (right would be: {RULE})")
            said = self.told(name, given, answer)
            if said is not None:
                self.said.append(said)
            return answer

        return asked


def _hold(
    make: Callable[[], Any],
    base: type,
    method: str,
    run: Callable[..., tuple[Played, Said]],
    differs: Callable[[tuple[Any, ...], tuple[Any, ...]], str],
    called: str,
) -> Kept:
    """Hold the objects of *base* that *make* makes, which are asked by *method* in each *run* (given *make*, seconds
    between requests, and whether it is heard). *differs* tells of two answers that they are not the same. Raises
    `ContractBroken`; `BadInput` if these are none."""
    with held() as intact:
        first = make()
        if not isinstance(first, base):
            word = getattr(base, "CALLED", "object")
            raise BadInput(f"{called} gives {first!r}", right=f"{'an' if word[0] in 'aeiou' else 'a'} {word}")
        kind = type(first)
        found = Kept(named(first, method=method))
        used = uses(kind) or loaded(kind)
        if used is not None:
            what, file, line = used
            raise ContractBroken(f"{named(first, (file, line))}: it {what} (right would be: {RULE})")
        shared = Shared(kind)
        for number, gap in enumerate((0.0, 0.01, 0.05)):
            played, said = run(make, gap, loud=True)
            changed = shared.changed()
            if changed is not None:
                right = "state in self, made in __init__ or start"
                what = f"it changed {changed} (right would be: {right})"
                raise ContractBroken(f"{found.name}: {what}", played.drawn())
            for seed in (2 * number, 2 * number + 1):  # of three workers, the first by chance is often the same
                with scattered(seed):
                    _, again = run(make, gap, loud=False)
                for a, b in zip(said, again, strict=False):
                    if a != b:
                        what = f"a new object does not decide the same: {differs(a, b)}"
                        raise ContractBroken(f"{found.name}: {what}", played.drawn())
            found.asked.append(len(said))
        put = intact.changed()
        if put:
            raise ContractBroken(f"{found.name}: it changed {put[0][0]}, which is ServeTwin's")
    return found


def _system(gap: float, played: Played) -> tuple[Stage, list[BatchWorker], list[Request]]:
    """Three workers of one stage, under first come, first served, and requests that come every *gap* seconds or
    so."""
    (stage,) = Pipeline([Module(MODULE, loop=True)], []).stages([[MODULE]])

    def estimate(module: str, batch: int) -> float:
        return TABLE[batch - 1]

    views = [WorkerView(stage, estimate, limit=3, name=f"worker{i}", slo_factor=3.0) for i in range(WORKERS)]
    workers = [BatchWorker(stage, InTurn(), view, device=f"gpu{i}") for i, view in enumerate(views)]
    steps = spread(60, 1, 12, 7)
    jobs = [Job(n, at=gap * i * (1 + i % 3) / 2, slo=0.5 + 0.1 * n) for i, n in enumerate(steps)]
    requests: list[Request] = [job.request(i) for i, job in enumerate(sorted(jobs, key=lambda job: job.at))]
    played.sent = {request.id: (request.arrival, request.deadline) for request in requests}
    return stage, workers, requests


@contextmanager
def _broken(thing: Any, method: str, played: Played) -> Iterator[None]:
    """Within this, an error that *thing*, asked by *method*, raises or causes is told as a broken contract."""
    try:
        yield
    except (Exception, SystemExit) as error:
        told = str(error)
        if not isinstance(error, ServeTwinError):
            at = raised_at([thing], error)
            if at is None:
                raise
            called = getattr(thing, "CALLED", "object")
            told = f"{named(thing, at[1:3])}: the {called} failed in {at[3]}: {type(error).__name__}: {error}"
        if "(" not in told.partition(":")[0]:
            told = f"{named(thing, method=method)}: {told}"
        raise ContractBroken(told, played.drawn() if played.bars else "") from error  # nothing ran: nothing to see


def _play(loop: ServingLoop, clock: Timeline, checker: InvariantChecker, requests: Iterable[Request]) -> None:
    """Serve *requests* to the end. Raises `PolicyFault` if some do not end."""
    checker.watch(loop)
    Client(loop, iter(requests))
    while clock.step():
        pass
    if loop.live:
        raise PolicyFault(f"{len(loop.live)} requests were never sent anywhere, or never ended")
    loop.look_over()
    checker.finish()


# -- routers --------------------------------------------------------------------------------------------------


def hold_router(make: Callable[[], Any], called: str = "this") -> Kept:
    """Hold the routers that *make* makes to the contract. Raises `ContractBroken`; `BadInput` if these are none."""
    return _hold(make, Router, "route", _run_router, _routed_otherwise, called)


def _routed_otherwise(a: tuple[Any, ...], b: tuple[Any, ...]) -> str:
    return f"at {a[0]:g} s request {a[1]} goes to {a[2]}, or request {b[1]} to {b[2]} (at {b[0]:g} s)"


def _told_of_router(name: str, given: tuple[Any, ...], answer: Any) -> tuple[Any, ...] | None:
    if name == "route":
        return given[2], given[0].id, answer.name if isinstance(answer, WorkerState) else None
    if name == "bind" and isinstance(answer, tuple) and len(answer) == 2:
        return given[2], answer[0].id, getattr(answer[1], "name", None)
    return None


def _run_router(make: Callable[[], Any], gap: float, *, loud: bool) -> tuple[Played, Said]:
    """What a new router sends where, in a run in which a request comes every *gap* seconds or so."""
    played, router = Played(), make()
    heard = _Heard(router, loud, ("start", "route", "bind"), _told_of_router)
    stage, workers, requests = _system(gap, played)
    with _broken(router, "route", played), books():
        clock, checker = Timeline(played), InvariantChecker(Ends(played))
        loop = ServingLoop([stage], workers, clock, checker, router=Dispatcher(workers, router, seed=7))
        _play(loop, clock, checker, requests)
    return played, heard.said


# -- autoscalers ----------------------------------------------------------------------------------------------


class _Fewest(Router):
    """Who has the fewest requests."""

    def route(self, request: Any, workers: Any, now: float) -> WorkerState:
        found: WorkerState = min(workers, key=lambda worker: worker.present)
        return found


def hold_autoscaler(make: Callable[[], Any], called: str = "this") -> Kept:
    """Hold the autoscalers that *make* makes to the contract. Raises `ContractBroken`; `BadInput` if these are
    none."""
    return _hold(make, Autoscaler, "want", _run_autoscaler, _wanted_otherwise, called)


def _wanted_otherwise(a: tuple[Any, ...], b: tuple[Any, ...]) -> str:
    return f"at {a[0]:g} s it wants {a[1]} replicas, or {b[1]} (at {b[0]:g} s)"


def _told_of_autoscaler(name: str, given: tuple[Any, ...], answer: Any) -> tuple[Any, ...] | None:
    return (given[1], answer) if name == "want" else None


def _run_autoscaler(make: Callable[[], Any], gap: float, *, loud: bool) -> tuple[Played, Said]:
    """What a new autoscaler wants when, in a run in which a request comes every *gap* seconds or so."""
    played, scaler = Played(), make()
    heard = _Heard(scaler, loud, ("start", "want"), _told_of_autoscaler)
    stage, workers, requests = _system(gap, played)
    with _broken(scaler, "want", played), books():
        clock, checker = Timeline(played), InvariantChecker(Ends(played))
        rules = Rules(0, WORKERS, 0, every=0.05, window=0.5, down_after=0.1)
        fleet = Fleet([[worker] for worker in workers], scaler, rules, lambda _: 0.1)
        loop = ServingLoop([stage], workers, clock, checker, router=Dispatcher(workers, _Fewest()), fleet=fleet)
        _play(loop, clock, checker, requests)
    return played, heard.said


__all__ = ["Kept", "hold_autoscaler", "hold_router"]
