"""An engine that decides ahead under a policy's standing decision: requests as numbers, from arrival to end.

What `columns` is for engines that decide each step when the last is over, this is for those with two steps in flight
(`servetwin.core.llm.serving.async_engine`): the same requests as numbers, the same rules for what a step computes.
What differs is when the host decides, hears of a step's end and takes requests in, and that a step counts as done
from when it is decided while its tokens come out when it is over. Decode steps on end are those of `ahead_runs`. As
soon as the policy's word no longer holds, or a request comes that it does not hold for, whatever is there is made
into the objects that would be there, at a time at which the host decides.

Every number is computed by the same operations in the same order as in the engine; `async_lane` says what each step
takes. `tests/sim/llm/test_ahead_columns.py` holds them together. A change there is a change here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import chain
from typing import TYPE_CHECKING, Any

from servetwin.core import Repeat
from servetwin.core.llm import Fill, TokenTask
from servetwin.core.llm.batch import Regrouped, TokenBatch
from servetwin.core.llm.serving.async_engine import Flight, TokenEngineAhead
from servetwin.core.serving.client import Client

from .ahead_runs import FEW, AheadRuns, Flying
from .async_lane import AheadLane
from .column_records import AT_ONCE
from .column_requests import BLOCK, ColumnRequests
from .column_steps import NOTHING, SHORT, Pick, chunks, grown, whole_prompts
from .lane import NEVER
from .request_columns import TokenColumns

if TYPE_CHECKING:
    from servetwin.core.llm import Step

#: Whose prompt a step computes: only its length counts.
NOBODY: Any = None
#: A word that lasts, since the standing one does.
FOR_EVER = Repeat(sys.maxsize)


class Launched:
    """A step in flight, and over at *end*: when it was *decided*, the *tick* in which all that decode get a token
    (None: nobody does), those for whom it is the last (*leaving*, places and tasks), and its prompts: *many* from the
    place *first* on, of the first of which *before* tokens were computed before, and of the last *part* are computed
    now (0: all). *whole* are those of which no token is left, whose first token comes out."""

    __slots__ = ("batch", "before", "decided", "end", "first", "leaving", "many", "part", "tick", "whole")

    batch: TokenBatch
    decided: float
    end: float

    def __init__(self, before: int = 0, many: int = 0, whole: int = 0, first: int = 0, part: int = 0) -> None:
        self.before, self.many, self.whole, self.first, self.part = before, many, whole, first, part
        self.tick: int | None = None
        self.leaving: list[Any] = []

    def flies(self, batch: TokenBatch, decided: float, end: float, tick: int | None) -> Launched:
        """It is on its way."""
        self.batch, self.decided, self.end, self.tick = batch, decided, end, tick
        return self


class AheadColumns(ColumnRequests):
    """An engine on *lane* that is left to itself, again and again. Its state between two of the host's decisions:

    *tick*, *free*, *context* and *decoding* are as the next decision finds them, *head* is the first place whose
    prompt is not computed to the end, those before *taken* are in the queue, those before *tail* have come. Of the
    steps in *flying* so many are over that the host has not heard of (*unheard*).
    """

    __slots__ = (
        "away", "away_context", "begun", "busy", "context", "debt", "decoding", "flying", "free", "head", "host",
        "lane", "launched", "left_out", "runs", "settled", "tail", "taken", "tick", "unheard",
    )  # fmt: skip

    engine: TokenEngineAhead

    def __init__(self, engine: TokenEngineAhead, lane: AheadLane, source: TokenColumns, client: Client) -> None:
        super().__init__(engine, lane.timing, lane.calendar, source, client)
        self.lane, self.host, self.runs = lane, engine.ahead, AheadRuns(engine, lane)
        self.busy = self.host.pieces > 0.0  # launches keep the host for longer than steps take
        self.flying: list[Launched] = []
        self.unheard = 0
        self.debt = 0.0  # seconds for steps that ended while the host was at something else
        self.away = self.away_context = 0  # those that decode and are not in the host's tables, and their context
        self.begun = self.left_out = (
            False  # whether a prompt was begun in the last step; whether it was left out since
        )

    def go_on(self, step: Step, now: float) -> float | None:
        """Go on from *now*, when the policy has decided *step*, that all decode. Gives the time at which it is to be
        asked again; else as `AheadRuns.go_on`."""
        engine, standing = self.engine, step.standing
        if (
            not standing
            or not self.given(step)
            or not engine.steady()
            or not engine.affordable(1)
            or not self.lane.take_out(self.client.timer)
        ):
            return self.runs.go_on(step, now) if self.tell is None else None  # where each step is recorded
        self.open(step, flying=1)
        return self.until_asked(lambda: self.run(standing, now))

    # -- the host -----------------------------------------------------------------------------------------

    def run(self, rule: bool | Fill, now: float) -> float:
        """Go on from *now*, when the host decides, by *rule*, which stands for all steps. Gives when to ask the
        policy again; ``source.row`` is then what comes next."""
        engine = self.engine
        view, (flight,) = engine.view, engine.flights
        assert isinstance(view.in_flight, TokenBatch)
        self.flying.append(Launched().flies(view.in_flight, flight.decided, self.lane.last, flight.tick))
        engine.flights.clear()
        self.tick, self.free = engine.ticks.count, view.free_blocks
        self.context, self.decoding = view.context, view.decoding
        self.settled = engine.settled
        self.head = self.taken = self.tail = 0
        mixed = isinstance(rule, Fill)
        pick = chunks(self, rule) if isinstance(rule, Fill) else whole_prompts(self)
        while True:
            before = self.batches
            waking = self._decide(pick, mixed, now)
            if self.short or (not self.flying and self.head < self.taken):
                break  # the policy sees to it
            if waking is None:
                waking = self._wait(now, self.batches > before)
            if waking == NEVER:
                break  # nobody is here, and nobody comes
            now = self._rest(waking)
            came = min(self.tail, self.edge)
            self.admits += [now] * (came - self.taken)
            self.taken = came
            if self.tail > came:
                break  # somebody has come for whom the policy's word does not hold
        self._close(now)
        return now

    def _wait(self, now: float, launched: bool) -> float:
        """The host has decided *now*. Gives when it decides anew, unless more is to be done until then; infinite if
        nobody is here and nobody comes."""
        flying = self.flying
        if not flying:
            return self.arrivals[self.tail]
        if launched and len(flying) == 1:
            return now + (self.launched - now)  # then it decides the next one
        if not self.unheard:
            over = flying[0].end
            if over >= self.launched:
                return over + self._settle(over)
            self.unheard, now = 1, over
        heard = max(self.launched, now)  # the host is launching what it decided last
        while len(flying) > self.unheard and flying[self.unheard].end <= heard:
            self.unheard += 1
        many = 1 if self.busy else self.unheard
        self.unheard -= many
        waking = heard + self._settle(heard)
        for _ in range(many - 1):
            self.debt += self._settle(heard)
        return waking

    def _rest(self, waking: float) -> float:
        """The host is busy until then. Gives when it decides: steps that end meanwhile, and requests that come, take
        it longer."""
        while True:
            flying = self.flying
            while len(flying) > self.unheard and flying[self.unheard].end <= waking:
                if self.busy:
                    self.unheard += 1  # it hears of that after the next launch
                else:
                    self.debt += self._settle(flying[0].end)
            if self.debt:
                waking, self.debt = waking + self.debt, 0.0
            elif self.arrivals[self.tail] <= waking:
                waking += self._come_until(waking) * self.host.intake
            else:
                return waking

    def _come_until(self, now: float) -> int:
        """How many come that the host takes in, up to now."""
        begin, edge, arrivals = self.tail, self.edge, self.arrivals
        tail = begin + 1
        while arrivals[tail] <= now:
            tail += 1
        if tail < edge:
            self.tail = tail
            return tail - begin
        tail, shift = self.come(begin, now, self.head)
        if shift:
            self.head, self.taken = self.head - shift, self.taken - shift
            for step in self.flying:
                step.first -= shift
        self.tail, begin = tail, begin - shift
        return max(0, min(tail, self.edge) - begin) + self.engine.newcomers()

    # -- a step begins ------------------------------------------------------------------------------------

    def _decide(self, pick: Pick, mixed: bool, now: float) -> float | None:
        """The host decides *now*, and launches a step if there is one. Gives when it decides anew if nothing happens
        until then that has not been looked at (None: look)."""
        head, decoding = self.head, self.decoding
        pieces = NOTHING
        if head < self.taken:
            before = self.part
            pieces, whole, free, seconds = pick(now, head, self.taken, self.free, decoding, self.context, self.tick)
            if pieces > 0:
                self.free = free
                step = Launched(before, pieces, whole, head, self.part)
                tokens = sum(self.prompts[head : head + pieces]) - before
                tokens += self.part - self.prompts[head + pieces - 1] if self.part else 0
                self._launch(now, step, decoding if mixed else 0, tokens, seconds)
                return None
        if pieces == SHORT:
            self.short = True
        elif decoding:
            if pieces == NOTHING and self.tell is None and self._is_steady():
                times = self._times()
                if times >= FEW:
                    return self._run_on(now, times)
            if self.free - self.engine.headroom < self.engine.phases[-self.tick % self.engine.size]:
                self.short = True
            else:
                self._launch(now, Launched(), decoding, 0, None)
        return None

    def _launch(self, now: float, step: Launched, decode: int, tokens: int, seconds: float | None) -> None:
        """So many decode, and so many *tokens* of prompts are computed, in a *step* that takes *seconds* before noise
        (None: what decoding takes)."""
        engine, flying = self.engine, self.flying
        batch = TokenBatch(0, engine.worker.place, decode, self.context if decode else 0, free=self.free)
        if tokens:
            batch.prefill = [(NOBODY, tokens, 0)]
            batch.size = decode + step.many
            if not decode and self.decoding:
                batch.chosen = []
        if engine.regroups:
            batch.regrouped = self._regrouped(decode, step)
        flying.append(step.flies(batch, now, self.lane.begin(batch, now, seconds), self.tick if decode else None))
        assert batch.launched is not None
        self.launched = batch.launched
        self.batches += 1
        if decode:
            self.free -= engine.phases[-self.tick % engine.size]
            self.context += decode
            self.tick += 1
            if engine.leaving[0] <= self.tick:
                self._leave(step.leaving)
        if step.whole:
            self._join(step)

    def _regrouped(self, decode: int, step: Launched) -> Regrouped | None:
        """As `Absent.regroup` of the engine: all decode or nobody does, and prompts are begun in order."""
        left = back = tokens = 0
        if decode:
            back, tokens, self.away = self.away, self.away_context if self.away else 0, 0
        elif self.decoding > self.away:
            left = self.decoding - self.away
            self.away, self.away_context = self.decoding, self.context
        if step.many:
            if self.left_out and step.before:
                self.left_out = False
                back += 1
                tokens += step.before
            self.begun = step.part > 0
        elif self.begun:
            self.begun, self.left_out = False, True
            left += 1
        return Regrouped(left, back, tokens) if left or back else None

    def _leave(self, spent: list[Any]) -> None:
        """The last token of those whose turn it is comes with this step: they do not decode any more."""
        engine, prompts, lengths, tick = self.engine, self.prompts, self.lengths, self.tick
        leaving, phases, size = engine.leaving, engine.phases, engine.size
        while leaving and leaving[0] <= tick:
            for one in self.buckets.pop(heappop(leaving)):
                if type(one) is int:
                    computed = prompts[one] + lengths[one] - 1
                elif one in engine.bases and engine.bases[one] + tick == engine.lengths[one] and one not in spent:
                    computed = one.prompt + engine.lengths[one] - 1
                else:
                    continue  # preempted since, and in another bucket now, or in this one again
                self.context -= computed
                phases[(computed - tick) % size] -= 1
                spent.append(one)
        self.decoding -= len(spent)
        self.spent += len(spent)

    def _join(self, step: Launched) -> None:
        """The first token of those whose prompts are computed to the end comes with *step*: then they decode."""
        prompts, lengths, buckets, tick = self.prompts, self.lengths, self.buckets, self.tick
        phases, size, leaving = self.engine.phases, self.engine.size, self.engine.leaving
        for place in range(step.first, step.first + step.whole):
            prompt, length = prompts[place], lengths[place]
            if length <= 1:
                step.leaving.append(place)
                self.spent += 1
                continue
            last = tick + length - 1
            self.decoding += 1
            self.context += prompt
            phases[(prompt - tick) % size] += 1
            if last in buckets:
                buckets[last].append(place)
            else:
                buckets[last] = [place]
                heappush(leaving, last)
        self.head += step.whole

    # -- decode steps on end ------------------------------------------------------------------------------

    def _is_steady(self) -> bool:
        """As `TokenEngineAhead.steady`."""
        if len(self.flying) != 1 or self.unheard or self.away or self.begun:
            return False
        (step,) = self.flying
        return step.tick is not None and not step.many and not step.leaving and step.batch.size == self.decoding

    def _times(self) -> int:
        """For how many steps on end all that decode can go on so, and none of those for whom it is the last."""
        engine = self.engine
        times, size = engine.leaving[0] - self.tick - 1, engine.size
        if times >= FEW and (self.free - engine.headroom) * size < self.decoding * (times + size - 1):
            times = self.affordable(times, self.free, self.tick)
        return times

    def _run_on(self, now: float, times: int) -> float | None:
        """So many steps, up to what comes next. Gives when the host decides; None: it waits for the older of two."""
        engine, (step,), size = self.engine, self.flying, self.decoding
        older = Flying(step.decided, 0, 0, 0.0, 0.0, step.end)
        at = self.tick, size, self.context, self.free
        run = self.runs.run(older, now, *at, self.settled, FOR_EVER, times, self.arrivals[self.tail])
        self.batches += run.steps
        if run.ends:
            self.flying.clear()
            self.counted[size] += len(run.ends)
            engine.ends.extend(run.ends)
            self.settled, self.last_step, self.last_decode = run.settled, run.took, run.took
            self._trim_ends()
        self.context += run.steps * size
        self.tick += run.steps
        self.free -= grown(engine.phases, -(self.tick - 1) % engine.size, run.steps)
        for each in run.flying[len(self.flying) :]:
            batch = TokenBatch(0, engine.worker.place, size, each.context, each.start, free=each.free)
            batch.launched = self.launched = each.launched
            self.flying.append(Launched().flies(batch, each.decided, each.end, 0))
        for back, last in enumerate(reversed(self.flying), 1):
            last.tick = self.tick - back
        self.lane.last, self.lane.decode = self.flying[-1].end, size
        return run.until if run.until < NEVER else None

    # -- a step ends --------------------------------------------------------------------------------------

    def _settle(self, now: float) -> float:
        """The host hears *now* that the oldest step is over; gives the seconds until it has handed its tokens on."""
        engine, step = self.engine, self.flying.pop(0)
        batch, decided, settled = step.batch, step.decided, self.settled
        self.last_step = now - (decided if decided > settled else settled)
        if self.tell is not None:
            begun = self.first + step.first, self.prompts[step.first : step.first + step.many], step.part
            start = batch.start if batch.start > settled else settled
            self.tell((start, now, batch.decode, batch.context, batch.free or 0, None, *begun))
        self.settled = now
        if not step.many:
            self.last_decode = self.last_step
        size = batch.size
        self.counted[size] += 1
        if step.tick is not None:
            engine.ends.append(now)
        if step.whole:
            self.firsts += [now] * step.whole
        if step.leaving:
            self._end(step.leaving, now)
        self._trim_ends()
        if self.records is not None:
            self.records.write(AT_ONCE)
        gap = self.gaps.get(size)
        if gap is None:
            gap = self.gaps[size] = self.host.between(size)
        return gap

    def _end(self, spent: list[Any], now: float) -> None:
        """Those have generated all."""
        engine, size = self.engine, self.engine.size
        tick = engine.first_end + len(engine.ends)
        for one in spent:
            if type(one) is int:
                self.free -= -(self.prompts[one] + self.lengths[one] - 1) // size
                self.ended(one, now, tick)
            else:
                self.record()
                self.calendar.set_time(now)
                engine.view.free_blocks, engine.ticks.count = self.free, tick
                self._part(one, tick)
                engine.finish(one, now)
                self.free = engine.view.free_blocks
        self.spent -= len(spent)
        if len(self.done) > BLOCK:
            self.record()

    def _part(self, task: TokenTask, tick: int) -> None:
        """Let *task*, which `_leave` has taken out of the sums, take itself out."""
        engine = self.engine
        engine.phases[(task.prompt + engine.lengths[task] - 1 - tick) % engine.size] += 1
        engine.part(task)
        engine.keep_books(task)

    def _trim_ends(self) -> None:
        engine = self.engine
        if len(engine.ends) > engine.trim_at:
            first = engine.first_end + len(engine.ends)
            for step in self.flying:
                if step.tick is not None:
                    first = min([first, *(step.tick + 2 - self.lengths[i] for i in step.leaving if type(i) is int)])
            self.trim(first)

    # -- objects ------------------------------------------------------------------------------------------

    def placed(self) -> Iterable[list[Any]]:
        return chain(super().placed(), [step.leaving for step in self.flying])

    def _close(self, now: float) -> None:
        """Leave engine, lane and summary as they would be when the host decides *now*."""
        engine = self.engine
        view = engine.view
        engine.ticks.count = engine.tick = self.tick
        engine.loop.batches += self.batches
        self.calendar.set_time(now)
        view.last_step, view.last_decode = self.last_step, self.last_decode
        counted = engine.loop.recorder.summary.sizes[engine.worker.name]
        for size, many in self.counted.items():
            counted[size] += many
        self.counted.clear()
        if self.records is not None:
            self.records.write()
        flying, step = None, self.flying.pop() if self.flying else None
        spent = {one: step.tick for one in step.leaving if type(one) is int} if step is not None else {}
        made = self._objects(self.head, self.taken, min(self.tail, self.edge), self.tail, spent)
        if step is not None:
            flying = step.batch, self._flight(step, made)
            if not self.unheard:
                self.lane.give_back(step.batch, step.end, engine.done)
        view.free_blocks, view.context, view.decoding = self.free, self.context, self.decoding
        engine.resume(
            flying,
            over=self.unheard > 0,
            settled=self.settled,
            launched=self.launched,
            away=self.away,
            begun=self.begun,
            left_out=self.left_out,
        )
        self.unheard = self.spent = self.away = 0
        self.begun = self.left_out = False

    def _flight(self, step: Launched, made: dict[int, TokenTask]) -> Flight:
        """What the engine knows of *step*, the last that was decided, whose requests are *made* into tasks."""
        engine, batch, flight = self.engine, step.batch, Flight(step.decided)
        flight.tick = step.tick
        engine.flights.append(flight)
        for one in step.leaving:
            if type(one) is not int:
                self._part(one, self.tick)
        for task in [made[one] if type(one) is int else one for one in step.leaving]:
            flight.owed[task] = flight.leaving[task] = None
        pieces = []
        for place in range(step.first, step.first + step.many):
            before = step.before if place == step.first else 0
            upto = step.part if step.part and place == step.first + step.many - 1 else made[place].prompt
            pieces.append((made[place], upto - before, before))
        flight.owed.update(dict.fromkeys([task for task, _, _ in pieces[: step.whole]]))
        if pieces:
            batch.prefill = pieces
        batch.id, batch.keep_ends = engine.loop.batches, engine.keep_ends
        return flight
