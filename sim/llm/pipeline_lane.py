"""Simulated time of an LLM engine whose layers stand on several devices, one stage after the other.

A step enters a stage when it has left the one before, its activations have been sent, and the stage is done with the
step before it. So with one step in flight all stages but one stand still, and with as many as there are stages the
slowest one sets the pace: what the others wait is the bubble. Steps of unequal length make more of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.host import Host, Stages

from ..time.calendar import Calendar, Timer
from .lane import TokenTiming

Done = Callable[[TokenBatch], None]


class PipelineLane:
    """An engine on the calendar; each of its steps is a call there."""

    def __init__(self, calendar: Calendar, timing: TokenTiming, host: Host, stages: Stages) -> None:
        self.calendar, self.seconds, self.host, self.stages = calendar, timing.seconds, host, stages
        self.free = [0.0] * len(stages.shares)  # when each stage is done with what it was given
        self._steps: deque[tuple[TokenBatch, Done, Timer]] = deque()

    def run(self, batch: TokenBatch, done: Done) -> None:
        """Compute *batch* when its turn comes; call *done* when it has left the last stage."""
        now, host, stages, free = self.calendar.clock(), self.host, self.stages, self.free
        batch.launched = now + host.launching(batch)
        hop = stages.hop + stages.hop_each * (batch.prefilled + batch.decode)
        seconds, there = self.seconds(batch), now + host.beginning(batch)
        spans = []
        for stage, share in enumerate(stages.shares):
            start = max(there, free[stage])
            if not stage:
                batch.start = start
            end = free[stage] = start + share * seconds
            spans.append((start, end))
            there = end + hop
        batch.stages = spans
        self._steps.append((batch, done, Timer(self.calendar, end, self._end)))

    def _end(self) -> None:
        batch, done, _ = self._steps.popleft()
        done(batch)
