"""Engines that share a device: while the other one's step runs, a step gets on more slowly, at a measured rate.

The rate goes by the kind (prefill or decode) and the size of both steps. Steps are taken one by one here: the
neighbour may change at any of them. An engine alone on its device never comes this way (`servetwin.sim.llm.lane`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.worker import Host

from ..time.calendar import Calendar, Moment
from .lane import TokenTiming

Kind = Literal["prefill", "decode"]


class Load(NamedTuple):
    """What a step is to a neighbour: its kind, and its size (tokens of a prefill, sequences of a decode step)."""

    kind: Kind
    size: int


def load_of(batch: TokenBatch) -> Load:
    """The load of *batch*; a mixed step counts as a prefill of all its tokens."""
    if batch.prefill:
        return Load("prefill", sum(tokens for _, tokens, _ in batch.prefill) + batch.decode)
    return Load("decode", batch.decode)


@dataclass(frozen=True)
class RateTable:
    """Rates by the sizes of a step (*own*) and of the neighbour's (*others*): ``rates[i][j]`` at ``own[i]``,
    ``others[j]``. Linear between those sizes; beyond them as at the nearest.

    >>> RateTable((1, 3), (4,), ((0.5,), (0.7,))).at(2, 9)
    0.6
    """

    own: Sequence[int]
    others: Sequence[int]
    rates: Sequence[Sequence[float]]

    def at(self, size: int, other: int) -> float:
        i, x = _place(self.own, size)
        j, y = _place(self.others, other)
        low = self.rates[i][j] + (self.rates[i][min(j + 1, len(self.others) - 1)] - self.rates[i][j]) * y
        up = self.rates[min(i + 1, len(self.own) - 1)]
        high = up[j] + (up[min(j + 1, len(self.others) - 1)] - up[j]) * y
        return low + (high - low) * x


def _place(knots: Sequence[int], x: int) -> tuple[int, float]:
    """The knot below *x*, and how far *x* is on the way to the next."""
    i = bisect_right(knots, x) - 1
    if i < 0:
        return 0, 0.0
    if i >= len(knots) - 1:
        return len(knots) - 1, 0.0
    return i, (x - knots[i]) / (knots[i + 1] - knots[i])


KINDS: tuple[Kind, ...] = ("prefill", "decode")

#: By the kind of a step and that of the neighbour's.
EngineRates = Mapping[tuple[Kind, Kind], RateTable]

#: The phases of a lane.
NOTHING, WAITING, COMPUTING = range(3)


class SharedTokenLane(Moment):
    """An engine with a neighbour on its device, and its own calendar event.

    A step waits until the engine is ready for it (the time between two steps is the host's, and disturbs nobody), and
    then computes: *left* undisturbed seconds of it pass at the rate that the neighbour's step in flight leaves it.

    With *host*, which decides ahead, a second step may be in hand; it waits for the first, and for the host's launch.
    """

    def __init__(self, calendar: Calendar, timing: TokenTiming, rates: EngineRates, host: Host | None = None) -> None:
        super().__init__(calendar)
        self.timing = timing
        self.rates = rates
        self.neighbour: SharedTokenLane | None = None
        self.host = host
        self.behind: tuple[TokenBatch, Callable[[TokenBatch], None], float] | None = None  # and when it was decided
        self.batch: TokenBatch | None = None
        self.done: Callable[[TokenBatch], None] | None = None
        self.load: Load | None = None  # of the step that computes
        self.phase = NOTHING
        self.due = -1.0
        self.ready = 0.0  # when the engine can begin its next step
        self.began = 0.0
        self.left = 0.0  # undisturbed seconds of the step, at `updated`
        self.updated = 0.0
        self.rate = 1.0

    def run(self, batch: TokenBatch, done: Callable[[TokenBatch], None]) -> None:
        """Compute one step of *batch*; call *done* when it is over."""
        now: float = self.env.now
        if self.batch is not None:
            self.behind = batch, done, now
            return
        if self.host is not None:
            self.ready = now + self.host.beginning(batch)
        self._take(batch, done, now)

    def _take(self, batch: TokenBatch, done: Callable[[TokenBatch], None], now: float) -> None:
        self.batch, self.done, self.began = batch, done, now
        self.left = self.timing.seconds(batch)
        if self.ready > now:
            self.phase = WAITING
            self._place_at(self.ready)
        else:
            self._begin(now)

    def _begin(self, now: float) -> None:
        assert self.batch is not None
        if self.host is not None:
            self.batch.start = now
        self.phase, self.load, self.updated = COMPUTING, load_of(self.batch), now
        self.rate = self._rate()
        self._place_at(now + self.left / self.rate)
        if self.neighbour is not None:
            self.neighbour.disturbed()

    def _rate(self) -> float:
        other = self.neighbour.load if self.neighbour is not None else None
        if other is None or self.load is None:
            return 1.0
        return self.rates[self.load.kind, other.kind].at(self.load.size, other.size)

    def disturbed(self) -> None:
        """The neighbour's step has begun or ended."""
        if self.phase != COMPUTING:
            return
        rate = self._rate()
        if rate == self.rate:
            return
        now: float = self.env.now
        self.left = max(0.0, self.left - (now - self.updated) * self.rate)
        self.updated, self.rate = now, rate
        self._place_at(now + self.left / rate)

    def _place_at(self, when: float) -> None:
        self.due = when
        self.env.place(self, when)

    def fire(self) -> None:
        """The calendar has come to this lane: its phase ends, unless a neighbour has moved that since."""
        now, batch, done = self.due, self.batch, self.done
        if now != self.env.now or self.phase == NOTHING or batch is None or done is None:
            return  # placed before the neighbour disturbed it
        if self.phase == WAITING:
            self._begin(now)
            return
        self.phase, self.load, self.batch = NOTHING, None, None
        batch.took = now - self.began
        if self.host is None:
            self.ready = now + self.timing.times.between(batch.size)
        elif self.behind is not None:
            (following, then, decided), self.behind = self.behind, None
            self.ready = decided + self.host.beginning(following)
            self._take(following, then, now)
        if batch.keep_ends and batch.times > 1:
            batch.ends = [now]
        done(batch)
        if self.neighbour is not None:
            self.neighbour.disturbed()
