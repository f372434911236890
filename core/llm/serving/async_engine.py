"""An LLM engine that decides ahead: the next step is decided while the one before it still runs.

So vLLM's asynchronous scheduling works (vLLM V1's default). The host has two steps in flight at most. With one in
flight it decides a second at once; with two, or if there is nothing to decide, it waits for the older one, takes its
tokens in and hands them on, takes in what came meanwhile, and decides again. So step k + 2 is decided at the end of
step k, while k + 1 computes, and what lies between two steps is hidden behind the device. Not so a step that is
launched kernel by kernel: until the host has done that, the tokens of the step before it stay where they are.

What a policy is shown is ahead of the device: a step that was decided counts as done. Its tokens are generated, its
blocks are taken; when they came out, and who has ended, shows when the step is over. A request whose last token is in
flight does not decode any more but keeps its blocks and its place among the running until then. If it is preempted,
its blocks are free at once, but a token of it that is in flight still counts: it comes out with its step, and is then
computed anew with the rest (vLLM 0.25.1 and 0.27.1 alike).

With tensor parallelism vLLM's workers are processes of their own: they launch what they are told of, step after step,
and the host hears of ends meanwhile (`Host.told`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop
from itertools import islice
from math import inf
from typing import cast

from ...errors import BadInput
from ...serving.worker import UNASKED, Loop
from ..batch import Piece, Regrouped, TokenBatch
from ..policy import DECODES, Step
from ..request import TokenTask
from .engine import TokenEngine
from .host import LLMWorker

#: Steps in flight at most, where the model is on one device.
DEPTH = 2


class Flight:
    """A step that is decided and not over.

    *decided* is when. *tick* is that in which all that decode get a token (None: single ones do, or nobody). *owed*
    are those that get one and are told of it one by one, *leaving* those for whom it is the last. (Dictionaries, for
    their order.)
    """

    __slots__ = ("decided", "leaving", "owed", "tick")

    def __init__(self, decided: float) -> None:
        self.decided = decided
        self.tick: int | None = None
        self.owed: dict[TokenTask, None] = {}
        self.leaving: dict[TokenTask, None] = {}


class Absent:
    """The running sequences of *engine* that are not in its host's tables, since they were not in the last step: of
    those that decode, and of those whose prompts are not computed to the end. (vLLM's input batch: `InputBatch` of
    vllm/v1/worker/gpu_input_batch.py, which `_update_states` brings up to date at each step.)"""

    def __init__(self, engine: TokenEngine) -> None:
        self.bases = engine.bases
        self.view = engine.view
        self.decoding: set[TokenTask] = set()
        self.prompts: set[TokenTask] = set()
        self.begun: set[TokenTask] = set()  # prompts that the last step left unfinished

    def regroup(self, decode: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None) -> Regrouped | None:
        """What becomes of the sequences in the tables with a step that is about to be launched; None if nothing."""
        bases, absent = self.bases, self.decoding
        left = back = tokens = 0
        if chosen is not None:
            returning = absent.intersection(chosen)
            back, tokens = len(returning), sum([task.computed for task in returning])
            self.decoding = set(bases).difference(chosen)
            left = len(self.decoding) - len(absent) + back
        elif decode:
            if absent:
                back = len(absent)
                present = [task for task in bases if task not in absent] if back < len(bases) else ()
                tokens = self.view.context - sum([task.computed for task in present])
                absent.clear()
        elif len(bases) > len(absent):
            left = len(bases) - len(absent)
            self.decoding = set(bases)
        if pieces or self.begun:
            begun = {task for task, _, _ in pieces if _is_begun(task)}
            for task, count, _ in pieces:
                if task in self.prompts:
                    self.prompts.discard(task)
                    back += 1
                    tokens += task.base_computed - count
            stay = self.begun.difference([task for task, _, _ in pieces])
            left += len(stay)
            self.prompts |= stay
            self.begun = begun
        return Regrouped(left, back, tokens) if left or back else None

    def forget(self, task: TokenTask) -> None:
        """*task* does not run any more."""
        self.decoding.discard(task)
        self.prompts.discard(task)
        self.begun.discard(task)


def _is_begun(task: TokenTask) -> bool:
    """Whether the step that computes a chunk of *task* now leaves some of its prompt to others."""
    pending = task.prompt + task.base_generated - task.base_computed
    return pending > 0 and (pending > 1 or task.base_computed < task.prompt)


class TokenEngineAhead(TokenEngine):
    """`TokenEngine` with two steps in flight; *worker* must have a `Host`. *deciding* says that the host is busy."""

    __slots__ = (
        "_absent",
        "_busy",
        "_debt",
        "_free",
        "_told",
        "_unheard",
        "ahead",
        "depth",
        "flights",
        "pass_to",
        "settled",
    )

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        if self.swap:
            what = f"{worker.name}: with asynchronous scheduling nothing is swapped"
            raise BadInput(what, right="preemption by recompute")
        assert worker.host is not None
        self.ahead = worker.host
        self.keep_times = True  # when each joined tells what is in flight of it
        self.depth = DEPTH
        self.flights: list[Flight] = []
        self._free = 0.0  # when the host has launched what it decided last, or told those that do
        self.settled = 0.0  # when it heard of the end of a step last
        self._unheard: list[TokenBatch] = []  # ended while the host was launching
        self._told = worker.host.told is not None  # others launch, and the host is free meanwhile
        self._busy = worker.host.pieces > 0.0 and not self._told  # launches keep the host for longer than steps take
        self._absent = Absent(self) if self.ahead.left or self.ahead.back else None
        #: Where time can be let pass up to a moment, if nothing happens before or then; gives whether it was.
        self.pass_to: Callable[[float], bool] | None = None
        self._debt = 0.0  # seconds for steps that ended while the host was at something else

    # -- the host -----------------------------------------------------------------------------------------

    def turn(self, now: float, fresh: bool = False) -> None:
        worker, view, flights = self.worker, self.view, self.flights
        self.deciding = True
        if worker.inbox:
            self._take_in(now)
        step: Step = UNASKED
        try:
            while view.waiting or view.running or worker.inbox:
                before = len(flights)
                changed = False
                if view.waiting or view.running:
                    view.checked = None
                    step = (self.guard or worker.policy).decide(worker.shown, now)
                    if self.booked:
                        self._wrong(step)
                    if step.plain == DECODES and step.repeat is not None and self.go_on is not None:
                        later = self.go_on(step, now)
                        if later == inf:
                            return  # with two steps in flight, or at what lies between two
                        if later is not None:
                            now = later
                            if worker.inbox:
                                self._take_in(now)
                            continue
                    most = view.free_blocks - self.headroom
                    if step.plain == DECODES and view.decoding and self._blocks_of_a_step(None) <= most:
                        self._launch(view.decoding, view.context, (), None, now)  # as `_carry_out`, but shorter
                    else:
                        changed = self._carry_out(step, now)
                    if len(flights) > before:
                        batch = cast("TokenBatch", view.backlog[-1] if view.backlog else view.in_flight)
                        launched = batch.launched
                        if self._told:
                            self._free = now + self.ahead.telling(batch)
                        else:
                            self._free = now + self.ahead.launching(batch) if launched is None else launched
                        if len(flights) < self.depth:
                            self._rest(self._free - now)  # and then decides the next one
                            return
                        break
                    if flights:
                        break  # the host waits for it, whatever comes
                    if not changed and not worker.inbox:
                        worker.set_alarm(step.idle_until, now)
                        break
                if worker.inbox:
                    self._take_in(now)
        except Exception as error:
            worker.explain(error, step)
            raise
        self.deciding = False
        if self._unheard:
            self._hear_when_launched()

    def done(self, batch: TokenBatch) -> None:
        if self._unheard or (self._busy and self.deciding and not self.loop.stopped):
            self._unheard.append(batch)  # of what ends between two steps the host hears after the next launch
        elif not self.deciding and self.loop.now() < self._free:
            self._unheard.append(batch)
            self._hear_when_launched()
        else:
            self._over(batch, last=True)

    def _hear_when_launched(self) -> None:
        self.deciding = True  # launching what comes next
        self._resting = self.loop.call_at(max(self._free, self.loop.now()), self._hear)

    def _hear(self) -> None:
        """The host has launched what it decided last, and hears of what has ended meanwhile: where launches are long
        of one step only, and of the next when it has decided and launched again."""
        count = 1 if self._busy and not self.loop.stopped else len(self._unheard)
        ended, self._unheard = self._unheard[:count], self._unheard[count:]
        self.deciding = False
        for batch in ended:
            self._over(batch)

    def _over(self, batch: TokenBatch, last: bool = False) -> None:
        """*batch* is over; *last*: nothing else is, as far as is known here."""
        busy, self.deciding = self.deciding, True
        self.settle(batch)
        after = self.ahead.between(batch.size)
        if busy:
            self._debt += after
        elif self.loop.stopped:
            self.deciding = False
        elif last and self.pass_to is not None and self.pass_to(self.loop.now() + after):
            self._rested()
        else:
            self._rest(after)

    def _rested(self) -> None:
        if self._debt:
            seconds, self._debt = self._debt, 0.0
            self._rest(seconds)
        elif self.loop.stopped and self._unheard:
            self._hear()
        else:
            super()._rested()

    def withdraw(self, task: TokenTask, now: float) -> None:
        view = self.view
        if task in view.waiting:
            self._revoke(task)
            del view.waiting[task]
            self.worker.policy.removed(task, self.worker.shown, now)
        elif task in view.running:
            self.worker.policy.removed(task, self.worker.shown, now)
            self._revoke(task)
            self._release(task)
        else:
            return
        self._visit_over(task)

    def fail(self, now: float) -> list[TokenTask]:
        lost = super().fail(now)
        # What was in flight of them was not computed: to routers they stand where they were heard of last.
        for task in lost:
            stands = task.prompt + task.base_generated - (1 if task.base_generated else 0)
            if task.base_computed > stands:
                task.base_computed = stands
        self.flights.clear()
        self._unheard.clear()
        self._debt, self._free, self.settled = 0.0, now, now
        del self.ends[:]  # nobody decodes, and of the ticks that were in flight no end will ever come
        self.first_end = self.tick
        if self._absent is not None:
            self._absent = Absent(self)
        return lost

    def _cut_off(self, batch: TokenBatch, now: float) -> None:
        for one in (batch, *self.view.backlog):
            one.count = 0

    # -- decode steps on end ------------------------------------------------------------------------------

    def steady(self) -> bool:
        """Whether one step is in flight, all that decode get a token with it and for nobody it is the last, and the
        host has nothing else to do: so it goes on, step by step, while the policy lets all decode."""
        view, absent = self.view, self._absent
        if len(self.flights) != 1 or self.worker.inbox or self.loop.stopped:
            return False
        (flight,), batch = self.flights, cast("TokenBatch", view.in_flight)
        return (
            flight.tick is not None
            and not (flight.owed or flight.leaving or batch.prefill)
            and batch.size == view.decoding
            and not (self._unheard or self._untaken or self._debt or self.preempted)
            and (absent is None or not (absent.decoding or absent.begun))
        )

    def went_on(
        self,
        steps: int,
        ends: Sequence[float],
        settled: float,
        took: float,
        flying: Sequence[tuple[TokenBatch, float]],
    ) -> None:
        """So many decode *steps* were decided since the engine was `steady`. Those that ended did so at *ends*, the
        last of them, which *took* so long, at *settled*; *flying* are in flight, each with when it was decided."""
        view, ticks = self.view, self.ticks
        self.loop.batches += steps
        self.ends.extend(ends)
        if ends:
            self.settled = settled
            view.last_step = view.last_decode = took
        for done in range(steps):
            view.free_blocks -= self.phases[-(self.tick + done) % self.size]
        view.context += steps * view.decoding
        ticks.count = self.tick = tick = self.tick + steps
        self._fruitless = 0
        self._recomputed.clear()
        self.flights[:] = [Flight(decided) for _, decided in flying]
        for back, flight in enumerate(reversed(self.flights), 1):
            flight.tick = tick - back
        view.in_flight, *later = [batch for batch, _ in flying]
        view.backlog.clear()
        view.backlog.extend(later)
        view.checked = None
        batch = flying[-1][0]
        assert batch.launched is not None
        self._free = batch.launched
        if len(self.ends) > self.trim_at:
            self._trim()

    @property
    def regroups(self) -> bool:
        """Whether it costs the host anything which sequences are in a step."""
        return self._absent is not None

    def newcomers(self) -> int:
        """How many have come since the host took requests in last."""
        new, self._untaken = self._untaken, 0
        return new

    def resume(
        self,
        flying: tuple[TokenBatch, Flight] | None,
        *,
        over: bool,
        settled: float,
        launched: float,
        away: int,
        begun: bool,
        left_out: bool,
    ) -> None:
        """Somebody else has gone through steps since the engine was `steady`, and the host decides. *flying* is in
        flight (None: nothing is), or *over* without the host having heard of that. It heard of an end last at
        *settled*, and has launched all at *launched*. The first *away* of those that decode are not in its tables,
        nor is the last of all that run if *left_out*; that one was *begun* in the last step if that is set."""
        view, absent = self.view, self._absent
        self.settled, self._free = settled, launched
        self._fruitless = 0
        self._recomputed.clear()
        view.in_flight = None
        self.flights.clear()
        if flying is not None:
            view.in_flight, flight = flying
            self.flights.append(flight)
            self._unheard = [view.in_flight] if over else []
        view.checked = None
        if absent is not None:
            last = [next(reversed(view.running))] if begun or left_out else []
            absent.decoding = set(islice(self.bases, away))
            absent.begun, absent.prompts = set(last if begun else ()), set(last if left_out else ())

    def rest(self, seconds: float) -> None:
        """The host does what lies between two steps for so long, and then decides."""
        self._rest(seconds)

    # -- a step begins ------------------------------------------------------------------------------------

    def _carry_out(self, step: Step, now: float) -> bool:
        if any(task in flight.leaving for flight in self.flights for task, _ in step.prefill):
            prefill = [c for c in step.prefill if not self._spent(c[0])]
            step = Step(prefill, step.decode, preempt=step.preempt, drop=step.drop)  # type: ignore[arg-type]
        return super()._carry_out(step, now)

    def _chosen(self, decode: Sequence[TokenTask]) -> list[TokenTask]:
        return super()._chosen([task for task in decode if not self._spent(task)])

    def _spent(self, task: TokenTask) -> bool:
        """Whether the last token of *task* is in flight."""
        return any(task in flight.leaving for flight in self.flights)

    def _launch(
        self, decode: int, context: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None, now: float
    ) -> None:
        view = self.view
        older = view.in_flight
        if self._absent is not None:
            self.regrouped = self._absent.regroup(decode, pieces, chosen)
        super()._launch(decode, context, pieces, chosen, now)
        if older is not None:
            assert view.in_flight is not None
            view.backlog.append(view.in_flight)
            view.in_flight = older
        flight = Flight(now)
        self.flights.append(flight)
        if decode:
            self._tick_ahead(flight, decode) if chosen is None else self._advance_ahead(flight, chosen)
        if pieces:
            self._prefill_ahead(flight, pieces)

    def _tick_ahead(self, flight: Flight, decode: int) -> None:
        """All that decode get a token with *flight*."""
        view, ticks, leaving, lengths = self.view, self.ticks, self.leaving, self.lengths
        tick = flight.tick = self.tick
        ticks.count = self.tick = last = tick + 1
        self._fruitless = 0
        self._recomputed.clear()
        view.free_blocks -= self.phases[-tick % self.size]
        view.context += decode
        while leaving and leaving[0] <= last:
            for task in self.buckets.pop(heappop(leaving)):
                # One that was preempted since has another bucket now.
                if task in self.bases and self.bases[task] + last == lengths[task]:
                    self.part(task)
                    self.keep_books(task)
                    flight.leaving[task] = None

    def _advance_ahead(self, flight: Flight, chosen: Sequence[TokenTask]) -> None:
        """Some of those that decode get a token with *flight*."""
        self._fruitless = 0
        self._recomputed.difference_update(chosen)
        for task in chosen:
            computed, generated = task.computed, task.generated + 1
            if computed % self.size == 0:
                self.view.free_blocks -= 1
            self.part(task)
            task.base_computed, task.base_generated = computed + 1, generated
            self._owes(flight, task)

    def _prefill_ahead(self, flight: Flight, pieces: Sequence[Piece]) -> None:
        for task, _, _ in pieces:
            pending = task.prompt + task.base_generated - task.base_computed
            if not pending:
                self._fruitless = 0
                task.base_generated += 1
                self._owes(flight, task)
            elif pending > 1 or task.base_computed < task.prompt:
                self.keep_books(task)
            else:
                self._recomputed.add(task)
                self._join(task)

    def _owes(self, flight: Flight, task: TokenTask) -> None:
        """*task* gets a token with *flight*: its last one, or it decodes on."""
        flight.owed[task] = None
        if task.base_generated >= self.lengths[task]:
            self.keep_books(task)
            flight.leaving[task] = None
        else:
            self._join(task)

    # -- a step ends --------------------------------------------------------------------------------------

    def settle(self, batch: TokenBatch) -> float:
        view, flight = self.view, self.flights.pop(0)
        now = batch.end = self.loop.now()
        # What a scheduler can tell: from the tokens of the step before, or from when it was asked, if that is later.
        batch.took = now - max(flight.decided, self.settled)
        batch.start = max(batch.start, self.settled)
        self.settled = now
        view.in_flight = view.backlog.popleft() if view.backlog else None
        self.loop.hear_batch(batch)
        view.last_step = batch.took
        if not batch.prefill:
            view.last_decode = batch.took
        if flight.tick is not None:
            self.ends.append(now)
            if len(self.ends) > self.trim_at:
                self._trim()
        for task in flight.owed:
            if task.first_token is None:
                task.first_token = now
                self._came_out(task, now)
            task.token_times.append(now)  # type: ignore[union-attr]
        if not self.lean:
            self.loop.hold()
        for task in flight.leaving:
            if task in self.lengths:  # else its request has ended just now, with another that has
                self.finish(task, now)
        if not self.lean:
            self.loop.let_decide()
        return now

    def finish(self, task: TokenTask, now: float) -> None:
        view = self.view
        if task in view.waiting:  # preempted while its last token was in flight
            del view.waiting[task]
            view.running[task] = None
        self._check(task)
        super().finish(task, now)

    def _release(self, task: TokenTask) -> None:
        if self._absent is not None:
            self._absent.forget(task)
        super()._release(task)

    def _give_up(self, task: TokenTask) -> None:
        self._revoke(task)
        super()._give_up(task)

    def _outgrown(self, task: TokenTask) -> bool:
        if not super()._outgrown(task) or self._spent(task):
            return False
        self._revoke(task)
        return True

    # -- what is in flight of a task ----------------------------------------------------------------------

    def part(self, task: TokenTask) -> None:
        first = self.joined[task]
        super().part(task)
        for flight in self.flights:
            if flight.tick is not None and flight.tick >= first:
                flight.owed[task] = None

    def _revoke(self, task: TokenTask) -> None:
        """*task* ends before its time: what is in flight of it will never come out."""
        if task in self.bases:
            self.part(task)
        else:
            self._check(task)
        for flight in self.flights:
            if task in flight.owed:
                del flight.owed[task]
                task.base_generated -= 1
            flight.leaving.pop(task, None)
        self.keep_books(task)

    def _trim(self) -> None:
        ended = self.first_end + len(self.ends)
        first = min(min(self.joined.values(), default=ended), ended)
        del self.ends[: first - self.first_end]
        self.first_end = first
        self.trim_at = max(8192, 2 * len(self.ends))
