"""Simulated time of an LLM engine that decides ahead (`servetwin.core.llm.serving.async_engine`).

Two steps may be in hand. A step begins when the host has launched it (`Host.beginning` seconds after it was decided)
and the step before it is over, whichever is later, and is not over before the host has launched all of it. What the
engine does between two steps is the host's, beside the device, and no part of this. Now and then the host stands
still while it launches a step (`TokenTiming.stalls`); of that the device sees what is longer than the step that runs.
Launches take longer at some times than at others (`TokenTiming.slowdown`).
What a step takes depends on how much was computed just before (`TokenTiming.recent_load`).
Where processes of their own launch (`Host.told`), they begin with a step when they have launched the one before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.worker import Host

from ..time.calendar import Calendar, Timer
from .lane import TokenTiming

Done = Callable[[TokenBatch], None]


class AheadLane:
    """An engine on the calendar; each of its steps is a call there."""

    def __init__(self, calendar: Calendar, timing: TokenTiming, host: Host) -> None:
        self.calendar = calendar
        self.seconds = timing.seconds
        self.prefills = timing.prefills or timing.draw
        self.stalls = timing.stalls
        self.recent_load = timing.recent_load
        self.slowdown = timing.slowdown
        self.host = host
        self.apart = host.told is not None
        self.launched = 0.0  # until when processes of their own launch, if they do
        self.last = 0.0  # when the last step that is known of ends
        self.decode = 0  # the sequences that decode in it
        self.timing = timing
        # By the number of sequences that decode, where nothing else is to be done: what the host takes until such a
        # step begins and is launched; from which context to which one line gives its seconds.
        self.hosts: dict[int, tuple[float, float]] = {}
        self.lines: dict[int, tuple[float, float, float, float]] = {}
        self._steps: deque[tuple[TokenBatch, Done, Timer]] = deque()

    def run(self, batch: TokenBatch, done: Done) -> None:
        """Compute *batch* when its turn comes; call *done* when it is over."""
        end = self.begin(batch, self.calendar.clock())
        self._steps.append((batch, done, Timer(self.calendar, end, self._end)))

    def begin(self, batch: TokenBatch, now: float, seconds: float | None = None) -> float:
        """The host begins to launch *batch* now; gives when it will be over. *seconds* is what it takes before noise,
        if that is known already."""
        last, host = self.last, self.host
        stall = 0.0
        if self.stalls is not None:
            stall = self.stalls(now, bool(batch.prefill) or batch.decode < self.decode)
            self.decode = batch.decode
        if last <= now:
            stall = 0.0  # it came while there was nothing to do
        plain = not batch.prefill and batch.regrouped is None and type(host) is Host
        known = self.hosts.get(batch.size) if plain else None
        if known is None:
            known = host.beginning(batch), host.launching(batch)
            if plain:
                self.hosts[batch.size] = known
        begins, launching = known
        if self.slowdown is not None:
            slowdown = self.slowdown(now)
            if launching > begins:
                stall = 0.0  # what launches take at other times has them in it
            begins *= slowdown
            launching *= slowdown
        asked = now
        if self.apart:  # as if it had been asked later, if those that launch are still at the step before
            asked = max(now, self.launched - host.telling(batch))
        ready = asked + begins + stall
        start = batch.start = ready if ready > last else last
        batch.launched = launched = asked + launching + stall
        if self.apart:
            self.launched = launched
        if seconds is not None:
            draw = self.prefills if batch.prefill else self.timing.draw
            if draw is not None:
                seconds *= draw()
        elif batch.prefill or self.timing.counted:
            seconds = self.seconds(batch)
        else:
            seconds = self._decodes(batch)
        if self.recent_load is not None:
            prompt = batch.prefilled
            seconds = self.recent_load(start, seconds, prompt, prompt + batch.decode)
        self.last = end = max(start + seconds, launched)
        return end

    def _decodes(self, batch: TokenBatch) -> float:
        """Seconds of a step in which all of *batch* decode, with noise, as `TokenTiming.seconds` gives them."""
        size, context, draw = batch.size, batch.context, self.timing.draw
        line = self.lines.get(size)
        if line is None or not line[0] <= context < line[3]:
            line = self.lines[size] = (context, *self.timing.times.straight(size, context))
        seconds = line[1] + line[2] * context
        return seconds if draw is None else seconds * draw()

    def _end(self) -> None:
        batch, done, _ = self._steps.popleft()
        done(batch)

    # -- steps that somebody else goes through (`ahead_runs`, `ahead_columns`) -------------------------------

    def free_until(self) -> float | None:
        """If one step is in hand and its end is what happens next: when something else happens after it."""
        if len(self._steps) != 1:
            return None
        until = self.calendar.next_time_after(self._steps[0][2])
        return until if until is not None and until > self.last else None

    def take_over(self) -> None:
        """Somebody else sees to the end of the step in hand, which is what happens next."""
        self.calendar.take_first(self._steps.popleft()[2])

    def take_out(self, other: object) -> bool:
        """Take the only step in hand and *other* off the calendar, if nothing else stands there; whether that was so.
        Somebody else sees to its end then."""
        if len(self._steps) != 1 or not self.calendar.take_out(self._steps[0][2], other):
            return False
        self._steps.clear()
        return True

    def give_back(self, batch: TokenBatch, end: float, done: Done) -> None:
        """*batch*, which somebody else has begun, ends then, and after all others in hand."""
        self.last = end
        self._steps.append((batch, done, Timer(self.calendar, end, self._end)))
