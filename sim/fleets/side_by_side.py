"""Replicas side by side: each request goes where a router that looks says, and each replica is numbers.

All engines are at the time of the request that comes now: those of which a step has ended since the request before go
on up to now, and the others still compute. Whatever numbers do not do for (memory runs short, a prompt is too long,
the router asks for more than is kept) ends the attempt (`Whole`), and the run begins anew, on the calendar.

When something happens at the very instant of a request, the calendar tells what comes first: the end of a step that
began before the request before was sent comes before the request, that of one that began then or later after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from servetwin.core import Outcome, Recorder, ServingLoop, Summary
from servetwin.core.llm import TokenRequest
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.engine import TokenEngine
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.routing import Router, WorkerState
from servetwin.core.serving.client import Client

from ..llm.columns import fits
from ..llm.lane import NEVER
from ..llm.request_columns import TokenColumns
from .fed_engine import Alone, FedEngine, Whole, shown

if TYPE_CHECKING:
    from ..executor import SimExecutor

#: So many requests are read at a time.
READ = 1024
#: After so many what was counted is added up, and told.
TELL = 16 * READ


class SideBySide:
    """The engines *workers* on *executor*, behind *router*, which draws by *seed*.

    ``summary(worker)`` gives what counts at a worker. Raises `Whole` where numbers do not do.
    """

    def __init__(
        self,
        workers: Sequence[TokenWorker],
        executor: SimExecutor,
        router: Router,
        seed: int,
        source: TokenColumns,
        summary: Callable[[TokenWorker], TokenSummary],
    ) -> None:
        self.source, self.router, self.total = source, router, summary(workers[0])
        self.changed: list[set[WorkerState]] = []  # those that the router gave
        self.weighs = False
        self.loops: list[ServingLoop] = []
        self.engines: list[FedEngine] = []
        self.states: list[WorkerState] = []
        self._seat(workers, executor, summary)
        router.start(self.states, seed)
        for worker, fed in zip(workers, self.engines, strict=True):
            fed.weighs = self.weighs
            fed.begin(worker.policy.decide(worker.shown, 0.0))

    def _seat(
        self, workers: Sequence[TokenWorker], executor: SimExecutor, summary: Callable[[TokenWorker], TokenSummary]
    ) -> None:
        """Make the engines, and what the router sees of them."""
        source = self.source
        none = TokenColumns(source.module, (), (), (), (), slo=source.terms[""].slo, terms=source.terms)
        alike: dict[object, tuple[int, Alone]] = {}
        for place, worker in enumerate(workers):
            recorder = Recorder()
            recorder.summary, recorder.wants_token_times = summary(worker), True
            loop = ServingLoop([worker.stage], [worker], executor, recorder)
            engine = worker.engine
            if type(engine) is not TokenEngine or engine.booked or not fits(loop, executor, none):
                raise Whole
            number, alone = alike.setdefault(worker.alike(), (place, Alone(worker)))
            fed = FedEngine(engine, executor.token_lane(worker), Client(loop, none), none, alone)
            self.loops.append(loop)
            self.engines.append(fed)
            self.states.append(self._state(worker, fed, number))

    def _state(self, worker: TokenWorker, engine: FedEngine, number: int) -> WorkerState:
        """*worker* as the router sees it; *number* is that of the first that takes the same for the same."""
        module, alone = engine.engine.module, engine.alone

        def watch(changed: set[WorkerState], timed: bool) -> None:
            if not any(changed is one for one in self.changed):
                self.changed.append(changed)
            self.weighs |= timed

        def seconds(request: TokenRequest) -> float:
            return alone[request.tokens[module]]  # type: ignore[index]

        told = {"alone": seconds, "watch": watch, "alike": lambda: number}
        return WorkerState(**shown(worker, engine, **told, **self._seen_of(len(self.states))))

    def _seen_of(self, place: int) -> dict[str, Callable[[], Any]]:
        """What the router sees of the worker at that *place*, where that is not how it stands now."""
        return {}

    def play(self, ended: Counter[Outcome]) -> None:
        """Send all requests, and let time pass until all have ended. Meanwhile *ended*, which is empty, says now and
        then how many have."""
        try:
            self._send(ended)
        finally:
            ended.clear()
        self._finish()

    def _finish(self) -> None:
        """All requests have been sent."""
        for loop, engine in zip(self.loops, self.engines, strict=True):
            engine.finish()
            loop.look_over()
            loop.check_ended()

    def _send(self, ended: Counter[Outcome]) -> None:
        source, engines, states, route = self.source, self.engines, tuple(self.states), self.router.route
        places = {id(state): place for place, state in enumerate(states)}
        ends: list[tuple[float, int]] = []  # of steps under way, by when, and by engine
        moved: list[int] = []  # those at which something has changed since the router was asked
        number = 0
        while True:
            columns = source.read(READ)
            if not columns[0]:
                break
            for row in zip(*columns, strict=True):
                at = row[0]
                if ends and ends[0][0] <= at:
                    self._go_on(ends, moved, at)
                for changed in self.changed:
                    changed.update([states[place] for place in moved])
                request = source.request((number, *row))
                request.outputs = None  # nobody sees them
                place = places.get(id(route(request, states, at)), -1)
                if place < 0:
                    raise Whole
                if engines[place].feed(*row):
                    heappush(ends, (at, place))
                moved = [place]
                number += 1
            if not number % TELL:
                self._add_up()
                ended.clear()
                ended.update(self.total.outcomes)

    def _go_on(self, ends: list[tuple[float, int]], moved: list[int], at: float) -> None:
        """Let those go on whose step is over when a request comes *at* that time, and add them to *moved*."""
        engines, later = self.engines, []
        while ends and ends[0][0] <= at:
            when, place = heappop(ends)
            moved.append(place)
            engine = engines[place]
            if when == at:  # and it was known to be, before the request before was sent
                engine.settle()
                if engine.here():
                    later.append((at, place))
                continue
            when = engine.go_until(at)
            if when < NEVER:
                later.append((when, place))
        for end in later:
            heappush(ends, end)

    def _add_up(self) -> None:
        """Add up what replicas have counted since the last time: long runs put it away."""
        for loop in self.loops:
            loop.recorder.summary.hand_over(self.total)

    def count(self, summary: Summary) -> None:
        """Count in *summary* what came of all requests, once."""
        self._add_up()
        self.total.hand_over(summary)
