"""Replicas side by side behind a router that looks now and then: what it sees is *stale* until it looks again.

Between two looks, an epoch, where requests go hangs on what was seen at its beginning and on the requests alone. So
replicas need not go on from request to request: each is let go on when the router looks, with all that it was sent
meanwhile. Nor need they be in one process: those of others are known by what the router sees of them, which is
exchanged at each look. All processes draw and route all requests, and serve those of their own replicas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from servetwin.core import Outcome
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.routing import Router

from ..llm.lane import NEVER
from ..llm.request_columns import TokenColumns
from .fed_engine import Whole
from .side_by_side import READ, TELL, SideBySide

if TYPE_CHECKING:
    from ..executor import SimExecutor


class Sight(NamedTuple):
    """What a router sees of a replica: how many requests are *here*, and the seconds that is *left* of each (None if
    no router asks)."""

    here: int
    left: list[float] | None


#: Gives what there is to see of all replicas, in their order, for what there is of those of this process.
Exchange = Callable[[list[Sight]], Sequence[Sight]]


class Epochs(SideBySide):
    """As `SideBySide`; the *router* looks when a request comes and what it saw is *stale* seconds old. The replicas
    at the places *mine* are served here (None: all), and *exchange* tells how the others stand."""

    def __init__(
        self,
        workers: Sequence[TokenWorker],
        executor: SimExecutor,
        router: Router,
        seed: int,
        source: TokenColumns,
        summary: Callable[[TokenWorker], TokenSummary],
        *,
        stale: float,
        mine: Collection[int] | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.stale, self.exchange = stale, exchange
        self.mine = range(len(workers)) if mine is None else sorted(mine)
        self.sights: Sequence[Sight] = [Sight(0, [])] * len(workers)
        self.ends = [NEVER] * len(workers)  # by place, of the step under way at the last look, or when one begins
        super().__init__(workers, executor, router, seed, source, summary)

    def _seen_of(self, place: int) -> dict[str, Callable[[], Any]]:
        def left() -> list[float]:
            seconds = self.sights[place].left
            if seconds is None:
                raise Whole
            return seconds

        return {"here": lambda: self.sights[place].here, "left": left}

    def play(self, ended: Counter[Outcome]) -> None:
        """As of `SideBySide`; what *ended* says is of the replicas of this process."""
        try:
            self._send(ended)
        finally:
            ended.clear()
        self.loops = [self.loops[place] for place in self.mine]
        self.engines = [self.engines[place] for place in self.mine]
        self._finish()

    def _send(self, ended: Counter[Outcome]) -> None:
        source, engines, states, route = self.source, self.engines, tuple(self.states), self.router.route
        places = {id(state): place for place, state in enumerate(states)}
        mine, ends, stale = frozenset(self.mine), self.ends, self.stale
        number, looked, before = 0, -NEVER, -NEVER
        while True:
            columns = source.read(READ)
            if not columns[0]:
                break
            for row in zip(*columns, strict=True):
                at = row[0]
                if at - looked >= stale:
                    self._look(before, at)
                    looked = at
                request = source.request((number, *row))
                request.outputs = None  # nobody sees them
                place = places.get(id(route(request, states, at)), -1)
                if place < 0:
                    raise Whole
                if place in mine:
                    engines[place].feed(*row)
                    if ends[place] == NEVER:
                        ends[place] = at
                before = at
                number += 1
            if not number % TELL:
                self._go_until(before)  # else all requests of a long epoch would be kept
                self._add_up()
                ended.clear()
                ended.update(self.total.outcomes)

    def _look(self, before: float, at: float) -> None:
        """The router looks *at* that time, when a request comes; the one before came at *before*.

        Which of what happens at that very instant comes first, that request or the end of a step, hangs on whether
        the step began before the last request was sent (`servetwin.sim.fleets.side_by_side`): so each engine goes on
        to then first."""
        self._go_until(before)
        engines, ends, found = self.engines, self.ends, []
        for place in self.mine:
            engine, end = engines[place], ends[place]
            if end < at:
                end = engine.go_until(at)
            elif end == at:
                engine.settle()
                end = at if engine.here() else NEVER
            ends[place] = end
            found.append(Sight(engine.here(), engine.left() if engine.weighs else None))
            engine.seconds = None  # what was seen is not to change with what is sent
        self.sights = found if self.exchange is None else self.exchange(found)
        for changed in self.changed:
            changed.update(self.states)

    def _go_until(self, at: float) -> None:
        """Let those go on whose step is over before then, when a request has come."""
        engines, ends = self.engines, self.ends
        for place in self.mine:
            if ends[place] < at:
                ends[place] = engines[place].go_until(at)
