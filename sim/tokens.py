"""Simulated time of LLM engines: how long a step takes, and a place on the calendar for each engine.

A step takes as long as its computation, which a latency model gives, after the time that the engine needs between two
steps. Decode steps that a policy lets repeat are one calendar event, up to the next event of anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappush
from typing import Any, Protocol

import simpy
from servetwin.core.token_engine import TokenBatch
from simpy.events import NORMAL

from .calendar import Calendar


class StepTimes(Protocol):
    """Seconds of engine steps on a device, as `servetwin.profiles.tokens.TokenTable` gives them."""

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        """A step that computes *tokens* prompt tokens, in chunks whose squared lengths sum to *squares* and whose
        lengths times the tokens before them sum to *context*, and gives *batch* sequences, of which *decode_context*
        tokens are computed, a token each."""

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        """(constant, slope, until): a decode step takes ``constant + slope * x`` for x from *context* to *until*."""

    def between(self, sequences: int) -> float:
        """Between the end of a step of so many sequences and the start of the next."""


@dataclass
class TokenTiming:
    """What the steps of one engine take.

    *draw* gives the next factor on a step's computation, if there is noise, *prefills* that of steps that prefill
    (None: *draw* does). *swap* gives the seconds in which so many
    blocks of KV move between device and host (None: no time). *preparing* is how long the engine stands still for
    each prompt that it computes for the first time.
    """

    times: StepTimes
    draw: Callable[[], float] | None = None
    swap: Callable[[int], float] | None = None
    prefills: Callable[[], float] | None = None
    preparing: float = 0.0

    def prefill(self, batch: TokenBatch) -> float:
        """Seconds of a step that prefills, before noise."""
        seconds = self._computing(batch)
        if self.preparing:
            seconds += self.preparing * sum(not before and not task.preemptions for task, _, before in batch.prefill)
        return seconds

    def _computing(self, batch: TokenBatch) -> float:
        pieces = batch.prefill
        if len(pieces) == 1:
            ((_, n, before),) = pieces
            return self.times.step(n, float(n * n), float(n * before), batch.decode, batch.context)
        tokens = squares = context = 0
        for _, n, before in pieces:
            tokens += n
            squares += n * n
            context += n * before
        return self.times.step(tokens, float(squares), float(context), batch.decode, batch.context)


class TokenLane(simpy.Event):
    """An engine on the calendar: its own event, placed anew for each step or run of steps."""

    def __init__(self, calendar: Calendar, timing: TokenTiming) -> None:
        self.env: Calendar = calendar
        self._ok = True
        self._value = None
        self._again: list[Callable[[Any], None]] = [self._fire]
        self.callbacks = self._again
        self.timing = timing
        self.draw = timing.draw
        self.straight = timing.times.straight
        self.between = timing.times.between
        self.ready = 0.0  # when the engine can begin its next step

    def run(self, batch: TokenBatch, done: Callable[[TokenBatch], None]) -> None:
        """Compute *batch*; call *done* when it is over."""
        env, draw = self.env, self.draw
        now: float = env._now
        self.batch, self.done = batch, done
        start = self.ready
        if start < now:
            start = now
        if batch.prefill:
            seconds = self.timing.prefill(batch)
            draw = self.timing.prefills or draw
        else:
            a, b, until = self.straight(batch.decode, batch.context)
            seconds = a + b * batch.context
        if batch.swapped and self.timing.swap is not None:
            seconds += self.timing.swap(batch.swapped)
        if draw is not None:
            seconds *= draw()
        end = start + seconds
        took = start - now + seconds
        size = batch.size
        between = self.between(size)
        queue = env._queue
        if batch.times > 1:
            # As long as nothing else happens before the next step would begin.
            horizon = queue[0][0] if queue else float("inf")
            repeat = batch.repeat
            assert repeat is not None
            times, limit, drift = batch.times, repeat.limit, repeat.drift
            context = batch.context
            count = 1
            ends: list[float] = []
            while count < times and end < horizon and end < limit + count * drift:
                ends.append(end)
                context += size
                if context >= until:
                    a, b, until = self.straight(size, context)
                seconds = a + b * context
                if draw is not None:
                    seconds *= draw()
                start = end + between
                took = start - end + seconds
                end = start + seconds
                count += 1
            batch.count = count
            if batch.keep_ends:
                ends.append(end)
                batch.ends = ends
        batch.took = took
        self.ready = end + between
        heappush(queue, (end, NORMAL, next(env._eid), self))

    def _fire(self, _: simpy.Event) -> None:
        self.callbacks = self._again
        self.done(self.batch)
