"""One engine and its requests in one loop: what calendar, lane and engine do in turn, without the detours.

Where a system is a single LLM engine and nobody wants to hear of its batches, hardly anything has to go by the
calendar: between two decisions only arrivals happen, and they come in order. `play` then runs the two common kinds of
steps (all decode; some prefill) in place, on the engine's own state. The policy is asked as ever, on the view as
ever, with nothing known of it beforehand; any other step goes through the engine's own methods. As soon as something
else stands on the calendar (a stop, a policy that idles until a time) the calendar takes over for good. Where neither
the policy nor anybody else needs to look at single requests, `servetwin.sim.columns` goes on until somebody does.

Every number is computed by the same operations in the same order as in `servetwin.core.token_engine` and
`servetwin.sim.tokens`, ties in time included, so results are equal to the bit; `tests/sim/test_fused.py` holds them
together. A change there is a change here.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from sys import getrefcount
from typing import TYPE_CHECKING, Any

import servetwin.core.loop
from servetwin.core.loop import NEVER, ServingLoop
from servetwin.core.metrics import Summary, Tally
from servetwin.core.records import Recorder
from servetwin.core.request import Outcome, Request
from servetwin.core.token_batch import TokenBatch
from servetwin.core.token_columns import TokenColumns
from servetwin.core.token_engine import TokenEngine
from servetwin.core.token_latencies import TokenLatencies
from servetwin.core.token_metrics import LimitsSLO, StageTokens, TokenDeadlines, TokenSummary
from servetwin.core.token_worker import TokenWorker
from servetwin.core.tokens import DECODES, PREFILLS, TokenPolicy, TokenTask
from simpy.events import NORMAL

from .calendar import Timer
from .columns import Columns
from .executor import SimExecutor
from .tokens import TokenLane

if TYPE_CHECKING:
    from servetwin.core.tokens import Step


def play(loop: ServingLoop, executor: SimExecutor, source: Iterator[Request], *, fused: bool = True) -> None:
    """Send *loop* the requests of *source* at their arrival times and let time pass until nothing is left to happen.

    Which way it goes shows in nothing but the time that it takes. *fused* off: always by the calendar.
    """
    if fused and _fits(loop, executor):
        _Fused(loop, executor, source).run()
    else:
        servetwin.core.loop.play(loop, source)
    executor.run_until_idle()


def _fits(loop: ServingLoop, executor: SimExecutor) -> bool:
    """Whether a single engine is all there is, without a host of its own, and its batches interest nobody."""
    recorder = loop.recorder
    return (
        loop.executor is executor
        and loop._direct is not None
        and type(loop.workers[0]) is TokenWorker
        and loop.workers[0].host is None
        and type(loop.workers[0]._engine) is TokenEngine
        and not loop.live
        and not loop.stopped
        and not executor._delays
        and loop.workers[0].name not in executor._engines
        and not executor.calendar._queue
        and not recorder.wants_batches
        and loop._hear_batch == recorder.batch
        and type(recorder).batch is Recorder.batch
        and type(recorder.summary).batch is Summary.batch
    )


def _hears(thing: object, event: str, *known: object) -> bool:
    """Whether *thing* does something of its own, not one of the *known*, when it is told of *event*."""
    return getattr(type(thing), event) not in known or event in vars(thing)


def _counts_alone(engine: TokenEngine) -> bool:
    """Whether the run's summary, which wants the times of tokens, is of a kind that takes requests in blocks too."""
    summary = engine.loop.recorder.summary
    if type(summary) is not TokenSummary or _hears(summary, "ended", TokenSummary.ended):
        return False
    tokens, slo = summary.stages.get(engine.stage.name), engine.view.slo
    if type(tokens) is not StageTokens or _hears(tokens, "ended", StageTokens.ended):
        return False
    return tokens.promise is slo and (slo is None or type(slo) in (TokenDeadlines, LimitsSLO))


def _references() -> int:
    """What `getrefcount` says of an object that one local variable holds."""
    thing = object()
    return getrefcount(thing)


class _Fused:
    """The state that outlives the loop below: the request that comes next."""

    def __init__(self, loop: ServingLoop, executor: SimExecutor, source: Iterator[Request]) -> None:
        self.loop = loop
        self.executor = executor
        self.source = source
        worker = loop.workers[0]
        assert isinstance(worker, TokenWorker)
        self.worker = worker
        self.engine = worker._engine
        self.coming = next(source, None)

    def run(self) -> None:
        """Until all is over, or until the calendar has to take over; then all is left as it would be there."""
        engine, calendar = self.engine, self.executor.calendar
        lane = self.executor.token_lane(self.worker)
        engine.deciding = True  # what comes meanwhile waits in the inbox
        lane.firing = True  # it is not to be put on the calendar
        try:
            first, asks = self._run(lane)
        finally:
            engine.deciding = lane.firing = False
            sizes = self.loop.recorder.summary.sizes
            if not sizes.get(self.worker.name):
                sizes.pop(self.worker.name, None)  # it has run nothing
        # What was placed before the calendar was in use comes first among events at one time.
        if lane.batch is not None:
            heappush(calendar._queue, (lane.end, NORMAL, -2, lane))
        self._await(first)
        if asks and not self.loop.stopped:
            engine.turn(calendar._now)

    def _await(self, first: bool = False) -> None:
        coming = self.coming
        if coming is not None:
            Timer(self.executor.calendar, coming.arrival, self._send, -1 if first else None)

    def _send(self) -> None:
        assert self.coming is not None
        self.loop.arrive(self.coming)
        self.coming = next(self.source, None)
        self._await()

    def _run(self, lane: TokenLane) -> tuple[bool, bool]:
        """Gives whether the next request was awaited before what stands on the calendar was put there, and whether
        the policy is to be asked at once."""
        loop, worker, engine, source = self.loop, self.worker, self.engine, self.source
        calendar = self.executor.calendar
        queue = calendar._queue
        view, ticks, phases, buckets = engine.view, engine._ticks, engine._phases, engine._buckets
        leaving, lengths, joined, ends = engine._leaving, engine._lengths, engine._joined, engine._ends
        waiting, running, live = view.waiting, view.running, loop.live
        size, headroom, keep, longest, make = (
            engine.size, engine.headroom, engine.keep_times, engine.longest, engine._task
        )  # fmt: skip
        module, stage = engine._module, engine.stage
        decide = worker.policy.decide
        slo = view.slo
        recorder, summary = loop.recorder, loop.recorder.summary
        counted = summary.sizes.setdefault(worker.name, Tally())
        hears = _hears(recorder, "arrived", Recorder.arrived)
        arrived = recorder.arrived if hears else summary.arrived
        ended = recorder.ended
        plainly = not engine.seen and type(worker.policy).admit is TokenPolicy.admit
        straight, between, draw, prefills = lane.straight, lane.between, lane.draw, lane.prefills
        step_time = lane.timing.times.step
        preparing = lane.timing.preparing > 0.0
        met, late = Outcome.MET, Outcome.LATE
        alone = _references()
        standing = TokenBatch(0, worker, 0, 0)  # stands for what is in flight
        pieces: list[Any] = []
        many: list[float] = []
        # Both are properties of the device, so they are asked for once. A line holds as far as it says: that steps
        # taken together equal single ones rests on it too.
        lines: dict[int, tuple[float, float, float, float]] = {}  # batch size -> (context, what `straight` gave)
        gaps: dict[int, float] = {}

        def arrive(request: Request, now: float) -> None:
            live[request.id] = request
            arrived(request)
            outputs = request.outputs
            if outputs is not None:
                request.outputs = None  # type: ignore[misc]
            try:
                prompt, limit = request.tokens[module]  # type: ignore[attr-defined]
                length = outputs[module]  # type: ignore[index]
            except (AttributeError, KeyError, TypeError, ValueError):
                length = None
            if type(length) is int and type(prompt) is int and not keep and not request.tasks:
                task = TokenTask(request, stage, now, worker, prompt, limit)
                lengths[task] = length if length < limit else limit
            else:
                task = make(request, outputs, now)
            request.tasks.append(task)
            if task.prompt > longest:
                engine.receive(task)
            else:
                worker.inbox.append(task)

        alike = None  # who goes on without the policy and without a look at single requests, where that can be
        if (
            type(source) is TokenColumns
            and source.module == module
            and type(worker.policy).admit is TokenPolicy.admit
            and not (preparing or hears or _hears(summary, "arrived", Summary.arrived))
            and not _hears(recorder, "ended", Recorder.ended, TokenLatencies.ended)
            and (_counts_alone(engine) if keep else slo is None and not _hears(summary, "ended", Summary.ended))
        ):
            alike = Columns(engine, lane, source, arrive)
        coming = self.coming
        due = coming.arrival if coming is not None else NEVER
        now = calendar._now
        fresh = False  # something has just come while the engine was idle
        take = True
        while True:
            inbox = worker.inbox
            if inbox and (take or not (waiting or running)):
                if plainly:
                    task: Any
                    for task in inbox:
                        if task.request.outcome is None:
                            task.admitted = now
                            waiting[task] = None
                        else:
                            del lengths[task]
                    worker.inbox = []
                else:
                    engine._take_in(now)
            kind = 0
            if waiting or running:
                engine.view.checked = None
                step: Step = decide(view, now)
                plain = step.plain
                if plain == DECODES:
                    size_of = view.decoding
                    if size_of:
                        repeat = step.repeat
                        times = 1
                        if repeat is not None and not fresh:
                            times = leaving[0] - ticks.count
                            if repeat.times < times:
                                times = repeat.times
                        if (view.free_blocks - headroom) * size < size_of * (times + size - 1):
                            times = engine._affordable(times)
                        if (
                            step.standing
                            and alike is not None
                            and times
                            and repeat is not None
                            and not (fresh or waiting or worker.inbox)
                            and view.decoding == len(running)
                            and not (engine._swapped or engine._preempted or engine._stale)
                        ):
                            now = alike.run(step, now)
                            row = alike.source.row
                            self.coming = coming = alike.source.request(row) if row is not None else None
                            due = coming.arrival if coming is not None else NEVER
                            take = True
                            continue
                        if times:
                            kind = 1
                            loop._batches += 1
                            context = view.context
                            line = lines.get(size_of)
                            if line is None or context < line[0] or context >= line[3]:
                                line = lines[size_of] = (context, *straight(size_of, context))
                            _, a, b, until = line
                            seconds = a + b * context
                            if draw is not None:
                                seconds *= draw()
                            ready, before, count = lane.ready, now, 1
                            end = (ready if ready > now else now) + seconds
                            gap = gaps[size_of] if size_of in gaps else gaps.setdefault(size_of, between(size_of))
                            if times > 1:
                                assert repeat is not None
                                limit, drift = repeat.limit, repeat.drift
                                if draw is not None or keep or drift or until < NEVER:
                                    many = [end]
                                    while count < times and end < due and end < limit + count * drift:
                                        before = end
                                        context += size_of
                                        if context >= until:
                                            a, b, until = straight(size_of, context)
                                        seconds = a + b * context
                                        if draw is not None:
                                            seconds *= draw()
                                        end = before + gap + seconds
                                        many.append(end)
                                        count += 1
                                else:
                                    if due < limit:
                                        limit = due
                                    while end < limit and count < times:
                                        before = end
                                        context += size_of
                                        end = before + gap + (a + b * context)
                                        count += 1
                            took = end - before
                            lane.ready = end + gap
                elif plain == PREFILLS and step.prefill[0][0] in waiting:
                    prefill = step.prefill
                    if prefill is view.checked and not preparing:
                        free, swapped, squares, tokens, pieces = view.free_blocks, 0, 0, 0, []
                        for task, n in prefill:
                            computed = task._computed
                            free += -(computed + n) // size
                            del waiting[task]
                            running[task] = None
                            if task.started is None:
                                task.started = now
                            if computed:
                                swapped += -(-computed // size)
                            task._computed = computed + n
                            pieces.append((task, n, computed))
                            tokens += n
                            squares += n * n
                        view.free_blocks = free
                        engine._swapped += swapped
                        if not engine._swapped and not engine._preempted:
                            kind = 2
                            loop._batches += 1
                            size_of = len(pieces)
                            seconds = step_time(tokens, float(squares), 0.0, 0, 0)
                            if prefills is not None:
                                seconds *= prefills()
                            ready = lane.ready
                            end = (ready if ready > now else now) + seconds
                            took = end - now
                            gap = gaps[size_of] if size_of in gaps else gaps.setdefault(size_of, between(size_of))
                            lane.ready = end + gap
                    else:
                        pieces = engine._admit(prefill, (), 0, False, now)
                    if pieces and not kind:
                        engine._launch(0, 0, pieces, None, now)
                        kind = 3
                if not kind:
                    if engine._carry_out(step, now):
                        if view.in_flight is None:
                            take = False
                            continue
                        kind = 3
                    elif worker.inbox:
                        take = True
                        continue
                    else:
                        loop._set_alarm(worker, step.idle_until, now)
            first = not fresh  # whether the next request was awaited before this
            if fresh:
                fresh = False
                self.coming = coming = next(source, None)
                due = coming.arrival if coming is not None else NEVER
            if not kind:
                if coming is None or queue or loop.stopped:
                    return first, False
                calendar._now = now = due
                arrive(coming, now)
                fresh = take = True
                continue
            if kind == 3:
                end = lane.end
            else:
                view.in_flight = standing
            if due <= end and (first or due < end) and not queue:
                while True:
                    calendar._now = due
                    arrive(coming, due)  # type: ignore[arg-type]
                    self.coming = coming = next(source, None)
                    if coming is None:
                        due = NEVER
                        break
                    due = coming.arrival
                    if due >= end or queue:
                        break
            if queue:
                if kind != 3:
                    decode = size_of if kind == 1 else 0
                    batch = TokenBatch(
                        loop._batches, worker, decode, view.context if decode else 0, now, engine.keep_ends
                    )
                    batch.size, batch.took = size_of, took
                    if decode:
                        batch.times, batch.count, batch.repeat = times, count, step.repeat
                        if times > 1 and keep:
                            batch.ends = many
                    else:
                        batch.prefill = pieces
                    view.in_flight = lane.batch = batch
                    lane.done, lane.end = engine._done, end
                return False, False
            calendar._now = now = end
            take = True
            view.in_flight = None
            if kind == 3:
                batch, lane.batch = lane.batch, None
                engine.settle(batch)
                if queue or loop.stopped:
                    return True, True
                continue
            view.last_step = took
            if kind == 1:
                counted[size_of] += count
                tick = ticks.count
                ticks.count = last = tick + count
                if count == 1:
                    view.free_blocks -= phases[-tick % size]
                else:
                    at = -(last - 1) % size
                    if at + count <= size:
                        view.free_blocks -= sum(phases[at : at + count])
                    else:
                        view.free_blocks -= sum([phases[-t % size] for t in range(tick, last)])
                view.context += size_of * count
                if keep:
                    if times > 1:
                        ends.extend(many)
                    else:
                        ends.append(now)
                    if len(ends) > engine._trim_at:
                        engine._trim()
                while leaving and leaving[0] <= last:
                    for task in buckets.pop(heappop(leaving)):
                        base = task._generated
                        if task._ticks is None or base + last != lengths.get(task):
                            continue  # it was preempted since, and has another bucket now
                        task._generated = generated = base + last
                        task._computed = computed = task.prompt + generated - 1
                        task._ticks = None
                        view.decoding -= 1
                        view.context -= computed
                        phases[(computed - last) % size] -= 1
                        if keep:
                            since = joined.pop(task)
                            task._times.extend(ends[since - engine._first : last - engine._first])
                        request = task.request
                        if slo is not None or request.outcome is not None:
                            engine._finish(task, now)
                            continue
                        view.free_blocks -= -computed // size
                        del running[task]
                        del lengths[task]
                        task.finished = request.finished = now
                        request.outcome = met if now <= request.deadline and not request.missed else late
                        del live[request.id]
                        ended(request, now)
                        # Request and task hold each other. If nobody else does the request may go at once, which
                        # spares the collector, and the task may serve for the next one, all of it set anew.
                        if getrefcount(request) == alone + 1 and getrefcount(task) == alone + 2:
                            request.tasks.clear()
                view.last_decode = took
            else:
                counted[size_of] += 1
                tick = ticks.count
                joining = more = 0
                for task, _, _ in pieces:
                    generated, computed = task._generated, task._computed
                    pending = task.prompt + generated - computed
                    if not pending:
                        generated += 1
                        task._generated = generated
                        if task.first_token is None:
                            task.first_token = now
                        if keep:
                            task._times.append(now)
                        if generated >= lengths[task]:
                            engine._finish(task, now)
                            continue
                    elif pending > 1 or computed < task.prompt:
                        continue
                    task._generated = generated - tick
                    task._ticks = ticks
                    joining += 1
                    more += computed
                    phases[(computed - tick) % size] += 1
                    last = tick + lengths[task] - generated
                    if last in buckets:
                        buckets[last].append(task)
                    else:
                        buckets[last] = [task]
                        heappush(leaving, last)
                    if keep:
                        joined[task] = tick
                view.decoding += joining
                view.context += more
            if engine._stale:
                engine._purge()
            if queue or loop.stopped:
                return True, True
