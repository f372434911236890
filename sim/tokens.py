"""Simulated time of LLM engines: how long a step takes, and a place on the calendar for each engine.

A step takes the host's time between two steps and the time of its computation, which a latency model gives. Decode
steps that a policy lets repeat are one calendar event, up to the next event of anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappush
from typing import Any, Protocol

import simpy
from servetwin.core.token_engine import TokenBatch
from simpy.events import NORMAL

from .calendar import Calendar


class TokenModel(Protocol):
    """Seconds of engine steps on a device. *between* is the host's time for each step, which passes before it.

    A model may also have ``swap(blocks)``, the seconds in which that many blocks move between device and host, and
    ``line(batch, context)``, giving (a, b, until): a decode step of that batch takes ``a + b * context`` seconds as
    long as the context stays below *until*. With it decode steps cost little to simulate.
    """

    between: float

    def prefill(self, total: int, lengths: Sequence[int]) -> float:
        """A step that computes whole prompts of these *lengths*, *total* in all."""

    def decode(self, batch: int, context: int) -> float:
        """A decode step of *batch* requests whose computed tokens sum to *context*."""

    def mixed(self, chunks: Sequence[tuple[int, int]], batch: int, context: int) -> float:
        """A step with *chunks* (tokens, context before) and, if *batch* is not 0, decode."""


class TokenTiming:
    """What the steps of one engine take. *draw* gives the next factor on a step's computation, if there is noise."""

    def __init__(self, model: TokenModel, draw: Callable[[], float] | None = None) -> None:
        self.model = model
        self.draw = draw
        self.line: Callable[[int, int], tuple[float, float, float]] = getattr(model, "line", self._point)
        self.swap: Callable[[int], float] | None = getattr(model, "swap", None)

    def _point(self, batch: int, context: int) -> tuple[float, float, float]:
        return self.model.decode(batch, context), 0.0, context + 1

    def step(self, batch: TokenBatch) -> float:
        """Seconds that the computation of a step takes, before noise."""
        if not batch.prefill:
            a, b, _ = self.line(batch.decode, batch.context)
            seconds = a + b * batch.context
        elif batch.decode or any(before for _, _, before in batch.prefill):
            chunks = [(tokens, before) for _, tokens, before in batch.prefill]
            seconds = self.model.mixed(chunks, batch.decode, batch.context)
        else:
            lengths = [tokens for _, tokens, _ in batch.prefill]
            seconds = self.model.prefill(sum(lengths), lengths)
        if batch.swapped and self.swap is not None:
            seconds += self.swap(batch.swapped)
        return seconds


class TokenLane(simpy.Event):
    """An engine on the calendar: its own event, placed anew for each step or run of steps."""

    def __init__(self, calendar: Calendar, timing: TokenTiming) -> None:
        self.env: Calendar = calendar
        self._ok = True
        self._value = None
        self._again: list[Callable[[Any], None]] = [self._fire]
        self.callbacks = self._again
        self.timing = timing
        self.batch: TokenBatch | None = None

    def run(self, batch: TokenBatch, done: Callable[[TokenBatch], None]) -> None:
        """Compute *batch*; call *done* when it is over."""
        env, timing = self.env, self.timing
        start: float = env._now
        self.batch, self.done = batch, done
        draw, between = timing.draw, timing.model.between
        took = timing.step(batch)
        if draw is not None:
            took *= draw()
        took += between
        queue = env._queue
        if batch.times > 1:
            # As long as nothing else happens before the next step would begin.
            horizon = queue[0][0] if queue else float("inf")
            repeat = batch.repeat
            assert repeat is not None
            times, limit, drift = batch.times, repeat.limit, repeat.drift
            size, context = batch.decode, batch.context
            a, b, until = timing.line(size, context)
            count = 1
            ends: list[float] | None = [] if batch.keep_ends else None
            end = start + took
            while count < times and end < horizon and end < limit + count * drift:
                if ends is not None:
                    ends.append(end)
                context += size
                if context >= until:
                    a, b, until = timing.line(size, context)
                took = a + b * context
                if draw is not None:
                    took *= draw()
                took += between
                end += took
                count += 1
            batch.count = count
            if ends is not None:
                ends.append(end)
                batch.ends = ends
        else:
            end = start + took
        batch.took = took
        heappush(queue, (end, NORMAL, next(env._eid), self))

    def _fire(self, _: simpy.Event) -> None:
        self.callbacks = self._again
        batch = self.batch
        assert batch is not None
        self.done(batch)
