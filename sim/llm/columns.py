"""One engine under a policy's standing decision: requests as numbers, from their arrival to their end.

Where a policy has said once and for all how it goes on (`servetwin.core.llm.policy.Step.standing`), requests come as
numbers (`TokenColumns`) and nothing is kept but their latencies (`TokenLatencies`), what an LLM run is reported by
(`TokenSummary`) and the lines of its records (`RunFolder`), nobody looks at a single request: neither it nor its task
has to be an object. The times of tokens, where they count, are stretches of the list of the ends of steps, which all
that decode share. `play` lets `Columns` (or `AheadColumns`, where steps are decided ahead) take over from the
calendar then, as long as nothing but the next arrival stands there. As soon as the promise no longer holds (memory
runs short, a prompt is too long) whatever is there is made into the objects that would be there, and the engine goes
on by the calendar and asks the policy again. What a step computes by each kind of promise stands in `column_steps`,
what becomes of the requests in `column_requests`.

Every number is computed by the same operations in the same order as in `servetwin.core.llm.serving.engine` and
`servetwin.sim.llm.lane`; `tests/sim/llm/test_columns.py` holds them together. A change there is a change here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from heapq import heappush
from typing import TYPE_CHECKING, Protocol

from servetwin.core import Executor, Recorder, Request, RunFolder, ServingLoop, Summary
from servetwin.core.llm import Fill, LimitsSLO, TokenDeadlines, TokenSLOByClass
from servetwin.core.llm.metrics import StageTokens, TokenSummary
from servetwin.core.llm.policy import admits_all
from servetwin.core.llm.serving.async_engine import TokenEngineAhead
from servetwin.core.llm.serving.engine import TokenEngine
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.serving.client import Client

from .ahead_columns import AheadColumns
from .ahead_runs import attach_runs, unheard
from .async_lane import AheadLane
from .column_records import promises_alone
from .column_requests import ColumnRequests
from .column_steps import NOTHING, SHORT, chunks, decodes, leaves, whole_prompts
from .lane import NEVER, TokenLane
from .latency_columns import TokenLatencies
from .request_columns import TokenColumns

if TYPE_CHECKING:
    from servetwin.core import Repeat
    from servetwin.core.llm import Step


class EngineExecutor(Executor, Protocol):
    """What is wanted of `servetwin.sim.executor.SimExecutor`, which makes the lanes of this package."""

    def token_lane(self, worker: TokenWorker) -> TokenLane: ...
    def ahead_lane(self, worker: TokenWorker) -> AheadLane | None: ...
    def undisturbed(self, worker: TokenWorker) -> bool: ...
    def run_until_idle(self) -> None: ...


def play(loop: ServingLoop, executor: EngineExecutor, source: Iterator[Request], *, columns: bool = True) -> None:
    """Send *loop* the requests of *source* at their arrival times and let time pass until nothing is left to happen.

    Which way it goes shows in nothing but the time that it takes. *columns* off: always by the calendar.
    """
    client = Client(loop, source)
    if columns and loop.executor is executor:
        for each in loop.workers:
            if isinstance(each, TokenWorker) and isinstance(each.engine, TokenEngineAhead):
                ahead = executor.ahead_lane(each)
                if ahead is not None:
                    attach_runs(loop, each.engine, ahead)
    if columns and type(source) is TokenColumns and fits(loop, executor, source):
        worker = loop.workers[0]
        assert isinstance(worker, TokenWorker)
        engine = worker.engine
        if isinstance(engine, TokenEngineAhead):
            ahead = executor.ahead_lane(worker)
            if ahead is not None:
                engine.go_on = AheadColumns(engine, ahead, source, client).go_on
        else:
            engine.go_on = Columns(engine, executor.token_lane(worker), source, client).go_on
    executor.run_until_idle()


def fits(loop: ServingLoop, executor: EngineExecutor, source: TokenColumns) -> bool:
    """Whether a single engine, without a host of its own or deciding ahead, is all there is, and nobody hears of its
    batches or looks at single requests."""
    worker, recorder, summary = loop.workers[0], loop.recorder, loop.recorder.summary
    if (
        loop.executor is not executor
        or loop.entrance is None
        or type(worker) is not TokenWorker
        or not executor.undisturbed(worker)
    ):
        return False
    engine, ahead = worker.engine, worker.host is not None
    if ahead and (
        type(engine) is not TokenEngineAhead or type(worker.host) is not Host or worker.host.told is not None
    ):
        return False
    if not ahead and type(engine) is not TokenEngine:
        return False
    return (
        source.module == engine.module
        and (unheard(loop) or _recorded(loop))
        and admits_all(worker.policy)
        and not _hears(recorder, "arrived", Recorder.arrived)
        and not _hears(summary, "arrived", Summary.arrived)
        and not _hears(recorder, "ended", Recorder.ended, TokenLatencies.ended, RunFolder.ended)
        and (
            _counts_alone(engine)
            if recorder.wants_token_times
            else engine.view.slo is None
            and not recorder.wants_batches
            and len(source.terms) == 1
            and not _hears(summary, "ended", Summary.ended)
        )
    )


def _hears(thing: object, event: str, *known: object) -> bool:
    """Whether *thing* does something of its own, not one of the *known*, when it is told of *event*."""
    usual = getattr(type(thing), event)
    return usual not in known or getattr(getattr(thing, event), "__func__", None) is not usual


def _recorded(loop: ServingLoop) -> bool:
    """Whether batches and requests of *loop* are heard of by a folder of records alone, which takes them in blocks
    too."""
    folder = loop.recorder
    return (
        type(folder) is RunFolder
        and loop.hear_batch == folder.batch
        and not _hears(folder, "batch", RunFolder.batch)
        and not _hears(folder.summary, "batch", Summary.batch)
    )


def _counts_alone(engine: TokenEngine) -> bool:
    """Whether the run's summary, which wants the times of tokens, is of a kind that takes requests in blocks too."""
    summary = engine.loop.recorder.summary
    if type(summary) is not TokenSummary or _hears(summary, "ended", TokenSummary.ended):
        return False
    folder, slo = engine.loop.recorder, engine.view.slo
    if isinstance(folder, RunFolder) and not promises_alone(folder, engine):
        return False
    tokens = summary.stages.get(engine.stage.name)
    if type(tokens) is not StageTokens or _hears(tokens, "ended", StageTokens.ended):
        return False
    several = [slo.usual, *slo.by_class.values()] if type(slo) is TokenSLOByClass else [slo]
    known = (type(None), TokenDeadlines, LimitsSLO)
    return tokens.promise is slo and all(type(own) in known for own in several)


#: How an engine stands when it is left: time, tick, when it is ready, free blocks, context and number of those that
#: decode, the places of the first without a token, of the first that is not taken in, and of who comes next.
Left = tuple[float, int, float, int, int, int, int, int, int]


class Columns(ColumnRequests):
    """An engine on *lane* that is left to itself, again and again."""

    __slots__ = ("lane", "until")

    def __init__(self, engine: TokenEngine, lane: TokenLane, source: TokenColumns, client: Client) -> None:
        super().__init__(engine, lane.timing, lane.env, source, client)
        self.lane = lane
        self.until = NEVER  # all that come before then are known

    def go_on(self, step: Step, now: float) -> float | None:
        """As `run`, if that is possible, and the client then waits for what comes next; else None."""
        engine, standing, repeat = self.engine, step.standing, step.repeat
        if (
            not self.given(step)
            or engine.worker.inbox
            or not engine.view.decoding
            or engine.swapped
            or engine.preempted
            or engine.stale
            or engine.loop.stopped
            or not engine.affordable(1)
            or not self.calendar.take_out(self.client.timer)
        ):
            return None
        assert repeat is not None
        self.open(step)
        return self.until_asked(lambda: self.run(standing, repeat, now))

    def run(self, rule: bool | Fill, repeat: Repeat, now: float) -> float:
        """Go on from *now* by *rule*, which stands for all steps, while nobody waits; *repeat* was said of steps in
        which all decode. Gives when to ask the policy again; ``source.row`` is then what comes next."""
        try:
            next(self.steps(rule, repeat, now))
        except StopIteration as over:
            left: Left = over.value
            *stands, head, taken, tail = left
            self._close(*stands)  # type: ignore[arg-type]
            self._objects(head, taken, min(tail, self.edge), tail)
            return left[0]
        raise AssertionError("all that come are known")

    def steps(self, rule: bool | Fill, repeat: Repeat, now: float) -> Generator[Left, None, Left]:
        """The steps from *now* on: gives how the engine stands at the end of a step at *until* or later, before which
        who comes is to be known, and when the word has ended or nobody comes any more. (All that changes from step to
        step is in local variables, and calls are by request rather than by step.)"""
        engine, lane = self.engine, self.lane
        mixed = isinstance(rule, Fill)
        pick, leave = chunks(self, rule) if isinstance(rule, Fill) else whole_prompts(self), leaves(self)
        decode, draw, often = decodes(self, lane, repeat, leave), lane.prefills, repeat.times
        leaving, phases, size, buckets = engine.leaving, engine.phases, engine.size, self.buckets
        free, context, decoding = engine.view.free_blocks, engine.view.context, engine.view.decoding
        tick, ready, counted, gaps = engine.ticks.count, lane.ready, self.counted, self.gaps
        arrivals, prompts, lengths = self.arrivals, self.prompts, self.lengths
        admits, firsts, tell, until = self.admits, self.firsts, self.tell, self.until
        edge, due, head, taken, tail = self.edge, arrivals[0], 0, 0, 0
        while True:
            if due <= now:
                if now >= until:
                    yield now, tick, ready, free, context, decoding, head, taken, tail
                    edge, due, until = self.edge, arrivals[tail], self.until
                    continue
                tail += 1
                while arrivals[tail] <= now:
                    tail += 1
                if tail >= edge:
                    tail, shift = self.come(taken, now, head)
                    head, taken, edge = head - shift, taken - shift, self.edge
                    if tail > edge:
                        break
                admits += [now] * (tail - taken)
                taken, due = tail, arrivals[tail]
            pieces = NOTHING
            if head < taken:
                pieces, whole, free, seconds = pick(now, head, taken, free, decoding, context, tick)
            if pieces > 0:
                if draw is not None:
                    seconds *= draw()
                before, now = now, (ready if ready > now else now) + seconds
                self.last_step, self.batches = now - before, self.batches + 1
                if tell is not None:
                    begun = self.first + head, prompts[head : head + pieces], self.part
                    tell((before, now, *((decoding, context) if mixed else (0, 0)), free, None, *begun))
                if mixed and decoding:
                    pieces += decoding
                    context += decoding
                    free -= phases[-tick % size]
                    tick += 1
                    if engine.keep_times:
                        engine.ends.append(now)
                    if leaving[0] <= tick:
                        free, context, decoding = leave(now, tick, free, context, decoding)
                ready = now + (gaps[pieces] if pieces in gaps else gaps.setdefault(pieces, lane.between(pieces)))
                counted[pieces] += 1
                for place in range(head, head + whole):
                    prompt, length = prompts[place], lengths[place]
                    firsts.append(now)
                    if length <= 1:
                        free -= -prompt // size
                        self.ended(place, now, tick)
                        continue
                    last = tick + length - 1
                    decoding += 1
                    context += prompt
                    phases[(prompt - tick) % size] += 1
                    if last in buckets:
                        buckets[last].append(place)
                    else:
                        buckets[last] = [place]
                        heappush(leaving, last)
                head += whole
            elif decoding and pieces != SHORT:
                now, ready, tick, free, decoding, context = decode(
                    now, ready, due, often if pieces == NOTHING else 1, head < taken, tick, free, decoding, context
                )
                if self.short:
                    break
            elif head < taken or due == NEVER:
                break
            else:
                now = due  # nobody is here
        return now, tick, ready, free, context, decoding, head, taken, tail

    def _close(self, now: float, tick: int, ready: float, free: int, context: int, decoding: int) -> None:
        """Leave clock, view and summary as the ordinary way would."""
        engine = self.engine
        view = engine.view
        engine.ticks.count = engine.tick = tick
        engine.loop.batches += self.batches
        self.calendar.set_time(now)
        self.lane.ready = ready
        view.free_blocks, view.context, view.decoding = free, context, decoding
        view.last_step, view.last_decode = self.last_step, self.last_decode
        counted = engine.loop.recorder.summary.sizes[engine.worker.name]
        for size_of, many in self.counted.items():
            counted[size_of] += many
        self.counted.clear()
        if self.records is not None:
            self.records.write()
