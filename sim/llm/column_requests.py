"""Requests as numbers at one engine: read from their columns, noted down when they have ended, made into objects.

Those that an engine is left alone with stand in lists, in the order in which they arrive, and go by their places
there; `ColumnRequests.first` is the number of the one at place 0. Prompts are computed in that order too, so those
that have their first token come before those that are begun or wait.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from servetwin.core import Outcome, RunFolder
from servetwin.core.llm import Fill, TokenTask
from servetwin.core.llm.metric_blocks import TokenBlock
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.engine import TokenEngine
from servetwin.core.serving.client import Client
from servetwin.core.slo import latest

from ..time.calendar import Calendar
from .column_records import ColumnRecords
from .lane import NEVER, TokenTiming
from .latency_columns import TokenLatencies
from .request_columns import Row, TokenColumns

if TYPE_CHECKING:
    from servetwin.core.llm import Step

#: So many that have ended are put into their columns at once.
BLOCK = 512
#: So many requests are read ahead at first, and at most.
AHEAD, FAR_AHEAD = 8, 1024


#: Where nobody's last token is in flight.
NOBODY_SPENT: Mapping[int, int | None] = MappingProxyType({})

#: From this context on: constant, slope, until that context; and seconds between two such steps.
Line = tuple[float, float, float, float, float]


class ColumnRequests:
    """The requests of *source* at *engine*, whose steps take what *timing* says, on *calendar*; *client* sends them
    while the engine is not left to itself."""

    __slots__ = (
        "admits",
        "ahead",
        "arrivals",
        "batches",
        "buckets",
        "calendar",
        "classes",
        "client",
        "counted",
        "done",
        "edge",
        "engine",
        "first",
        "firsts",
        "gaps",
        "last_decode",
        "last_step",
        "lasts",
        "lengths",
        "limits",
        "lines",
        "longest",
        "more",
        "noted",
        "outputs",
        "part",
        "prefills",
        "prompts",
        "records",
        "short",
        "source",
        "spent",
        "starts",
        "tell",
        "ticks",
        "timing",
    )  # fmt: skip

    def __init__(
        self, engine: TokenEngine, timing: TokenTiming, calendar: Calendar, source: TokenColumns, client: Client
    ) -> None:
        self.engine, self.timing, self.calendar, self.source, self.client = engine, timing, calendar, source, client
        # All three are properties of the device, so they are asked for once.
        self.lines: dict[int, Line] = {}  # steps in which all decode, by how many
        self.gaps: dict[int, float] = {}  # seconds after a step of so many sequences
        self.prefills: dict[int, float] = {}  # tokens of a prompt -> seconds of a step that prefills it alone
        self.counted: defaultdict[int, int] = defaultdict(int)  # steps by size
        self.batches = 0
        self.last_step = self.last_decode = 0.0  # seconds
        self.spent = 0  # those whose last token is in flight: they hold their place, but do not decode
        self.short = False  # whether memory does not last for a step in which all decode
        self.buckets: dict[int, list[Any]] = engine.buckets  # of tasks, then of places
        self.longest = 0  # prompt that takes the ordinary course
        self.done: list[int] = []  # the places of those that have ended, and are not noted yet
        self.lasts: list[float] = []  # when each of them did
        self.ticks: list[int] = []  # and at which tick
        self.first = 0  # the number of the one at place 0
        # By place: what has come or is known to come, and an infinite arrival after the last of them.
        self.arrivals: list[float] = []
        self.prompts: list[int] = []
        self.limits: list[int] = []
        self.outputs: list[int] = []
        self.classes: list[str] = []
        self.lengths: list[int] = []  # the less of both
        self.admits: list[float] = []  # when each was taken in
        self.starts: list[float] = []  # when its prompt was begun
        self.firsts: list[float] = []  # when its first token came out
        self.part = 0  # tokens of the first prompt without a token that are computed
        self.edge = 0  # the place of the first that does not take the ordinary course, or of the infinite arrival
        self.more = True  # whether there are any that have not been read
        self.noted = 0  # so many are in the summary
        self.ahead = AHEAD
        folder = engine.loop.recorder
        self.records = ColumnRecords(engine, folder) if isinstance(folder, RunFolder) else None
        self.tell = self.records.steps.append if self.records is not None else None

    # -- reading ------------------------------------------------------------------------------------------

    def open(self, step: Step, flying: int = 0) -> None:
        """Nobody is here as numbers yet, and the next to come has been read. Those come that *step* gives its word
        for. So many steps are in flight."""
        engine, rule = self.engine, step.standing
        most = engine.view.max_batched_tokens
        if isinstance(rule, Fill):
            most = engine.longest if rule.cut else min(rule.tokens, most)
        self.longest = min(engine.longest, most)
        self.last_step, self.last_decode = engine.view.last_step, engine.view.last_decode
        self.short, self.batches = False, 0
        row = self.source.row
        self.arrivals.append(NEVER)
        self.edge = self.noted = self.part = 0
        self.more, self.ahead = row is not None, AHEAD
        if self.records is not None:
            self.records.open(flying)
        if row is not None:
            self.first, arrival, prompt, limit, output, name = row
            self._add([arrival], [prompt], [limit], [output], [name])
            self._read()

    def _read(self) -> None:
        self._add(*self.source.read(self.ahead))
        self.ahead = min(2 * self.ahead, FAR_AHEAD)

    def _add(
        self, arrivals: list[float], prompts: list[int], limits: list[int], outputs: list[int], classes: list[str]
    ) -> None:
        if not arrivals:
            self.more = False
            return
        ordinary = self.edge == len(self.prompts)  # all that have been read
        self.arrivals[-1:] = arrivals
        self.arrivals.append(NEVER)
        self.prompts += prompts
        self.limits += limits
        self.outputs += outputs
        self.classes += classes
        self.lengths += outputs if max(outputs) <= min(limits) else map(min, limits, outputs)
        if ordinary:
            longest = self.longest
            if max(prompts) > longest:
                self.edge += next(place for place, prompt in enumerate(prompts) if prompt > longest)
            else:
                self.edge += len(prompts)

    def come(self, tail: int, until: float, head: int) -> tuple[int, int]:
        """Go on from place *tail*, who has not come, to who comes first after *until*; those from *head* on are not
        computed. Those beyond the edge then take the ordinary way. Gives the place, and by how many all places have
        moved to the front."""
        arrivals, shift, begin = self.arrivals, 0, tail
        while True:
            while arrivals[tail] <= until:
                tail += 1
            if not self.more or tail < len(self.prompts):
                break
            if tail > 2 * FAR_AHEAD:
                moved = self._forget(head - shift)
                shift += moved
                tail -= moved
            self._read()
        if tail > self.edge:
            self._note(self.edge)
            self.record()
            last_end = self.engine.loop.recorder.summary.last_end
            for place in range(max(self.edge, begin - shift), tail):
                self.calendar.set_time(arrivals[place])
                self.client.loop.arrive(self.source.request(self._row(place)))
            summary = self.engine.loop.recorder.summary
            summary.last_end = max(summary.last_end, last_end)  # who was refused may have ended before
        return tail, shift

    def _forget(self, head: int) -> int:
        """Drop those at the front that have ended, none from *head* on; gives how many."""
        self.record()
        here = [place for bucket in self.placed() for place in bucket if type(place) is int]
        many = min(here, default=head)
        if many:
            self._note(self.edge)  # all up to there have come
            for bucket in self.placed():
                bucket[:] = [place - many if type(place) is int else place for place in bucket]
            for column in self._columns():
                del column[:many]
            self.first += many
            self.edge -= many
            self.noted -= many
        return many

    def placed(self) -> Iterable[list[Any]]:
        """The lists of those that run."""
        return self.buckets.values()

    def _columns(self) -> Sequence[list[Any]]:
        told = (self.arrivals, self.prompts, self.limits, self.outputs, self.classes)
        return (*told, self.lengths, self.admits, self.starts, self.firsts)

    def _row(self, place: int) -> Row:
        told = self.arrivals[place], self.prompts[place], self.limits[place], self.outputs[place], self.classes[place]
        return (self.first + place, *told)

    # -- noting down --------------------------------------------------------------------------------------

    def _note(self, upto: int) -> None:
        """All before this place have arrived, and not as the first of all: somebody decodes."""
        if upto > self.noted:
            summary = self.engine.loop.recorder.summary
            summary.requests += upto - self.noted
            summary.last_arrival = self.arrivals[upto - 1]
            self.noted = upto

    def record(self) -> None:
        """Note down those that have ended, many at a time."""
        many = len(self.ticks)  # what is noted last of each: a signal may come in between
        if not many:
            return
        done, lasts, ticks = self.done[:many], self.lasts[:many], self.ticks[:many]
        del self.done[:many], self.lasts[:many], self.ticks[:many]
        recorder, engine = self.engine.loop.recorder, self.engine
        summary = recorder.summary

        def of_them(column: list[Any]) -> np.ndarray:
            return np.array([*map(column.__getitem__, done)])

        sent, first, last, counts = (
            of_them(self.arrivals),
            of_them(self.firsts),
            np.array(lasts),
            of_them(self.lengths),
        )
        terms, classes = self.source.terms, self._classes(done)
        due = sent + (np.array([terms[name].slo for name in classes]) if classes else terms[""].slo)
        in_time = last <= latest(due)
        if recorder.wants_token_times:
            assert isinstance(summary, TokenSummary)
            arrival = of_them(self.admits) if engine.seen else sent
            begins = np.array(ticks) - (counts - 1)
            low, high = int(begins.min()), ticks[-1]
            since = engine.first_end
            ends = np.array(engine.ends[low - since : high - since])
            prompts = of_them(self.prompts)
            block = TokenBlock(sent, arrival, prompts, counts, first, last, begins - low, ends, classes)
            kept, on_time = summary.stages[engine.stage.name].ended_block(block)
            in_time &= kept
            if classes:
                summary.count_block(block, in_time, on_time, terms)
            if self.records is not None:
                told = {"id": np.array(done) + self.first, "deadline": due, "limit": of_them(self.limits)}
                told |= {"admitted": of_them(self.admits), "started": of_them(self.starts)}
                first_of_each = dict(zip(classes[::-1] or [""], done[::-1] if classes else done, strict=False))
                like = {name: self._visit(self._row(place)) for name, place in first_of_each.items()}
                self.records.ended(like, block, in_time, told)
        summary.e2el.extend(last - sent)
        met = int(np.count_nonzero(in_time))
        for outcome, many in ((Outcome.MET, met), (Outcome.LATE, len(done) - met)):
            if many:
                summary.outcomes[outcome] += many
        summary.last_end = lasts[-1]
        if isinstance(recorder, TokenLatencies):
            gaps = counts - 1
            recorder.ids.extend((np.array(done) + self.first).tolist())
            recorder.ttft.frombytes((first - sent).tobytes())
            recorder.tpot.frombytes(np.where(gaps > 0, (last - first) / np.maximum(gaps, 1), 0.0).tobytes())
        if len(summary.e2el.recent) >= summary.most:
            summary.put_away()

    def _classes(self, places: Sequence[int]) -> list[str]:
        """The class of each of these, if there are any classes."""
        return [self.classes[place] for place in places] if len(self.source.terms) > 1 else []

    def trim(self, tick: int) -> None:
        """Forget the ends of steps that nobody needs any more, at *tick*."""
        engine, lengths = self.engine, self.lengths
        self.record()
        began = [t - lengths[i] + 1 for t, bucket in self.buckets.items() for i in bucket if type(i) is int]
        first = min(*began, *engine.joined.values(), tick, tick)
        del engine.ends[: first - engine.first_end]
        engine.first_end, engine.trim_at = first, max(8192, 2 * (tick - first))

    def ended(self, place: int, now: float, tick: int) -> None:
        """The one at *place* has generated all."""
        self.done.append(place)
        self.lasts.append(now)
        self.ticks.append(tick)

    def affordable(self, times: int, free: int, tick: int) -> int:
        """For how many steps of all that decode, up to *times*, *free* blocks last."""
        engine = self.engine
        engine.view.free_blocks, engine.ticks.count = free, tick
        return engine.affordable(times)

    # -- objects ------------------------------------------------------------------------------------------

    def let_go(
        self, bucket: Sequence[Any], now: float, tick: int, free: int, context: int, decoding: int
    ) -> tuple[list[int], int, int, int]:
        """The tasks of *bucket* have generated all (if they were not preempted since). Gives the others, and free
        blocks, and context and number of those that decode."""
        engine = self.engine
        view = engine.view
        engine.ticks.count = engine.tick = tick
        self.calendar.set_time(now)
        view.free_blocks, view.context, view.decoding = free, context, decoding
        self.record()
        tasks = [task for task in bucket if type(task) is not int]
        for task in tasks:
            if task in engine.bases and engine.bases[task] + tick == engine.lengths[task]:
                engine.part(task)
                engine.finish(task, now)
        return [*bucket[len(tasks) :]], view.free_blocks, view.context, view.decoding

    def _objects(
        self, head: int, taken: int, came: int, tail: int, spent: Mapping[int, int | None] = NOBODY_SPENT
    ) -> dict[int, TokenTask]:
        """Make those that are here into requests and tasks: those before place *head* that decode, or whose last
        token is in flight (*spent*, with the tick that gives it), those before *taken* that are begun or wait, and
        those before *came* that are not taken in. Who comes at *tail* is next. Gives those that run, by place."""
        engine = self.engine
        view, live = engine.view, engine.loop.live
        self._note(came)
        self.record()
        made = self._running(spent)
        for place in range(head, taken):
            task = self._taken_in(place)
            if place == head and self.part:
                task.started, task.base_computed = self.starts[place], self.part
                engine.keep_books(task)
                view.running[task] = None
                made[place] = task
            else:
                view.waiting[task] = None
        engine.worker.inbox[:0] = [self._task(self._row(place)) for place in range(taken, came)]
        if came < tail:  # what took the ordinary way was there before what came before it
            order = sorted(live.items())
            live.clear()
            live.update(order)
        source, rest = self.source, tail + 1
        source.row = self._row(tail) if tail < len(self.prompts) else None
        told = (self.prompts, self.limits, self.outputs, self.classes)
        source.put_back(self.arrivals[rest:-1], *[column[rest:] for column in told])
        for column in self._columns():
            column.clear()
        return made

    def _running(self, spent: Mapping[int, int | None]) -> dict[int, TokenTask]:
        """Make those that decode, and the *spent*, into tasks."""
        engine, made = self.engine, {}
        found = {place: last for last, bucket in self.buckets.items() for place in bucket if type(place) is int}
        for place in sorted([*found, *spent]):
            task = made[place] = self._taken_in(place)
            length, first = self.lengths[place], self.firsts[place] if place < len(self.firsts) else None
            task.started, task.first_token = self.starts[place], first
            if task.token_times is not None and first is not None:
                task.token_times.append(first)
            if place in spent:
                self._spend(task, length, spent[place])
                continue
            last = found[place]
            if task.token_times is not None:
                engine.joined[task] = last - length + 1
            task.base_generated, task.base_computed, task.ticks = length - last, task.prompt, engine.ticks
            engine.bases[task] = length - last
            if engine.booked:
                engine.marks[task] = task.started, first, 0
            engine.view.running[task] = None
        for last in {*found.values()}:
            self.buckets[last] = [made[i] if type(i) is int else i for i in self.buckets[last]]
        return made

    def _spend(self, task: TokenTask, length: int, tick: int | None) -> None:
        """The last token of *task* is in flight, of that *tick* (None: it is its first)."""
        engine = self.engine
        task.base_generated, task.base_computed = length, task.prompt + length - 1
        if task.token_times and tick is not None:
            task.token_times.extend(engine.ends[tick + 2 - length - engine.first_end :])
        engine.keep_books(task)
        engine.view.running[task] = None

    def _taken_in(self, place: int) -> TokenTask:
        task = self._task(self._row(place))
        task.admitted = now = self.admits[place]
        if self.engine.seen:
            task.arrival = now
        if self.engine.booked:
            self.engine.note(task)
        return task

    def _task(self, row: Row) -> TokenTask:
        """What the ordinary way makes of *row*."""
        engine, task = self.engine, self._visit(row)
        engine.loop.live[task.id] = task.request
        *_, limit, length, _ = row
        engine.lengths[task] = length if length < limit else limit
        if engine.keep_times:
            task.token_times = array("d")
        return task

    def _visit(self, row: Row) -> TokenTask:
        """Its visit alone, of which nobody knows yet."""
        engine, request = self.engine, self.source.request(row)
        request.outputs = None
        _, arrival, prompt, limit, _, _ = row
        task = TokenTask(request, engine.stage, arrival, engine.worker.place, prompt, limit)
        request.tasks.append(task)
        return task
