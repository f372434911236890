"""Simulated time of LLM engines: how long a step takes, and a place on the calendar for each engine.

A step takes as long as its computation, which a latency model gives, after the time that the engine needs between two
steps. Decode steps that a policy lets repeat are one calendar event, up to the next event of anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from servetwin.core.llm.batch import TokenBatch
from servetwin.profiles.llm.recent_load import RecentLoad

from ..time.calendar import Calendar, Moment

NEVER = float("inf")


class StepTimes(Protocol):
    """Seconds of engine steps on a device, as `servetwin.profiles.llm.step_table.TokenTable` gives them."""

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        """A step that computes *tokens* prompt tokens, in chunks whose squared lengths sum to *squares* and whose
        lengths times the tokens before them sum to *context*, and gives *batch* sequences, of which *decode_context*
        tokens are computed, a token each."""

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        """(constant, slope, until): a decode step takes ``constant + slope * x`` for x from *context* to *until*."""

    def between(self, sequences: int) -> float:
        """Between the end of a step of so many sequences and the start of the next."""


@dataclass
class Later:
    """*times* of an engine that was measured with a step decided while another ran, for one that decides each step
    when the last is over: each begins *seconds* later."""

    times: StepTimes
    seconds: float

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        return self.seconds + self.times.step(tokens, squares, context, batch, decode_context)

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        constant, slope, until = self.times.straight(batch, context)
        return constant + self.seconds, slope, until

    def between(self, sequences: int) -> float:
        return self.times.between(sequences)


@dataclass
class TokenTiming:
    """What the steps of one engine take.

    *draw* gives the next factor on a step's computation, if there is noise, *prefills* that of steps that prefill
    (None: *draw* does). *swap* gives the seconds in which so many
    blocks of KV move between device and host (None: no time). *preparing* is how long the engine stands still for
    each prompt that it computes for the first time. *stalls* tells for how many seconds the host of an engine that
    decides ahead stands still if it launches a step at a time, one that changes the batch or not
    (`servetwin.sim.time.noise.Stalls`; None: it never does), and *recent_load* what steps of such an engine take over
    *times*, by how much was computed lately. *slowdown* tells what launching a step takes
    over its mean at a time. With *counted* every step is asked for, none taken to be as one before it."""

    times: StepTimes
    draw: Callable[[], float] | None = None
    swap: Callable[[int], float] | None = None
    prefills: Callable[[], float] | None = None
    preparing: float = 0.0
    stalls: Callable[[float, bool], float] | None = None
    recent_load: RecentLoad | None = None
    slowdown: Callable[[float], float] | None = None
    counted: bool = False

    def seconds(self, batch: TokenBatch) -> float:
        """Seconds of one step, whichever it is, with noise."""
        draw = self.draw
        if batch.prefill:
            seconds, draw = self.prefill(batch), self.prefills or draw
        else:
            constant, slope, _ = self.times.straight(batch.size, batch.context)
            seconds = constant + slope * batch.context
        if batch.swapped and self.swap is not None:
            seconds += self.swap(batch.swapped)
        return seconds if draw is None else seconds * draw()

    def prefill(self, batch: TokenBatch) -> float:
        """Seconds of a step that prefills, before noise."""
        seconds = self.computing(batch)
        if self.preparing:
            seconds += self.preparing * sum(not before and not task.preemptions for task, _, before in batch.prefill)
        return seconds

    def computing(self, batch: TokenBatch) -> float:
        """Likewise, without what is to be prepared."""
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


class TokenLane(Moment):
    """An engine on the calendar: its own event, placed anew for each step or run of steps."""

    def __init__(self, calendar: Calendar, timing: TokenTiming) -> None:
        super().__init__(calendar)
        self.place, self.pass_to = calendar.place, calendar.pass_to
        self.next_time: Callable[[], float] = calendar.next_time
        self.sure = NEVER  # until then, all that is computed happens
        self.timing = timing
        self.draw = timing.draw
        self.prefills = timing.prefills or timing.draw
        self.prefill = timing.prefill if timing.preparing else timing.computing
        self.straight = timing.times.straight
        self.between = timing.times.between
        self.batch: Any = None  # in hand
        self.firing = False
        self.end = 0.0  # of the batch in hand
        self.ready = 0.0  # when the engine can begin its next step

    def run(self, batch: TokenBatch, done: Callable[[TokenBatch], None]) -> None:
        """Compute *batch*; call *done* when it is over."""
        before: float = self.env.now  # when the last step ended, as far as this batch goes
        self.batch, self.done = batch, done
        size, context = batch.size, batch.context
        start = self.ready if self.ready > before else before
        draw = self.draw
        if batch.prefill:
            seconds = self.prefill(batch)
            draw = self.prefills
        else:
            a, b, until = self.straight(size, context)
            seconds = a + b * context
        if batch.swapped and self.timing.swap is not None:
            seconds += self.timing.swap(batch.swapped)
        if draw is not None:
            seconds *= draw()
        end = start + seconds
        gap = self.between(size)
        if batch.times > 1:
            # As long as nothing else happens before the next step would begin.
            horizon = self.next_time()
            repeat = batch.repeat
            assert repeat is not None
            if draw is not None or batch.keep_ends or repeat.drift or until < NEVER or repeat.longest < NEVER:
                before, end = self._run_on(batch, end, gap, horizon)
            else:
                if repeat.limit < horizon:
                    horizon = repeat.limit
                count, times = 1, batch.times
                while end < horizon and count < times:
                    before = end
                    context += size
                    end = before + gap + (a + b * context)
                    count += 1
                batch.count = count
        batch.took = end - before
        self.ready = end + gap
        self.end = end
        if not self.firing:
            self.place(self, end)

    def _run_on(self, batch: TokenBatch, end: float, gap: float, horizon: float) -> tuple[float, float]:
        """Likewise, if steps are drawn, ends kept, or not all on one line. Gives the last two ends."""
        repeat, times, size, context, draw = batch.repeat, batch.times, batch.size, batch.context, self.draw
        assert repeat is not None
        limit, drift, longest, sure = repeat.limit, repeat.drift, repeat.longest, self.sure
        a, b, until = self.straight(size, context)
        before = batch.start
        count, any_length = 1, longest == NEVER
        ends = [end]
        while count < times and end < horizon and end < limit + count * drift:
            if not any_length and end - before > longest:
                break
            context += size
            if context >= until:
                if end >= sure:
                    break  # what may never be computed is not asked for: nobody may have measured it
                a, b, until = self.straight(size, context)
            before = end
            seconds = a + b * context
            if draw is not None:
                seconds *= draw()
            end = before + gap + seconds
            ends.append(end)
            count += 1
        batch.count = count
        if batch.keep_ends:
            batch.ends = ends
        return before, end

    def fire(self) -> None:
        """The step in hand is over."""
        self.firing = True
        while True:
            batch, self.batch = self.batch, None
            self.done(batch)
            if self.batch is None:
                break
            end = self.end
            if not self.pass_to(end):  # where nothing else comes before it, without a detour by the calendar
                self.place(self, end)
                break
        self.firing = False
