"""One engine under a policy's standing decision: requests as numbers, from their arrival to their end.

Where a policy has said once and for all how it goes on (`servetwin.core.llm.policy.Step.standing`), requests come as
numbers (`TokenColumns`) and nothing is kept but their latencies (`TokenLatencies`) or what an LLM run is reported by
(`TokenSummary`), nobody looks at a single request: neither it nor its task has to be an object. The times of tokens,
where they count, are stretches of the list of the ends of steps, which all that decode share. `play` lets `Columns`
take over from the calendar then, as long as nothing but the next arrival stands there. As soon as the promise no
longer holds (memory runs short, a prompt is too long) whatever is there is made into the objects that would be
there, and the engine goes on by the calendar and asks the policy again.

Every number is computed by the same operations in the same order as in `servetwin.core.llm.serving.engine` and
`servetwin.sim.llm.lane`; `tests/sim/llm/test_columns.py` holds them together. A change there is a change here.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from servetwin.core import Executor, Outcome, Recorder, Request, ServingLoop, Summary
from servetwin.core.llm import LimitsSLO, TokenDeadlines, TokenTask
from servetwin.core.llm.metric_blocks import TokenBlock
from servetwin.core.llm.metrics import StageTokens, TokenSummary
from servetwin.core.llm.policy import admits_all
from servetwin.core.llm.serving.engine import TokenEngine
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.client import Client
from servetwin.core.serving.worker import NEVER
from servetwin.core.slo import latest
from servetwin.sim.llm.latency_columns import TokenLatencies
from servetwin.sim.llm.request_columns import Row, TokenColumns

from .lane import TokenLane

if TYPE_CHECKING:
    from servetwin.core.llm import Step

#: So many that have ended are put into their columns at once.
BLOCK = 512

#: One that decodes: its row, the tokens that it generates, those computed by then, its phase (as in `TokenEngine`),
#: start and end of its prefill.
Entry = tuple[Row, int, int, int, float, float]

#: From this context on: constant, slope, until that context; and seconds between two such steps.
Line = tuple[float, float, float, float, float]


class EngineExecutor(Executor, Protocol):
    """What is wanted of `servetwin.sim.executor.SimExecutor`, which makes the lanes of this package."""

    def token_lane(self, worker: TokenWorker) -> TokenLane: ...
    def undisturbed(self, worker: TokenWorker) -> bool: ...
    def run_until_idle(self) -> None: ...


def play(loop: ServingLoop, executor: EngineExecutor, source: Iterator[Request], *, columns: bool = True) -> None:
    """Send *loop* the requests of *source* at their arrival times and let time pass until nothing is left to happen.

    Which way it goes shows in nothing but the time that it takes. *columns* off: always by the calendar.
    """
    client = Client(loop, source)
    if columns and type(source) is TokenColumns and _fits(loop, executor, source):
        worker = loop.workers[0]
        assert isinstance(worker, TokenWorker)
        worker.engine.go_on = Columns(worker.engine, executor.token_lane(worker), source, client).go_on
    executor.run_until_idle()


def _fits(loop: ServingLoop, executor: EngineExecutor, source: TokenColumns) -> bool:
    """Whether a single engine without a host of its own is all there is, and nobody hears of its batches or looks at
    single requests."""
    worker, recorder, summary = loop.workers[0], loop.recorder, loop.recorder.summary
    if (
        loop.executor is not executor
        or loop.entrance is None
        or type(worker) is not TokenWorker
        or worker.host is not None
        or type(worker.engine) is not TokenEngine
        or not executor.undisturbed(worker)
        or recorder.wants_batches
        or loop.hear_batch != recorder.of_batches()
        or type(recorder).batch is not Recorder.batch
        or type(summary).batch is not Summary.batch
    ):
        return False
    engine = worker.engine
    return (
        source.module == engine.module
        and admits_all(worker.policy)
        and not executor.token_lane(worker).timing.preparing
        and not _hears(recorder, "arrived", Recorder.arrived)
        and not _hears(summary, "arrived", Summary.arrived)
        and not _hears(recorder, "ended", Recorder.ended, TokenLatencies.ended)
        and (
            _counts_alone(engine)
            if engine.keep_times
            else engine.view.slo is None and not _hears(summary, "ended", Summary.ended)
        )
    )


def _hears(thing: object, event: str, *known: object) -> bool:
    """Whether *thing* does something of its own, not one of the *known*, when it is told of *event*."""
    usual = getattr(type(thing), event)
    return usual not in known or getattr(getattr(thing, event), "__func__", None) is not usual


def _counts_alone(engine: TokenEngine) -> bool:
    """Whether the run's summary, which wants the times of tokens, is of a kind that takes requests in blocks too."""
    summary = engine.loop.recorder.summary
    if type(summary) is not TokenSummary or _hears(summary, "ended", TokenSummary.ended):
        return False
    tokens, slo = summary.stages.get(engine.stage.name), engine.view.slo
    if type(tokens) is not StageTokens or _hears(tokens, "ended", StageTokens.ended):
        return False
    return tokens.promise is slo and (slo is None or type(slo) in (TokenDeadlines, LimitsSLO))


class Columns:
    """What stays the same from one time to the next that *engine* is left to itself; *client* sends what comes."""

    def __init__(self, engine: TokenEngine, lane: TokenLane, source: TokenColumns, client: Client) -> None:
        self.engine, self.lane, self.source, self.client = engine, lane, source, client
        # All three are properties of the device, so they are asked for once.
        self.lines: dict[int, Line] = {}
        self.gaps: dict[int, float] = {}
        self.prefills: dict[int, float] = {}  # tokens of a prompt -> seconds of a step that prefills it alone
        self.longest = min(engine.longest, engine.view.max_batched_tokens)  # prompt that takes the ordinary course
        self.done: list[Entry] = []  # ended, and not noted yet
        self.lasts: list[float] = []  # when each of them did
        self.ticks: list[int] = []  # and at which tick, where times of tokens count
        self.came: list[Row] = []  # since the last step began
        self.waiting: deque[Row] = deque()
        self.admitted: dict[int, float] = {}  # when those were taken in that were not admitted to a step at once

    def go_on(self, step: Step, now: float) -> float | None:
        """As `run`, if that is possible, and the client then waits for what comes next; else None."""
        engine, client = self.engine, self.client
        view = engine.view
        if (
            step.repeat is None
            or view.waiting
            or engine.worker.inbox
            or not view.decoding
            or view.decoding != len(view.running)
            or engine.swapped
            or engine.preempted
            or engine.stale
            or engine.loop.stopped
            or not engine.affordable(1)
            or not self.lane.env.take_out(client.timer)
        ):
            return None
        later = self.run(step, now)
        row = self.source.row
        client.wait(self.source.request(row) if row is not None else None)
        return later

    def run(self, step: Step, now: float) -> float:
        """Go on from *now*, for which *step* was decided while nobody waits. Gives the time at which the policy has
        to be asked again, or nothing is left to do; ``source.row`` is then what comes next.

        Long on purpose: all that changes from step to step is in local variables, and a call per step costs more
        than a line of this.
        """
        engine, lane, source = self.engine, self.lane, self.source
        view, ticks, loop, calendar = engine.view, engine.ticks, engine.loop, lane.env
        phases, leaving, size, headroom = engine.phases, engine.leaving, engine.size, engine.headroom
        buckets: dict[int, list[Any]] = engine.buckets  # of tasks, then of entries
        most, least, room, longest = view.max_batched_tokens, view.watermark, view.max_sequences, self.longest
        free, context, decoding, tick, ready = view.free_blocks, view.context, view.decoding, ticks.count, lane.ready
        sizes: dict[int, int] = {}
        straight, between, draw, draw_prefill = lane.straight, lane.between, lane.draw, lane.prefills
        each = lane.timing.counted
        step_time, times_of, lines, gaps = lane.timing.times.step, self.prefills, self.lines, self.gaps
        assert step.repeat is not None
        often, limit, drift = step.repeat.times, step.repeat.limit, step.repeat.drift
        done, lasts, at_ticks, came, waiting = self.done, self.lasts, self.ticks, self.came, self.waiting
        keep, ends, note = engine.keep_times, engine.ends, engine.ends.append
        odd: list[Row] = []  # what has come and does not take the ordinary course
        rows, row = source.rows, source.row
        due = NEVER if row is None else row[1]
        batches = new = old = 0
        latest = None  # who has come last
        last_step, last_decode = view.last_step, view.last_decode
        while not odd:
            size_of = 0  # of those that are prefilled
            if came or waiting:
                if came:
                    new += len(came)
                    latest = came[-1]
                if waiting:
                    old = len(waiting)
                    waiting += came
                    queue: Collection[Row] = waiting
                else:
                    old = 0
                    queue = came
                tokens = squares = 0
                places, left = room - decoding, free
                for found in queue:
                    prompt = found[2]
                    tokens += prompt
                    after = left + -prompt // size
                    if tokens > most or not places or after < least:
                        tokens -= prompt
                        break
                    places -= 1
                    left = after
                    squares += prompt * prompt
                    size_of += 1
                if size_of == len(came) and not old:
                    batch, came = came, []
                else:
                    if not old:
                        waiting += came
                    batch = [waiting.popleft() for _ in range(size_of)]
                    for found in came[max(0, size_of - old) :]:
                        self.admitted[found[0]] = now
                    came.clear()
            if size_of:
                free = left
                batches += 1
                started = now
                if size_of > 1:
                    seconds = step_time(tokens, float(squares), 0.0, 0, 0)
                elif tokens in times_of:
                    seconds = times_of[tokens]
                else:
                    seconds = step_time(tokens, float(squares), 0.0, 0, 0)
                    if not each:
                        times_of[tokens] = seconds
                prefilling = True
                if draw_prefill is not None:
                    seconds *= draw_prefill()
                end = (ready if ready > now else now) + seconds
                last_step = end - now
                gap = gaps[size_of] if size_of in gaps else gaps.setdefault(size_of, between(size_of))
            elif decoding:
                times = leaving[0] - tick
                if often < times:
                    times = often
                if (free - headroom) * size < decoding * (times + size - 1):
                    view.free_blocks, ticks.count = free, tick
                    times = engine.affordable(times)
                    if not times:
                        break
                batches += 1
                prefilling, size_of = False, decoding
                x = context
                line = lines.get(size_of)
                if line is None or x < line[0] or x >= line[3]:
                    line = lines[size_of] = (x, *straight(size_of, x), between(size_of))
                _, a, b, until, gap = line
                seconds = a + b * x
                if draw is not None:
                    seconds *= draw()
                before, count = now, 1
                end = (ready if ready > now else now) + seconds
                if keep:
                    note(end)
                if draw is not None or drift or x + size_of * times > until:
                    while count < times and end < due and end < limit + count * drift:
                        before = end
                        x += size_of
                        if x >= until:
                            a, b, until = straight(size_of, x)
                        seconds = a + b * x
                        if draw is not None:
                            seconds *= draw()
                        end = before + gap + seconds
                        if keep:
                            note(end)
                        count += 1
                elif keep:
                    horizon = due if due < limit else limit
                    while end < horizon and count < times:
                        before = end
                        x += size_of
                        end = before + gap + (a + b * x)
                        note(end)
                        count += 1
                else:
                    horizon = due if due < limit else limit
                    while end < horizon and count < times:
                        before = end
                        x += size_of
                        end = before + gap + (a + b * x)
                        count += 1
                last_step = last_decode = end - before
            elif waiting or row is None or row[2] > longest:
                break
            else:
                now = due
                while row is not None and row[1] <= now and row[2] <= longest:  # they are there together
                    came.append(row)
                    row = next(rows, None)
                due = NEVER if row is None else row[1]
                if due <= now:
                    break  # one that does not take the ordinary course is there with them
                continue
            ready = end + gap
            if due <= end:
                while True:
                    assert row is not None
                    if row[2] > longest or odd:
                        odd.append(row)
                    else:
                        came.append(row)
                    row = next(rows, None)
                    if row is None:
                        due = NEVER
                        break
                    due = row[1]
                    if due > end:
                        break
                if odd:
                    self._note(new + len(came), came[-1] if came else latest)
                    new, latest = 0, None
                    self._take_in(odd)
            now = end
            try:
                sizes[size_of] += 1 if prefilling else count
            except KeyError:
                sizes[size_of] = 1 if prefilling else count
            if prefilling:
                for found in batch:
                    _, _, prompt, most_of_it, length = found
                    if most_of_it < length:
                        length = most_of_it
                    if length > 1:
                        last = tick + length - 1
                        phase = (prompt - tick) % size
                        entry = (found, length, prompt + length - 1, phase, started, now)
                        decoding += 1
                        context += prompt
                        phases[phase] += 1
                        if last in buckets:
                            buckets[last].append(entry)
                        else:
                            buckets[last] = [entry]
                            heappush(leaving, last)
                    else:
                        free -= -prompt // size
                        done.append((found, 1, prompt, 0, started, now))
                        lasts.append(now)
                        if keep:
                            at_ticks.append(tick)
                continue
            context += size_of * count
            if count == 1:
                free -= phases[-tick % size]
                tick += 1
            else:
                last = tick + count
                at = -(last - 1) % size
                if at + count <= size:
                    free -= sum(phases[at : at + count])
                else:
                    free -= sum([phases[-t % size] for t in range(tick, last)])
                tick = last
            while leaving and leaving[0] <= tick:
                bucket = buckets.pop(heappop(leaving))
                if type(bucket[0]) is not tuple:
                    ticks.count = engine.tick = tick
                    calendar.set_time(now)
                    view.free_blocks, view.context, view.decoding = free, context, decoding
                    bucket = self._let_go(bucket, now)
                    free, context, decoding = view.free_blocks, view.context, view.decoding
                for entry in bucket:
                    computed = entry[2]
                    free -= -computed // size
                    context -= computed
                    phases[entry[3]] -= 1
                done += bucket
                size_of = len(bucket)
                decoding -= size_of
                lasts += [now] * size_of
                if keep:
                    at_ticks += [tick] * size_of
                if len(done) > BLOCK:
                    self._record()
            if keep and len(ends) > engine.trim_at:
                self._trim(tick)
        ticks.count = engine.tick = tick
        calendar.set_time(now)
        lane.ready, source.row = ready, row
        view.free_blocks, view.context, view.decoding = free, context, decoding
        view.last_step, view.last_decode = last_step, last_decode
        loop.batches += batches
        self.came = came
        if not odd:
            self._note(new + len(came), came[-1] if came else latest)
        counted = loop.recorder.summary.sizes[engine.worker.name]
        for size_of, many in sizes.items():
            counted[size_of] += many
        self._record()
        self._objects(bool(odd))
        return now

    def _note(self, many: int, latest: Row | None) -> None:
        """So *many* have arrived, *latest* as the last of them, and not as the first of all: somebody decodes."""
        summary = self.engine.loop.recorder.summary
        summary.requests += many
        if latest is not None:
            summary.last_arrival = latest[1]

    def _take_in(self, odd: Sequence[Row]) -> None:
        """These as well, and they take the ordinary way."""
        self._record()
        for row in odd:
            self.lane.env.set_time(row[1])
            self.client.loop.arrive(self.source.request(row))

    def _let_go(self, bucket: Sequence[Any], now: float) -> list[Entry]:
        """The tasks of *bucket* have generated all (if they were not preempted since). Gives the others."""
        engine = self.engine
        last = engine.ticks.count
        self._record()
        tasks = [task for task in bucket if type(task) is not tuple]
        for task in tasks:
            if task in engine.bases and engine.bases[task] + last == engine.lengths[task]:
                engine.part(task)
                engine.finish(task, now)
        return [*bucket[len(tasks) :]]

    def _record(self) -> None:
        """Note down those that have ended, many at a time."""
        done, lasts = self.done, self.lasts
        if not done:
            return
        recorder = self.engine.loop.recorder
        summary = recorder.summary
        rows, lengths, _, _, started, firsts = zip(*done, strict=True)
        ids, sent = [row[0] for row in rows], np.array([row[1] for row in rows], dtype=float)
        first, last = np.array(firsts, dtype=float), np.array(lasts, dtype=float)
        counts = np.array(lengths)
        in_time = last <= latest(sent + self.source.slo)
        if self.engine.keep_times:
            assert isinstance(summary, TokenSummary)
            arrival = np.array([*map(self.admitted.get, ids, started)]) if self.engine.seen else sent
            prompts = np.array([row[2] for row in rows])
            begins = np.array(self.ticks) - (counts - 1)
            low, high = int(begins.min()), self.ticks[-1]
            since = self.engine.first_end
            ends = np.array(self.engine.ends[low - since : high - since])
            block = TokenBlock(sent, arrival, prompts, counts, first, last, begins - low, ends)
            in_time &= summary.stages[self.engine.stage.name].ended_block(block)
        summary.e2el.frombytes((last - sent).tobytes())
        met = int(np.count_nonzero(in_time))
        for outcome, many in ((Outcome.MET, met), (Outcome.LATE, len(done) - met)):
            if many:
                summary.outcomes[outcome] += many
        summary.last_end = lasts[-1]
        if isinstance(recorder, TokenLatencies):
            gaps = counts - 1
            recorder.ids.extend(ids)
            recorder.ttft.frombytes((first - sent).tobytes())
            recorder.tpot.frombytes(np.where(gaps > 0, (last - first) / np.maximum(gaps, 1), 0.0).tobytes())
        if self.admitted:
            for i in ids:
                self.admitted.pop(i, None)
        done.clear()
        lasts.clear()
        self.ticks.clear()

    def _trim(self, tick: int) -> None:
        """Forget the ends of steps that nobody needs any more, at *tick*."""
        engine = self.engine
        buckets: dict[int, list[Any]] = engine.buckets
        self._record()
        began = [last - entry[1] + 1 for last, bucket in buckets.items() for entry in bucket if type(entry) is tuple]
        first = min(*began, *engine.joined.values(), tick, tick)
        del engine.ends[: first - engine.first_end]
        engine.first_end, engine.trim_at = first, max(8192, 2 * (tick - first))

    def _objects(self, untaken: bool) -> None:
        """Make whatever is here into requests and tasks; those that came last are *untaken* yet."""
        engine = self.engine
        view, worker, admitted = engine.view, engine.worker, self.admitted
        buckets: dict[int, list[Any]] = engine.buckets
        found: list[tuple[Entry, int]] = [
            (entry, last) for last, bucket in buckets.items() for entry in bucket if type(entry) is tuple
        ]
        made: dict[int, TokenTask] = {}
        for entry, last in sorted(found):
            row, length, _, _, started, first = entry
            task = made[row[0]] = self._task(row)
            self._taken_in(task, admitted.get(row[0], started))
            task.started, task.first_token = started, first
            if task.token_times is not None:
                task.token_times.append(first)
                engine.joined[task] = last - length + 1
            task.base_generated, task.base_computed, task.ticks = length - last, task.prompt, engine.ticks
            engine.bases[task] = length - last
            if engine.booked:
                engine.marks[task] = started, first, 0
            view.running[task] = None
        for last in {last for _, last in found}:
            buckets[last] = [made[e[0][0]] if type(e) is tuple else e for e in buckets[last]]
        for row in self.waiting:
            task = self._task(row)
            self._taken_in(task, admitted[row[0]])
            view.waiting[task] = None
        worker.inbox[:0] = [self._task(row) for row in self.came]
        if untaken:  # what took the ordinary way was there before what came before it
            live = engine.loop.live
            order = sorted(live.items())
            live.clear()
            live.update(order)
        for rest in (self.waiting, self.came, admitted):
            rest.clear()

    def _taken_in(self, task: TokenTask, now: float) -> None:
        task.admitted = now
        if self.engine.seen:
            task.arrival = now
        if self.engine.booked:
            self.engine.note(task)

    def _task(self, row: Row) -> TokenTask:
        """What the ordinary way makes of *row*."""
        engine = self.engine
        request = self.source.request(row)
        request.outputs = None
        engine.loop.live[request.id] = request
        _, arrival, prompt, limit, length = row
        task = TokenTask(request, engine.stage, arrival, engine.worker.place, prompt, limit)
        engine.lengths[task] = length if length < limit else limit
        request.tasks.append(task)
        if engine.keep_times:
            task.token_times = array("d")
        return task
