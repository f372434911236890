"""Decode steps on end of an engine that decides ahead, as numbers.

While all decode, nobody ends and the policy has said that it would decide so again
(`servetwin.core.policy.Repeat`), an engine with two steps in flight (`servetwin.core.llm.serving.async_engine`) goes
from step to step in the same way: the host launches a step, the one before it ends, the host does what lies between
two steps, and launches the next. `AheadRuns` goes through that without events, batches and questions, up to the next
event of anything else, and then leaves engine and lane with those steps in flight that would be.

Every number is computed by the same operations in the same order as in the engine and in `async_lane`;
`tests/sim/llm/test_ahead_runs.py` holds them together. A change there is a change here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from servetwin.core import Recorder, Repeat, ServingLoop, Summary
from servetwin.core.isolation.answers import check_repeat
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.async_engine import TokenEngineAhead
from servetwin.core.llm.serving.worker import Host

from .async_lane import AheadLane
from .lane import NEVER

if TYPE_CHECKING:
    from servetwin.core.llm import Step

#: Fewer steps than that are not worth it.
FEW = 3


def unheard(loop: ServingLoop) -> bool:
    """Whether nobody hears of single batches of *loop*, but only how many of each size there were."""
    recorder, summary = loop.recorder, loop.recorder.summary
    return (
        not recorder.wants_batches
        and loop.hear_batch == recorder.of_batches()
        and type(recorder).batch is Recorder.batch
        and type(summary).batch is Summary.batch
    )


def attach_runs(loop: ServingLoop, engine: TokenEngineAhead, lane: AheadLane) -> None:
    """Let *engine*, whose steps run on *lane*, go on without the calendar where nothing else stands there."""
    engine.pass_to = lane.calendar.pass_to
    launches = type(engine.host) is Host and engine.host.told is None
    if type(engine) is TokenEngineAhead and launches and unheard(loop):
        engine.go_on = AheadRuns(engine, lane).go_on


class Flying(NamedTuple):
    """A step in flight: when it was decided, the context before it, the free blocks then, when it begins, is launched
    and ends."""

    decided: float
    context: int
    free: int
    start: float
    launched: float
    end: float


class Run(NamedTuple):
    """So many *steps* on end. *ends* are of those that are over, the last of which *took* so long; the host heard of
    it at *settled*. *flying* are in flight. Up to *until* the host is at what lies between two steps, and then
    decides (infinite: it waits for the older of two)."""

    steps: int
    ends: list[float]
    settled: float
    took: float
    flying: tuple[Flying, ...]
    until: float


class AheadRuns:
    """The steps of *engine* on *lane*."""

    def __init__(self, engine: TokenEngineAhead, lane: AheadLane) -> None:
        self.engine, self.lane = engine, lane
        self._hosts: dict[int, tuple[float, float, float]] = {}  # by the sequences that decode

    def go_on(self, step: Step, now: float) -> float | None:
        """Go on from *now*, when the policy has decided *step*, that all decode. Gives the time at which it is to be
        asked again, infinite if the engine waits for what is in flight or is at what lies between two steps; None if
        it cannot go on by itself, and *step* is to be carried out."""
        engine, repeat = self.engine, step.repeat
        if not engine.leaving or engine.leaving[0] - engine.tick <= FEW or not engine.steady():
            return None
        until = self.lane.free_until()
        if until is None:
            return None
        if type(repeat) is not Repeat or type(repeat.times) is not int or type(repeat.limit) is not float:
            check_repeat(engine.worker.policy, repeat)
        assert repeat is not None
        if repeat.times < 1:
            check_repeat(engine.worker.policy, repeat)
        if repeat.longest < NEVER:
            return None
        view = engine.view
        times = min(repeat.times, engine.leaving[0] - engine.tick - 1)  # the step after that is somebody's last
        if (view.free_blocks - engine.headroom) * engine.size < view.decoding * (times + engine.size - 1):
            times = engine.affordable(times)
        if times < FEW:
            return None
        older = Flying(engine.flights[0].decided, 0, 0, 0.0, 0.0, self.lane.last)
        at = engine.tick, view.decoding, view.context, view.free_blocks
        run = self.run(older, now, *at, engine.settled, repeat, times, until)
        return self._leave(run, view.decoding)

    def run(
        self,
        older: Flying,
        now: float,
        tick: int,
        size: int,
        context: int,
        free: int,
        settled: float,
        repeat: Repeat,
        times: int,
        until: float,
    ) -> Run:
        """Up to so many *times*, or as *repeat* says, all *size* that decode do so again, from *now* on, when the
        host decides and *older* is in flight, *until* something else happens. *settled* is when the host heard of an
        end last; the rest is as the next step finds it. Leaves engine and calendar as they are."""
        lane, phases, block = self.lane, self.engine.phases, self.engine.size
        beginning, launching, between = self._host(size)
        stalls, slowdown, recent_load, draw = lane.stalls, lane.slowdown, lane.recent_load, lane.timing.draw
        straight, each = lane.timing.times.straight, lane.timing.counted
        limit, drift = repeat.limit, repeat.drift
        took, line_until = 0.0, -1.0
        constant = slope = 0.0
        ends: list[float] = []
        steps = 0
        if not each and size in lane.lines and lane.lines[size][0] <= context:
            _, constant, slope, line_until = lane.lines[size]
        while True:
            stall = 0.0
            if stalls is not None:
                stall = stalls(now, size < lane.decode)
                lane.decode = size
            begins, launches = beginning, launching
            if slowdown is not None:
                slow = slowdown(now)
                if launches > begins:
                    stall = 0.0
                begins *= slow
                launches *= slow
            over = older.end
            ready = now + begins + stall
            start = ready if ready > over else over
            launched = now + launches + stall
            if each or context >= line_until:
                constant, slope, line_until = straight(size, context)
            seconds = constant + slope * context
            if draw is not None:
                seconds *= draw()
            if recent_load is not None:
                seconds = recent_load(start, seconds, 0, size)
            end = max(start + seconds, launched)
            newer = Flying(now, context, free, start, launched, end)
            free -= phases[-(tick + steps) % block]
            context += size
            steps += 1
            if over >= until or over < launched:
                return Run(steps, ends, settled, took, (older, newer), NEVER)
            decided = older.decided
            took, settled = over - (decided if decided > settled else settled), over
            ends.append(over)
            older = newer
            rested = over + between
            if steps == times or rested >= until or rested >= end or rested >= limit + steps * drift:
                return Run(steps, ends, settled, took, (newer,), rested)
            now = rested

    def _host(self, size: int) -> tuple[float, float, float]:
        """Seconds of the host until a step of so many that decode can begin and is launched, and after it."""
        known = self._hosts.get(size)
        if known is None:
            like, host = TokenBatch(0, self.engine.worker.place, size, 0), self.engine.ahead
            known = self._hosts[size] = host.beginning(like), host.launching(like), host.between(size)
        return known

    def _leave(self, run: Run, size: int) -> float:
        """Leave engine, lane and summary as they would be after *run*, and give when to ask the policy."""
        engine, lane = self.engine, self.lane
        place = engine.worker.place
        number = engine.loop.batches + run.steps - len(run.flying)
        made: list[tuple[TokenBatch, float]] = []
        if run.ends:
            lane.take_over()
            of_all = TokenBatch(number, place, size, 0)
            of_all.count = len(run.ends)
            engine.loop.hear_batch(of_all)
        for at, step in enumerate(run.flying):
            if not run.ends and at == 0:  # it was in flight when all began
                assert engine.view.in_flight is not None
                made.append((engine.view.in_flight, step.decided))  # type: ignore[arg-type]
                continue
            batch = TokenBatch(
                number + at + 1, place, size, step.context, step.start, engine.keep_ends, free=step.free
            )
            batch.launched = step.launched
            lane.give_back(batch, step.end, engine.done)
            made.append((batch, step.decided))
        lane.decode = size
        engine.went_on(run.steps, run.ends, run.settled, run.took, made)
        if run.until == NEVER:
            engine.deciding = False
            return NEVER
        lane.calendar.set_time(run.settled)
        if lane.calendar.pass_to(run.until):
            return run.until
        engine.rest(self._host(size)[2])
        return NEVER
