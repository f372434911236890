"""Lets workers fail, slow down, stand still and come back in a run, and deals with what is lost.

When a worker fails, all that is there is lost at once: what waits, what computes, and all KV. Nobody knows. Routers
go on sending, and see of it what they saw last: who was there still counts as there. After `Rules.detect` seconds it
is noticed: routers are not offered it any more, and each lost request is sent again, or fails. A message that reaches
a worker which is down is lost with it. When it is back it is empty, and offered again at once; what it lost is still
noticed at its time, not sooner.

A request that is sent again goes where the router says, and begins its stage anew; stages that it has passed stay
passed. At an engine the tokens that its client has got stay sent: their KV and that of the prompt are computed again,
and what follows are the tokens after them (`servetwin.core.llm.serving.engine.TokenEngine.take_up`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from typing import Any, Protocol

from ..pipeline import Stage
from ..policy import Batch
from ..records import Recorder
from ..request import Request, Task
from ..serving.dispatch import Dispatcher
from ..serving.worker import Handle, Worker
from . import outages
from .faulty_executor import FaultyExecutor
from .outages import Counts, Outage
from .schedule import Event, OutOfMemory, Rules


class Served(Protocol):
    """The serving loop, as far as faults ask it for something."""

    executor: Any
    now: Callable[[], float]
    hear_batch: Callable[[Any], None]
    live: dict[int, Request]
    serving: dict[str, list[Worker]]
    stopped: bool
    dispatcher: Dispatcher | None
    recorder: Recorder

    def more_come(self) -> bool: ...
    def call(self, worker: Worker) -> None: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> Handle: ...
    def fail(self, request: Request, reason: str) -> None: ...
    def forget_visit(self, task: Task) -> None: ...
    def forward(self, request: Request, stage: Stage, before: Task | None, jump: bool = False) -> None: ...

    def forward_held(self, waiting: dict[Request, list[tuple[Stage, Task | None]]]) -> None: ...


class WorkerState:
    """How things stand with *worker*."""

    def __init__(self, worker: Worker, out_of_memory: OutOfMemory | None) -> None:
        self.worker = worker
        self.out_of_memory = out_of_memory
        self.outage: Outage | None = None  # while it is down
        self.offered = True  # as far as anybody knows it is there
        self.lives = 0  # how often it failed
        self.starts = False  # it is being started again
        self.paused_until: float | None = None
        self.paused_since = 0.0
        self.heard = -inf  # when the last end of a batch was heard of, where workers are really stopped
        self.held_runs: list[tuple[Batch, Callable[[Any], None]]] = []  # what it would begin, were it not paused
        self.held_messages: list[tuple[Task, Callable[[Task], None]]] = []
        self.slow: list[float] = []  # the factors that hold now
        self.late: list[float] = []  # seconds that messages to it take longer now
        self.loses = 0  # how many events say now that messages to it are lost


class Faults:
    """What goes wrong with *workers*, the only ones that may fail: *events*, in order of time, by *rules*.

    It stands where a fleet would (`servetwin.core.serving.worker.Scaling`): workers come and go.
    """

    called = "faults"
    scaler = None

    def __init__(self, workers: Sequence[Worker], events: Iterator[Event], rules: Rules) -> None:
        memory = rules.out_of_memory
        self.rules = rules
        self.states = {worker.name: WorkerState(worker, memory.get(worker.name)) for worker in workers}
        self.outages: dict[str, list[Outage]] = {worker.name: [] for worker in workers}
        self.counts = Counts()
        self.others: list[tuple[Event, str]] = []  # events in which nobody is down, and each worker's name
        self.while_down: list[tuple[Event, str]] = []  # likewise, of those that befell a worker which was down
        self.attempts: dict[int, list[dict[str, Any]]] = {}  # of live requests, the visits that were lost
        self._events = events
        self._next: Event | None = next(events, None)
        self._timer: Handle | None = None
        self._again: dict[tuple[int, str], Task] = {}  # (request, stage) -> its visit that was lost
        self._waiting: dict[Request, list[tuple[Stage, Task | None]]] = {}  # until a worker is back

    # -- what the loop tells it -------------------------------------------------------------------------------

    def attach(self, loop: Served) -> None:
        """Work for *loop*, before anything arrives."""
        self.loop = loop
        self.executor = FaultyExecutor(loop.executor, self)
        loop.executor = self.executor
        loop.recorder.attempts = self.attempts
        self._plan()

    def arrived(self, request: Request) -> None:
        """*request* has been sent."""
        if self._timer is None:
            self._plan()

    def ended(self, request: Request, now: float) -> None:
        """*request* has ended."""
        self.attempts.pop(request.id, None)
        self._waiting.pop(request, None)
        for state in self.states.values():
            if state.held_messages:
                for task in [task for task, _ in state.held_messages if task.request is request]:
                    del state.worker.coming[task]
                state.held_messages = [held for held in state.held_messages if held[0].request is not request]
        for task in request.tasks:
            self._again.pop((request.id, task.stage.name), None)
        if self._timer is not None and not self._goes_on():
            self._timer.cancel()
            self._timer = None

    def moved(self) -> None:
        """A request has left a worker."""

    def stays(self, stage: Stage, before: Task | None) -> Worker | None:
        """No request is bound to a worker."""
        return None

    def hold(self, request: Request, stage: Stage, before: Task | None) -> None:
        """All workers of *stage* are known to be down: *request* waits until one is back."""
        if request.outcome is None:
            self._waiting.setdefault(request, []).append((stage, before))
            self.loop.call_at(self.loop.now(), partial(self._give_up_hope, stage))

    def begins(self, task: Task) -> bool:
        """*task* is sent to its worker: if it follows one that was lost, it takes that up. Gives whether it does."""
        lost = self._again.pop((task.request.id, task.stage.name), None)
        if lost is None:
            return False
        assert task.worker is not None
        self.counts.retried += 1
        self.counts.requests += len(self.attempts.get(task.request.id, ())) == 1
        self.states[task.worker.name].worker.take_up(task, lost)
        self.loop.recorder.again(lost, task)
        return True

    def is_there(self, task: Task) -> None:
        """*task*, which follows one that was lost, is about to reach its worker's queue."""
        attempts = self.attempts.get(task.request.id, ())  # none if its request has ended
        for visit in reversed(attempts):
            if visit["stage"] == task.stage.name:
                visit["again"] = self.loop.now()
                return

    # -- what happens when ------------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        return bool(self.loop.live) or self.loop.more_come()

    def _plan(self) -> None:
        """Let the next event happen at its time. (What was over before anybody came does not happen.)"""
        now = self.loop.now()
        while self._next is not None and self._next.until <= now:
            self._next = next(self._events, None)
        if self._next is not None:
            self._timer = self.loop.call_at(max(self._next.at, now), self._happens)

    def _happens(self) -> None:
        self._timer, event = None, self._next
        if event is None or self.loop.stopped or not self._goes_on():
            return
        self._next = next(self._events, None)
        for name in event.workers:
            self._befalls(event, self.states[name])
        self._plan()

    def _befalls(self, event: Event, state: WorkerState) -> None:
        if state.outage is not None and event.kind in ("fail", "crash", "pause"):
            self.while_down.append((event, state.worker.name))
        if event.kind in ("fail", "crash"):
            self._fails(state, event, event.until)
            return
        if event.kind == "pause":
            self._pause(state, event)
            return
        self.others.append((event, state.worker.name))
        if event.kind == "slow":
            state.slow.append(event.factor)
            self._set_slowdown(state)
            self._when_over(event, partial(self._no_longer_slow, state, event.factor))
        elif event.kind == "late":
            state.late.append(event.seconds)
            self._when_over(event, partial(state.late.remove, event.seconds))
        else:
            state.loses += 1
            self._when_over(event, partial(self._no_longer_loses, state))

    def _when_over(self, event: Event, call: Callable[[], None]) -> None:
        if event.until < inf:
            self.loop.call_at(event.until, call)

    def _no_longer_slow(self, state: WorkerState, factor: float) -> None:
        state.slow.remove(factor)
        self._set_slowdown(state)

    def _no_longer_loses(self, state: WorkerState) -> None:
        state.loses -= 1

    def _set_slowdown(self, state: WorkerState) -> None:
        factor = inf if state.paused_until is not None else 1.0
        for one in state.slow:
            factor *= one
        self.executor.inner.set_slowdown(state.worker, factor)

    # -- a worker stands still ----------------------------------------------------------------------------------

    def _pause(self, state: WorkerState, event: Event) -> None:
        if state.outage is not None:
            return
        self.others.append((event, state.worker.name))
        now = self.loop.now()
        if state.paused_until is None:
            state.paused_since, state.paused_until = now, event.until
            self._set_slowdown(state)
        elif event.until > state.paused_until:  # another pause ends later
            state.paused_until = event.until
        else:
            return
        self._when_over(event, partial(self._resumes, state, state.lives))
        noticed = state.paused_since + self.rules.detect
        if state.paused_until >= noticed:
            self.loop.call_at(max(now, noticed), partial(self._is_silent, state, event, state.lives))

    def _is_silent(self, state: WorkerState, event: Event, lives: int) -> None:
        """*state*'s worker has not been heard of for so long that it is taken to be down: it is then."""
        if state.paused_until is not None and state.lives == lives:  # also once the run has been stopped
            outage = self._fails(state, event, state.paused_until)
            self._notice(state, outage)

    def _resumes(self, state: WorkerState, lives: int) -> None:
        if state.paused_until is None or state.lives != lives or self.loop.now() < state.paused_until:
            return  # it failed meanwhile, or another pause ends later
        state.paused_until = None
        self._set_slowdown(state)
        runs, state.held_runs = state.held_runs, []
        messages, state.held_messages = state.held_messages, []
        for batch, done in runs:
            self.executor.run(state.worker, batch, done)
        for task, deliver in messages:
            deliver(task)

    # -- a worker fails -------------------------------------------------------------------------------------------

    def _fails(self, state: WorkerState, event: Event, until: float) -> Outage:
        """The worker of *state* is down from now until then."""
        now, worker = self.loop.now(), state.worker
        if state.outage is not None:  # it is down already
            longer = until > state.outage.until
            if longer:
                state.outage.until = until
                self.loop.call_at(now + self.rules.detect, partial(self._give_up_hope, worker.stage))
            if state.starts:  # what is being started fails too
                state.starts = False
                self.executor.inner.abort(worker)
            elif not longer:
                return state.outage
            self._back_at(state, state.outage.until, event.starting if longer else 0.0)
            return state.outage
        stood_since = now
        if state.paused_until is not None:
            stood_since = max(state.paused_since, state.heard)
            self._end_pauses(worker.name, event, now)
        at = stood_since if event.kind == "pause" else now
        outage = state.outage = Outage(worker.name, event, at, until)
        self.outages[worker.name].append(outage)
        state.lives += 1
        self._lose_all(state, outage, now, stood_since)
        self.loop.call_at(now + self.rules.detect, partial(self._notice, state, outage))
        self._back_at(state, until, event.starting)
        return outage

    def _end_pauses(self, worker: str, event: Event, now: float) -> None:
        """*event* ends the pauses that *worker* is in. One that was noticed is told as the outage that it became."""
        self.others = [
            (one._replace(until=min(one.until, now)) if one.kind == "pause" and name == worker else one, name)
            for one, name in self.others
            if (one, name) != (event, worker)
        ]

    def _lose_all(self, state: WorkerState, outage: Outage, now: float, stood_since: float) -> None:
        """All that is at the worker of *state* is lost, which computed until *stood_since*."""
        worker = state.worker
        batches = [batch for batch in worker.batches_under_way if batch not in [run for run, _ in state.held_runs]]
        began = self.executor.inner.abort(worker)
        held = [task for task, _ in state.held_messages]
        if state.paused_until is not None:
            state.paused_until = None
            state.held_runs, state.held_messages = [], []
            self._set_slowdown(state)
        for task in worker.fail(now):
            self._is_lost(task, outage, now)
        for task in held:
            self._is_lost(task, outage, now)
        outage.lost_seconds = max(0.0, stood_since - began)
        self._hear(batches, stood_since)
        self.loop.recorder.failed(worker.place, now)

    def _hear(self, batches: Sequence[Batch], now: float) -> None:
        """*batches* were cut off, at *now*: the recorder hears of those that had begun to compute."""
        summary = self.loop.recorder.summary
        for batch in batches:
            if batch.start > now:
                continue
            batch.lost, batch.end = True, now
            self.loop.hear_batch(batch)
            sizes = summary.sizes.get(batch.worker.name)
            if sizes is not None and not sizes[batch.size]:  # none of its iterations was over
                del sizes[batch.size]
                if not sizes:
                    del summary.sizes[batch.worker.name]

    def _is_lost(self, task: Task, outage: Outage, now: float) -> None:
        """*task* is lost with its worker. Until that is noticed it counts as on its way there."""
        worker = self.states[outage.worker].worker
        if task.request.outcome is not None:
            worker.coming.pop(task, None)
            return
        worker.coming[task] = None
        if self.loop.dispatcher is not None:
            self.loop.dispatcher.sent(worker)
        outage.lost.append(task)
        self._note(task, now, outage)

    def _note(self, task: Task, now: float, outage: Outage | None) -> None:
        """Write down that *task* is lost."""
        self.counts.lost += 1
        if outage is not None:
            outage.lost_requests += 1
        said = task.details(tokens=False)
        visit: dict[str, Any] = {"stage": task.stage.name, "worker": task.worker.name if task.worker else None}
        visit |= {"queued": task.queued, "admitted": task.admitted, "started": task.started}
        visit |= {"lost": now, "again": None}
        visit |= {name: said[name] for name in ("iterations", "prompt", "generated", "first_token") if name in said}
        self.attempts.setdefault(task.request.id, []).append(visit)

    def came_too_late(self, state: WorkerState, task: Task) -> None:
        """*task* has reached a worker that is down."""
        outage, now = state.outage, self.loop.now()
        assert outage is not None
        if task.request.outcome is not None:
            state.worker.coming.pop(task, None)
            return
        self._is_lost(task, outage, now)
        if outage.noticed is not None:
            self.loop.call_at(now, partial(self._resolve_all, outage))

    def message_lost(self, state: WorkerState, task: Task) -> None:
        """*task* will never reach its worker, which is noticed after the usual time."""
        self._note(task, self.loop.now(), None)
        self.loop.call_at(self.loop.now() + self.rules.detect, partial(self._resolve, task, "its message was lost"))

    def ran_out(self, state: WorkerState, batch: Batch, lives: int) -> None:
        """*batch*, which has just begun, does not fit into memory. Who sent it hears of that at once."""
        memory, now, worker = state.out_of_memory, self.loop.now(), state.worker
        if state.lives != lives or state.outage is not None:
            return
        assert memory is not None
        self.counts.out_of_memory += 1
        if memory.restart is not None:
            what, until = f"{worker.name}, out of memory", now + memory.restart
            event = Event(now, "crash", (worker.name,), until, what=what, starting=memory.starting)
            self._notice(state, self._fails(state, event, until))
            return
        lost = worker.fail_batch(batch, now)
        self.loop.recorder.batch_failed(batch, now)
        worker.go_on()
        for task in lost:
            if task.request.outcome is None:
                self._note(task, now, None)
                self._resolve(task, f"a batch of {batch.size} did not fit into the memory of {worker.name}")
        if not self.loop.stopped:
            self.loop.call(worker)

    # -- it is noticed, and it is back --------------------------------------------------------------------------

    def _notice(self, state: WorkerState, outage: Outage) -> None:
        """It is known by now that the worker of *state* failed; it may be back already."""
        if outage.noticed is not None:
            return
        if self.loop.stopped:
            self._resolve_all(outage)
            return
        outage.noticed = self.loop.now()
        if state.outage is outage:
            state.offered = False
            self._offer()
        self._resolve_all(outage)
        for stage in dict.fromkeys(one.worker.stage for one in self.states.values()):
            self._give_up_hope(stage)

    def _back_at(self, state: WorkerState, until: float, starting: float) -> None:
        """The worker of *state* is to be back then, after so many seconds of *starting*."""
        if until == inf:
            return
        at = max(self.loop.now(), until - starting) if self.executor.inner.starts else until
        self.loop.call_at(at, partial(self._is_repaired, state, until))

    def _is_repaired(self, state: WorkerState, until: float) -> None:
        """The worker of *state*, which was to be back then, can be started again."""
        outage = state.outage
        if outage is None or until < outage.until or state.starts or self.loop.stopped:
            return
        state.starts = True
        self.executor.inner.start(state.worker, partial(self._is_back, state, outage))

    def _is_back(self, state: WorkerState, outage: Outage) -> None:
        if state.outage is not outage or self.loop.stopped:
            return
        outage.until = self.loop.now()
        state.outage, state.offered, state.starts = None, True, False
        self._offer()

    def _offer(self) -> None:
        """Let routers see who is there as far as anybody knows, and send there who has waited for that."""
        serving = self.loop.serving
        stages = dict.fromkeys(state.worker.stage for state in self.states.values())
        for stage in stages:
            there = [s.worker for s in self.states.values() if s.worker.stage is stage and s.offered]
            serving[stage.name][:] = there
        self.loop.forward_held(self._waiting)
        if self.loop.dispatcher is not None:
            for stage in stages:
                self.loop.dispatcher.freed(stage)

    def _give_up_hope(self, stage: Stage) -> None:
        """If no worker of *stage* will ever be back, those who wait for one fail."""
        states = [state for state in self.states.values() if state.worker.stage is stage]
        if self.loop.serving[stage.name] or any(s.outage is None or s.outage.until < inf for s in states):
            return
        waiting = [request for request, visits in self._waiting.items() if any(v[0] is stage for v in visits)]
        if self.loop.dispatcher is not None:
            waiting += self.loop.dispatcher.held(stage)
        for request in waiting:
            self.counts.gave_up += request.outcome is None
            self.loop.fail(request, f"no worker of {stage.name} is left")

    # -- what was lost ------------------------------------------------------------------------------------------

    def _resolve_all(self, outage: Outage) -> None:
        lost, outage.lost = outage.lost, []
        for task in lost:
            self._resolve(task, f"{outage.worker} failed")

    def _resolve(self, task: Task, reason: str) -> None:
        """It is known that *task* was lost: its request is sent again, or fails."""
        request, retry, worker = task.request, self.rules.retry, task.worker
        if worker is not None:
            self.states[worker.name].worker.coming.pop(task, None)
        if request.outcome is not None or self.loop.stopped:
            return
        sent = len(self.attempts[request.id])
        if retry is None or sent > retry.attempts:
            self.counts.gave_up += 1
            self.loop.fail(request, f"{reason}, and it was sent {sent} times" if sent > 1 else reason)
        elif retry.backoff > 0.0:
            self.loop.call_at(self.loop.now() + retry.backoff, partial(self._send_again, task))
        else:
            self._send_again(task)

    def _send_again(self, task: Task) -> None:
        request, stage = task.request, task.stage
        if request.outcome is not None or self.loop.stopped:
            return
        self.loop.forget_visit(task)
        self._again[request.id, stage.name] = task
        before = [t for t in request.tasks if t.finished is not None and stage in t.stage.next]
        self.loop.forward(request, stage, before[-1] if before else None, True)

    # -- what is told of it at the end --------------------------------------------------------------------------

    def summary(self, since: float, until: float) -> dict[str, Any]:
        """What happened between these times (`servetwin.core.faults.outages.summary`)."""
        for state in self.states.values():
            if state.starts and state.outage is not None:
                state.outage.until = inf  # it is not back, and nobody waits for it
        return outages.summary(self.outages, self.counts, since, until)

    def lines(self) -> list[dict[str, Any]]:
        """What ``faults.jsonl`` holds: each worker's faults, by time."""
        said = [outage.as_dict() for own in self.outages.values() for outage in own]
        said += [outages.other_fault(event, name) for event, name in self.others]
        said += [outages.fault_while_down(event, name) for event, name in self.while_down]
        return sorted(said, key=lambda line: line["at"])

    def held(self, since: float, until: float) -> dict[str, float] | None:
        """Devices that are down are held, and paid for, like others."""
        return None

    def is_down(self, worker: str) -> bool:
        """Whether that worker is down now."""
        state = self.states.get(worker)
        return state is not None and state.outage is not None
