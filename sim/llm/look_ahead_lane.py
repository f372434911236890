"""Engines beside other engines: decode steps on end are one event, whatever the others do meanwhile.

What happens at one engine concerns another when a request is sent there, and not before. So a run of decode steps is
taken up to the next event that is no engine's, as if the others stood still, and cut short when a request comes
(`LookAheadLane.cut_short`): it ends then with the step under way. Which way was gone shows in nothing but the number
of batches. Nobody may look at the engine in between, which `may_look_ahead` makes sure of.
"""

from __future__ import annotations

from bisect import bisect_left

from servetwin.core import Recorder, RunFolder, ServingLoop
from servetwin.core.llm.serving.worker import TokenWorker

from ..time.calendar import Calendar
from .lane import TokenLane, TokenTiming


def may_look_ahead(loop: ServingLoop) -> bool:
    """Whether nothing leads from one engine of *loop* to another but requests that are sent: requests are at one
    place at a time and are not handed over from engine to engine, engines neither come nor go, the recorder hears
    what it is told and no more, and all policies and routers come with ServeTwin. (Of peers those read no more than
    the requests there and what is left of each, which is right at any time; how full a KV cache is, say, is only
    known between an engine's events.)"""
    return (
        sum(isinstance(worker, TokenWorker) for worker in loop.workers) > 1
        and not loop.forks
        and not loop.handovers
        and loop.fleet is None
        and (loop.dispatcher is None or not loop.dispatcher.could_write)
        and type(loop.recorder) in (Recorder, RunFolder)
        and not any(worker.doubted for worker in loop.workers)
    )


class LookAheadLane(TokenLane):
    """An engine whose runs of steps go on while other engines' steps end."""

    def __init__(self, calendar: Calendar, timing: TokenTiming) -> None:
        super().__init__(calendar, timing)
        self.next_time = self._next_time

    def _next_time(self) -> float:
        """When something happens that may stop it. With noise, or if nobody keeps the ends of steps, a run could not
        be cut short: then that is when anything happens."""
        plain = self.env.next_time()
        self.sure = plain
        if self.draw is not None or not self.batch.keep_ends:
            return plain
        return self.env.next_time_besides(LookAheadLane)

    def cut_short(self) -> None:
        """A request comes now: the run in hand ends with the step under way."""
        batch = self.batch
        if batch is None or batch.count == 1 or batch.ends is None:
            return
        ends: list[float] = batch.ends
        last = bisect_left(ends, self.env.now)
        if last >= len(ends) - 1:
            return
        del ends[last + 1 :]
        batch.count = last + 1
        self.end = end = ends[last]
        batch.took = end - (ends[last - 1] if last else batch.start)
        self.ready = end + self.between(batch.size)
        if not self.firing:
            self.place(self, end)

    def fire(self) -> None:
        if self.batch is not None and self.end == self.env.now:  # else it was placed before it was cut short
            super().fire()
