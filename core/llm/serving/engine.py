"""The mechanism of an LLM engine: its queue, its memory and its steps, for whatever a policy decides.

What a step costs here does not depend on how many requests decode: they are counted together (`decode_sums`), and
only what begins, ends or is preempted is touched one by one. The true output lengths are here and nowhere else;
nothing that a policy can reach leads to them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from heapq import heappop
from typing import Any, cast

from ...isolation.answers import check_decision, check_kept, check_repeat, fault
from ...policy import Repeat
from ...request import Outcome, Outputs, Request
from ...serving.worker import UNASKED, Loop
from ...slo import latest
from ..batch import Piece, Regrouped, TokenBatch
from ..policy import DECODES, PREFILLS, All, Chunk, Step, admits_all
from ..request import TokenTask, tokens_of_visit
from .decode_sums import FailingEngine
from .engine_ledger import FRUITLESS, Guard
from .host import LLMWorker


class TokenEngine(FailingEngine):
    """Runs the steps of *worker* for *loop*. (Slots: it has more attributes than Python keeps in line.)"""

    __slots__ = (
        "_recomputed",
        "ended",
        "fetched",
        "go_on",
        "guard",
        "host",
        "keep_ends",
        "lean",
        "longest",
        "loop",
        "module",
        "seen",
        "stage",
        "swap",
        "worker",
    )  # fmt: skip

    kind: type[TokenTask] = TokenTask  # of its visits

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        view = worker.view
        super().__init__(view, keep_times=loop.recorder.wants_token_times)
        self.loop, self.worker, self.stage = loop, worker, worker.stage
        self.seen, self.swap = view.limits.stamp == "seen", view.limits.preemption == "swap"
        self.booked = worker.books is not None
        self.guard: Any = Guard(self) if self.booked else None
        self.longest = (view.blocks - view.watermark) * self.size  # tokens that fit
        self.deciding, self.host, self._untaken = False, worker.host, 0  # the last: arrivals not taken in yet
        self.fetched = False  # whether the last admission had KV sent here from another engine
        self.ended = self.done  # bound once; whom a batch that is over is given to
        self.module = worker.stage.loop or worker.stage.name
        self.lean = False  # whether requests come here from the client and end here
        #: Where somebody can go on by himself under a standing decision: gives the time at which to ask again, or
        #: None if he cannot just then.
        self.go_on: Callable[[Step, float], float | None] | None = None
        self.stale, self.swapped = False, 0  # the latter: blocks moved since the last step began
        self.preempted: list[TokenTask] = []  # since the last step began
        self.regrouped: Regrouped | None = None  # of the next step
        self._fruitless = 0  # steps that preempted somebody since a token came out
        self._resting, self._taken_up = None, {}
        self._recomputed: set[TokenTask] = set()  # those that decode again after a preemption, and no token came yet
        self.keep_ends = loop.recorder.wants_batches or self.keep_times

    # -- events -------------------------------------------------------------------------------------------

    def task(self, request: Request, now: float) -> TokenTask:
        """The visit of *request* here. Raises `BadInput` if it does not say how many tokens it has for this stage."""
        outputs: Outputs | None
        if self.lean:
            outputs, request.outputs = request.outputs, None  # from here on nobody sees them
        else:
            outputs = self.loop.outputs_of(request)
        try:
            prompt, limit = tokens = request.tokens[self.module]  # type: ignore[attr-defined]
            length = outputs[self.module]  # type: ignore[index]
        except (AttributeError, KeyError, TypeError, ValueError):
            prompt, limit, length = tokens_of_visit(request, outputs, self.stage, self.module)
        else:
            if type(tokens) is list or type(length) is not int or type(prompt) is not int:
                prompt, limit, length = tokens_of_visit(request, outputs, self.stage, self.module)
        task = self.kind(request, self.stage, now, self.worker.place, prompt, limit)
        if request.tasks:
            task.arrival = now  # at a later stage, tokens are waited for from here on
        self.lengths[task] = length if length < limit else limit
        if self.keep_times:
            task.token_times = array("d")
        return task

    def seconds_alone(self, request: Request, now: float) -> float:
        """What *request*, which is not here yet, would take alone if it generated as much as it may."""
        task = self.task(request, now)
        del self.lengths[task]
        return self.view.solo(task)

    def receive(self, task: TokenTask) -> None:
        """*task* has reached the queue."""
        if task.request.outcome is not None:
            del self.lengths[task]
        elif task.prompt > self.longest:
            del self.lengths[task]
            self.loop.fail(task.request, f"its prompt of {task.prompt} tokens does not fit into {self.view.name}")
        else:
            now = task.queued = self.loop.now()
            if self._taken_up:
                task.queued = (self._taken_up.get if self.seen else self._taken_up.pop)(task, now)
            self.worker.inbox.append(task)
            self._untaken += 1
            if not self.deciding and self.view.in_flight is None:
                if self.host:
                    self._rest(0.0)
                elif self.loop.held is not None:
                    self.loop.call(self.worker)
                elif self._settles():
                    self.turn(now, True)

    def withdraw(self, task: TokenTask, now: float) -> None:
        """The request of *task* has ended elsewhere."""
        view = self.view
        if task in view.waiting:
            del view.waiting[task]
            self.worker.policy.removed(task, self.worker.shown, now)
            self._visit_over(task)
        elif task in view.running:
            self.worker.policy.removed(task, self.worker.shown, now)
            if view.in_flight is not None:
                self.stale = True  # its step runs out
                if self.keep_times and task.ticks is not None:  # the record has its tokens so far
                    first, self.joined[task] = self.joined[task], self.ticks.count
                    task.token_times.extend(self.ends_since(first))  # type: ignore[union-attr]
            else:
                self._release(task)
                self._visit_over(task)

    def turn(self, now: float, fresh: bool = False) -> None:
        """Let the policy decide *now*, and launch what it says. *fresh*: something came while the engine was idle."""
        worker, view, loop = self.worker, self.view, self.loop
        waiting, policy, shown = view.waiting, self.guard or worker.policy, worker.shown
        self.deciding = True
        if worker.inbox:
            self._take_in(now)
        step: Step = UNASKED
        try:
            while view.in_flight is None:
                if not waiting and not view.running:
                    if not worker.inbox:
                        break
                    self._take_in(now)
                    continue
                view.checked = None
                step = policy.decide(shown, now)
                if self.booked:
                    self._wrong(step)
                # Most steps are one of two kinds, for which there are short ways.
                if step.plain == DECODES:
                    if step.standing and self.go_on is not None and not fresh:
                        later = self.go_on(step, now)
                        if later is not None:
                            if not self._settles():
                                break
                            now = later
                            if worker.inbox:
                                self._take_in(now)
                            continue
                    if view.decoding and not self.preempted and self._all_decode(step.repeat, fresh, now):
                        break
                elif step.plain == PREFILLS and step.prefill[0][0] in waiting:
                    pieces = self._admit(step.prefill, (), 0, False, now)
                    if pieces:
                        self._launch(0, 0, pieces, None, now)
                        break
                    if self.fetched:
                        continue
                if not self._carry_out(step, now):
                    if not worker.inbox:
                        worker.set_alarm(step.idle_until, now)
                        break
                    self._take_in(now)
                now = loop.now()
        except Exception as error:
            worker.explain(error, step)
            raise
        self.deciding = False

    def _all_decode(self, repeat: Repeat | None, fresh: bool, now: float) -> bool:
        """A step, or several on end, in which all that can decode do, and nothing else happens; False if memory does
        not last for that."""
        view, loop = self.view, self.loop
        decoding, times = view.decoding, 1
        if repeat is not None and not fresh and self.host is None:
            if type(repeat) is not Repeat or type(repeat.times) is not int or type(repeat.limit) is not float:
                check_repeat(self.worker.policy, repeat)
            times = self.leaving[0] - self.ticks.count
            if repeat.times < times:
                times = repeat.times
                if times < 1:
                    check_repeat(self.worker.policy, repeat)
        # Between them the tasks need no more than this, whatever their phases.
        if (view.free_blocks - self.headroom) * self.size < decoding * (times + self.size - 1):
            times = self.affordable(times)
            if not times:
                return False
        loop.batches += 1
        place, free = self.worker.place, view.free_blocks
        batch = view.in_flight = TokenBatch(
            loop.batches, place, decoding, view.context, now, self.keep_ends, times, repeat, free
        )
        self.worker.run(batch, self.ended)
        return True

    def _take_in(self, now: float) -> None:
        worker, waiting = self.worker, self.view.waiting
        inbox: list[TokenTask] = worker.inbox  # type: ignore[assignment]
        worker.inbox = []
        asked = None if admits_all(worker.policy) else self.guard or worker.policy
        for task in inbox:
            if task.request.outcome is not None:
                del self.lengths[task]
                continue
            task.admitted = now if task.admitted is None else task.admitted  # set where another engine prefilled it
            if self.seen and self._taken_up.pop(task, None) is None:
                task.arrival = now
            if self.booked:
                self.note(task)
            if asked is not None:
                kept = asked.admit(task, worker.shown, now)
                if kept is not True and not check_kept(worker.policy, kept):
                    self._visit_over(task)
                    self.loop.drop(task, self.view)
                    continue
            waiting[task] = None

    def _visit_over(self, task: TokenTask) -> None:
        """The visit of *task* is over."""
        del self.lengths[task]
        if self.booked:
            self.check_out(task)

    # -- a step -------------------------------------------------------------------------------------------

    def _carry_out(self, step: Step, now: float) -> bool:
        """Do as *step* says; whether anything came of it (a step in flight, or a changed queue: ask again)."""
        view, policy = self.view, self.worker.policy
        self.fetched = False
        changed = bool(step.drop or step.preempt)
        if changed or step.plain < 0:
            check_decision(policy, step, Step)
        for task in tuple(step.drop):
            self._give_up(cast("TokenTask", task))
        for task in tuple(step.preempt):
            if task not in view.running:
                what = f"it preempts {task}, which is not running at {view.name}"
                raise fault(policy, what, "a task of view.running")
            self._preempt(task)
        chosen = None if isinstance(step.decode, All) else self._chosen(step.decode)
        crowded = bool(view.running) and self._make_room(chosen, step.prefill)
        if crowded and chosen is not None:
            chosen = [task for task in chosen if task.ticks is not None]
        decode = view.decoding if chosen is None else len(chosen)
        context = view.context if chosen is None else sum([task.computed for task in chosen])
        if chosen is not None and decode == view.decoding:
            chosen = None
        pieces = self._admit(step.prefill, chosen, decode, crowded, now) if step.prefill else ()
        if not decode and not pieces:
            return changed or crowded or self.fetched
        self._launch(decode, context, pieces, chosen, now)
        return True

    def _chosen(self, decode: Sequence[TokenTask]) -> list[TokenTask]:
        policy = self.worker.policy
        try:
            chosen = list(decode)
            for task in chosen:
                if task not in self.bases:
                    raise fault(policy, f"it decodes {task}, which is not decoding at {self.view.name}")
        except TypeError:
            check_decision(policy, Step(decode=decode), Step)
            raise
        if len(set(chosen)) < len(chosen):
            raise fault(policy, f"decode of its decision holds {max(chosen, key=chosen.count)!r} twice")
        return chosen

    def _launch(
        self, decode: int, context: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None, now: float
    ) -> None:
        loop = self.loop
        loop.batches += 1
        free = self.view.free_blocks
        batch = TokenBatch(loop.batches, self.worker.place, decode, context, now, self.keep_ends, free=free)
        if chosen is not None:
            batch.chosen = chosen
        if pieces:
            batch.prefill = pieces
            batch.size = decode + len(pieces)
        if self.preempted:
            batch.preempted, self.preempted = self.preempted, []
            self._fruitless += 1
            if self._fruitless > FRUITLESS:
                self._tell_circle()
        if self.swapped:
            batch.swapped, self.swapped = self.swapped, 0
        if self.regrouped is not None:
            batch.regrouped, self.regrouped = self.regrouped, None
        self.view.in_flight = batch
        self.worker.run(batch, self.ended)

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        """Take of *prefill* what fits beside *decode* tasks; the chunks of running tasks have room. When it was so
        *crowded* that tasks were preempted, nobody is admitted."""
        view, size, booked = self.view, self.size, self.booked
        waiting, running = view.waiting, view.running
        free = view.free_blocks
        pieces: list[Piece] = []
        sure = prefill is view.checked and prefill == view.sure and not decode and not crowded
        if sure and prefill[0][0] in waiting:
            # `TokenView.admissible` has just found all of it, so all that waits fits.
            for task, count in prefill:
                computed = task.base_computed
                if booked and task in waiting:
                    self._check(task)
                if type(count) is not int or not 0 < count <= task.prompt + task.base_generated - computed:
                    self._no_chunk(task, count)
                if task not in waiting:
                    self._not_first(task, pieces, 0)
                    self._not_there(task)
                free += -(computed + count) // size
                del waiting[task]
                running[task] = None
                if task.started is None:
                    task.started = now
                if computed:
                    self.swapped += -(-computed // size)
                task.base_computed = computed + count
                pieces.append((task, count, computed))
            view.free_blocks = free
            return pieces
        tokens = view.max_batched_tokens - decode
        sequences = view.max_sequences - len(running)
        least = view.watermark
        if decode:
            least += self._blocks_of_a_step(chosen)
        whole = view.whole_prompt
        admitted = 0
        for task, count in prefill:
            if type(count) is not int:
                self._no_chunk(task, count)
            tokens -= count
            if tokens < 0:
                break
            computed = task.base_computed
            if task in self.bases:
                raise fault(self.worker.policy, f"it prefills {task}, which is decoding at {view.name}")
            if pieces and task in running:
                self._not_first(task, pieces, admitted)
            if booked and (task in waiting or task in running):
                self._check(task)
            pending = task.prompt + task.base_generated - computed
            if count < 1 or count > pending:
                self._no_chunk(task, count)
            left = free + -(computed + count) // size
            if task in waiting:
                if crowded or left < least or sequences == admitted:
                    break
                if whole and free + -(computed + pending) // size < least:
                    break
                admitted += 1
                del waiting[task]
                running[task] = None
                if task.started is None:
                    task.started = now
                if computed:
                    self.swapped += -(-computed // size)
            elif task in running:
                left -= -computed // size
            elif crowded:
                break  # it was there until now
            else:
                self._not_there(task)
            free = left
            task.base_computed = computed + count
            pieces.append((task, count, computed))
        view.free_blocks = free
        return pieces

    def done(self, batch: TokenBatch) -> None:
        """The executor has run *batch*."""
        self.deciding = True
        now = self.settle(batch)
        self.deciding = False
        if not self.loop.stopped:
            if self.host is not None:
                self._rest(self.host.between(batch.size))
            elif not self.worker.called:  # as `_settles`, without the call
                if self.loop.when_settled(self.worker.awake):
                    self.worker.called = True
                else:
                    self.turn(now)

    def settle(self, batch: TokenBatch) -> float:
        """What follows from *batch* before the policy is asked again; gives the time."""
        view, loop = self.view, self.loop
        now = batch.end = loop.now()
        view.in_flight = None
        loop.hear_batch(batch)
        view.last_step = batch.took
        if not self.lean:
            loop.hold()
        if batch.decode:
            self._tick(batch, now) if batch.chosen is None else self._advance(batch.chosen, now)
        if batch.prefill:
            self._prefilled(batch.prefill, now)
        else:
            view.last_decode = batch.took
        if self.stale:
            self._purge()
        if not self.lean:
            loop.let_decide()
        return now

    def _settles(self) -> bool:
        """Whether nothing else happens at this instant, so that the policy may be asked; else it is when all has."""
        worker = self.worker
        if worker.called:
            return False
        worker.called = self.loop.when_settled(worker.awake)
        return not worker.called

    def _rest(self, seconds: float) -> None:
        """Ask the policy after so long, and after taking in, one after the other, what comes until then."""
        self.deciding = True
        self._resting = self.loop.call_at(self.loop.now() + seconds, self._rested)

    def _rested(self) -> None:
        if self.loop.when_settled(self._rested):
            return
        new, self._untaken = self._untaken, 0
        if new and self.host is not None:
            self._rest(new * self.host.intake)
        elif not self.loop.stopped:
            self.turn(self.loop.now())

    def _tick(self, batch: TokenBatch, now: float) -> None:
        """All that decode have generated a token, or several."""
        view, ticks, phases, size = self.view, self.ticks, self.phases, self.size
        tick, count = self.tick, batch.count
        ticks.count = self.tick = last = tick + count
        self._fruitless = 0
        if self._recomputed:
            self._recomputed.clear()
        if count == 1:
            view.free_blocks -= phases[-tick % size]
        else:
            first = -(last - 1) % size
            if first + count <= size:  # the phases of these ticks lie side by side
                view.free_blocks -= sum(phases[first : first + count])
            else:
                view.free_blocks -= sum([phases[-t % size] for t in range(tick, last)])
        view.context += batch.decode * count
        if self.keep_times:
            self.ends.extend(batch.ends or (now,))
            if len(self.ends) > self.trim_at:
                self._trim()
        leaving = self.leaving
        while leaving and leaving[0] <= last:
            lengths, bases = self.lengths, self.bases
            for task in self.buckets.pop(heappop(leaving)):
                # One that was preempted since has another bucket now.
                if task in bases and bases[task] + last == lengths[task]:
                    self.part(task)
                    self.finish(task, now)

    def _advance(self, chosen: Sequence[TokenTask], now: float) -> None:
        """Some of those that decode have generated a token."""
        self._fruitless = 0
        self._recomputed.difference_update(chosen)
        for task in chosen:
            computed, generated = task.computed, task.generated + 1
            if computed % self.size == 0:
                self.view.free_blocks -= 1
            self.part(task)
            task.base_computed, task.base_generated = computed + 1, generated
            if self.keep_times:
                task.token_times.append(now)  # type: ignore[union-attr]
            if generated == self.lengths[task]:
                self.finish(task, now)
            else:
                self._join(task)

    def _prefilled(self, pieces: Sequence[Piece], now: float) -> None:
        for task, _, _ in pieces:
            pending = task.prompt + task.base_generated - task.base_computed
            if not pending:
                self._fruitless = 0
                task.base_generated += 1
                if task.first_token is None:
                    task.first_token = now
                if self.keep_times:
                    task.token_times.append(now)  # type: ignore[union-attr]
                if task.base_generated >= self.lengths[task]:
                    self.finish(task, now)
                    continue
            elif not task.decoding:
                self.keep_books(task)
                continue
            else:
                self._recomputed.add(task)
            self._join(task)

    # -- what tasks hold ----------------------------------------------------------------------------------

    def _release(self, task: TokenTask) -> None:
        """*task* gives its memory back and runs no more."""
        self._recomputed.discard(task)
        if task in self.bases:
            self.part(task)
        else:
            self._check(task)
        self.view.free_blocks -= -task.base_computed // self.size
        del self.view.running[task]

    def finish(self, task: TokenTask, now: float) -> None:
        """*task*, which does not decode with the others (any more), has generated its last token."""
        self.view.free_blocks -= -task.base_computed // self.size
        del self.view.running[task]
        del self.lengths[task]
        if self.booked:  # as `_visit_over`, without the call
            self.check_out(task)
        request = task.request
        if request.outcome is None:
            task.finished = now
            slo = self.view.slo
            if slo is not None and not slo.met(task):
                request.missed = True
                if not self.lean:
                    self.loop.know_anew(request)
            if self.lean:
                request.finished = now
                met = (now <= request.deadline or now <= latest(request.deadline)) and not request.missed
                self.loop.end(request, Outcome.MET if met else Outcome.LATE)
            else:
                self.loop.leave(task, now)

    def _preempt(self, task: TokenTask) -> None:
        """*task* loses its memory and goes back to the head of the queue."""
        view = self.view
        self._release(task)
        task.preemptions += 1
        self.preempted.append(task)
        if self.swap:
            self.swapped += -(-task.base_computed // self.size)
        else:
            task.base_computed = 0
        self.keep_books(task)
        if self._outgrown(task):
            self._visit_over(task)
            self.loop.fail(
                task.request, f"its {task.prompt + task.base_generated} tokens do not fit into {view.name}"
            )
            return
        view.waiting[task] = None
        view.waiting.move_to_end(task, last=False)

    def _outgrown(self, task: TokenTask) -> bool:
        """Whether *task* has become too long to be computed anew."""
        return self.view.blocks_for(task.prompt + task.base_generated) > self.view.blocks - self.view.watermark

    def _give_up(self, task: TokenTask) -> None:
        view = self.view
        if task in view.running:
            self._release(task)
        elif task in view.waiting:
            del view.waiting[task]
        else:
            raise fault(self.worker.policy, f"it drops {task}, which is not at {view.name}", "a task of its view")
        self._visit_over(task)
        self.loop.drop(task, view)

    def _purge(self) -> None:
        """Forget the tasks whose requests have ended elsewhere while they were in flight here."""
        self.stale = False
        for task in [t for t in self.view.running if t.request.outcome is not None]:
            self._release(task)
            self._visit_over(task)
