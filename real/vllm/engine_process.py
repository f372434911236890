"""Language models of a pipeline for real: each engine is vLLM in a process of its own, under our policy.

The serving loop, the client and the tools run here; a request reaches an engine through a pipe, and its tokens' times
come back that way. The policy object lives in the engine's process, inside vLLM's scheduler, as in `scheduler`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from servetwin.core import Request, ServeTwinError
from servetwin.core.errors import PolicyFault
from servetwin.core.isolation.code_inspection import named
from servetwin.core.llm import TokenTask
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.engine import TokenEngine
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.processes.parent_death import end_with_parent
from servetwin.core.processes.stopped import StopWatch
from servetwin.core.serving.worker import Loop

from ..answer import Answer, Standstill, broken
from .plan import said_of

if TYPE_CHECKING:
    from ..executor import RealExecutor
    from .scheduler import StepLog

#: Seconds that an engine may take to start.
PATIENCE = 300.0
#: Seconds between two signs of life of an engine that has tasks, and for which it may give none: then what it
#: computes leaves nothing else a turn, not even its watchdog.
ALIVE, SILENT = 5.0, 90.0


@dataclass(frozen=True)
class EngineSetup:
    """How the engine of a worker is started: `engine.EngineOptions` and `scheduler.Settings`, by name.

    *make* makes its policy in the engine's process, of its name and parameters: a function that can be imported there
    (None: `scheduler.find` finds the class).
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[str, Mapping[str, Any]], Any] | None = None


class EngineProcess:
    """vLLM in a process of its own. Raises `ServeTwinError` if it does not start."""

    def __init__(self, setup: EngineSetup) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()

    def ready(self) -> dict[str, Any]:
        """Wait until it has started; gives what it says of itself."""
        said: Any = self.ask(None)
        if not isinstance(said, dict):
            raise ServeTwinError(f"an engine does not start: {said}")
        return said

    @property
    def number(self) -> int:
        """The process's number, by which the system knows it."""
        return self.process.pid or 0

    def alive(self) -> bool:
        """Whether the process is still there."""
        return self.process.is_alive()

    def install(self, setup: EngineSetup) -> None:
        """Let it go on under a new policy, of *setup*."""
        self.ask(("install", list(sys.path), os.getcwd(), setup.settings, setup.make))

    def ask(self, question: Any) -> Any:
        """Send *question* (None: nothing) and wait for one answer."""
        try:
            if question is not None:
                self.pipe.send(question)
            stops, until = StopWatch(self.number), time.monotonic() + PATIENCE
            while not self.pipe.poll(1.0):
                if stops.too_long():
                    raise ServeTwinError(stops.told("an engine"))
                if time.monotonic() > until:
                    raise ServeTwinError(f"an engine has not answered for {PATIENCE:g} s")
            said = self.pipe.recv()
        except (EOFError, OSError):
            raise ServeTwinError(self.has_ended("an engine")) from None
        if isinstance(said, tuple) and said[:1] == ("broken",):
            raise broken("a worker", *said[1:])
        return said

    def has_ended(self, whose: str) -> str:
        """That the process, *whose* it is, has ended; and how."""
        self.process.join(1.0)
        code = self.process.exitcode
        how = "" if code is None else f" (by signal {-code})" if code < 0 else f" (with exit code {code})"
        return f"the process of {whose} has ended{how}"

    def close(self) -> None:
        """End the process."""
        if self.process.is_alive():
            try:
                self.pipe.send(("close",))
                self.process.join(10.0)
            except OSError:
                pass
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
        self.pipe.close()


class EngineWorker(TokenWorker):
    """A worker whose steps an engine in another process makes.

    Its own policy object is not asked: the engine's process has one of its own.
    """

    process: EngineProcess
    executor: RealExecutor

    def use(self, process: EngineProcess, executor: RealExecutor) -> None:
        """Serve by *process*, whose answers go to the event loop of *executor*."""
        self.process, self.executor = process, executor
        self.tasks: dict[tuple[int, int], TokenTask] = {}
        self.visits: dict[int, int] = {}
        self.heard_after: list[float] = []  # seconds from a last token until the loop knew
        self.sent: dict[tuple[int, int], float] = {}  # when the loop sent a task, on the monotonic clock
        self.under_way: list[float] = []  # seconds from then until the engine's process had it
        self.taking_in: list[float] = []  # seconds that its engine took to take it in
        self.communication: dict[int, float] = {}  # request -> seconds on the way there and back, of all its visits
        self.steps: list[StepLog] = []
        self.known: dict[int, TokenTask] = {}
        self.count = 0  # tasks that were sent
        self.listening = threading.Thread(
            target=self._listen, args=(executor.heard,), name=f"engine {self.name}", daemon=True
        )
        self.listening.start()

    def attach(self, loop: Loop) -> None:
        self.loop = loop
        self.engine = TokenEngine(loop, self)

    def serve_alone(self) -> None:
        """There is no shorter way: what it inherits would lead into the simulated engine."""
        return

    def task(self, request: Request, now: float) -> TokenTask:
        task = self.engine.task(request, now)
        task.token_times = array("d")
        return task

    def receive(self, task: Any) -> None:
        """Send *task* to the engine."""
        output = self.engine.lengths.pop(task)
        if task.request.outcome is not None:
            return
        task.queued = task.admitted = self.loop.now()
        visit = self.visits[task.id] = self.visits.get(task.id, -1) + 1
        self.tasks[task.id, visit] = task
        self.known[_own(task.id, visit)] = task
        self.view.waiting[task] = None
        self.executor.running += 1
        self.sent[task.id, visit] = self.executor.zero + task.queued
        at = self.executor.zero + task.arrival
        self.count += 1
        self.executor.still.pop(self.name, None)
        try:
            said = said_of(task.request, task.predicted)
            self.process.pipe.send(("add", task.id, visit, task.prompt, output, task.limit, at, task.budget, said))
        except OSError:
            raise ServeTwinError(self.process.has_ended(self.name)) from None

    def _listen(self, heard: SimpleQueue[tuple[object, object]]) -> None:
        def tell(*said: Any) -> None:
            heard.put((Answer(self.name, self.over, said), None))

        pipe, last = self.process.pipe, time.monotonic()
        stops = StopWatch(self.process.number)
        try:
            while True:
                if not self.tasks:
                    last = time.monotonic()
                if not pipe.poll(1.0):
                    if time.monotonic() - last > SILENT:
                        what = f"its engine {self.name} has given no sign of life for {SILENT:g} s"
                        tell("broken", PolicyFault.__name__, f"{named(self.policy)}: {what}")
                        return
                    if self.tasks and stops.too_long():
                        tell("broken", ServeTwinError.__name__, stops.told(self.name))
                        return
                    continue
                said, last = pipe.recv(), time.monotonic()
                stops.heard()
                if said[0] == "steps":
                    self.steps = said[1]
                    return
                if said[0] == "still":
                    heard.put((Standstill(self._stands_still, said[1]), None))
                elif said[0] != "alive":
                    tell(*said)
        except (EOFError, OSError):
            if self.tasks:
                tell("broken", ServeTwinError.__name__, self.process.has_ended(self.name))

    def _stands_still(self, arrived: int) -> None:
        """The engine's policy waits for arrivals: *arrived* tasks had reached it when it said so."""
        if arrived == self.count and self.tasks:
            self.executor.still[self.name] = len(self.tasks)

    def end(self) -> None:
        """The run is over: let the engine give up what is left, and take over the steps that it made."""
        with contextlib.suppress(OSError):
            self.process.pipe.send(("end",))
        self.listening.join(PATIENCE)

    def batches(self) -> Iterator[TokenBatch]:
        """The engine's steps as batches, in seconds since the run began."""
        zero, known = self.executor.zero, self.known
        for step in self.steps:
            batch = TokenBatch(0, self.place, step.decode, step.context)
            batch.prefill = [(known[own], tokens, context) for own, tokens, context in step.prefill if own in known]
            batch.preempted = [known[own] for own in step.preempted if own in known]
            batch.chosen = [known[own] for own in step.chosen if own in known] or None
            batch.free = step.free
            batch.size = step.decode + len(step.prefill)
            batch.start, batch.end, batch.took = step.began - zero, step.end - zero, step.seconds
            yield batch

    def costs(self) -> dict[str, Any]:
        """What the engine cost beside computing: the rows of Table 2 of NeuStream that a run can tell."""
        decides = [step.decided - step.start for step in self.steps]
        shares = [(s.decided - s.start) / (s.end - s.start) for s in self.steps if not s.prefill]
        whole = [(s.scheduled - s.start) / (s.end - s.start) for s in self.steps if not s.prefill]
        told: dict[str, Any] = {"calls": len(self.heard_after), "steps": len(self.steps)}
        for name, values in (
            ("heard_after_ms", self.heard_after),
            ("sent_ms", self.under_way),
            ("intake_ms", self.taking_in),
            ("decide_ms", decides),
        ):
            if values:
                told[name] = {"median": median(values) * 1e3, "mean": fmean(values) * 1e3, "max": max(values) * 1e3}
        if shares:
            told["deciding_over_decode_step"] = fmean(shares)
            told["scheduling_over_decode_step"] = fmean(whole)
        return told

    def withdraw(self, task: Any, now: float) -> None:
        """It runs out: vLLM is not told, and what it still says of *task* changes nothing."""
        self.view.waiting.pop(task, None)

    def ring(self) -> None:
        """No policy here asks to be woken."""

    def over(
        self,
        number: int,
        visit: int,
        outcome: str,
        times: list[float],
        preemptions: int,
        received: float,
        added: float,
    ) -> None:
        """The engine is done with a task, which it had *received* and then *added*; *times* are of its tokens, all on
        the monotonic clock."""
        task = self.tasks.pop((number, visit))
        under_way = received - self.sent.pop((number, visit))
        self.under_way.append(under_way)
        self.taking_in.append(added - received)
        back = time.monotonic() - times[-1] if outcome == "finished" else 0.0
        self.communication[number] = self.communication.get(number, 0.0) + under_way + back
        self.view.waiting.pop(task, None)
        if task.request.outcome is not None:
            return
        zero = self.executor.zero
        task.token_times = array("d", [t - zero for t in times])
        task.preemptions = preemptions
        task.generated = len(times)
        if times:
            task.first_token = task.token_times[0]
            task.started = task.queued
        if outcome == "dropped":
            self.loop.drop(task, self.view)
        elif outcome == "finished":
            task.finished = self.loop.now()
            self.heard_after.append(task.finished - task.token_times[-1])
            slo = self.view.slo
            if slo is not None and not slo.met(task):
                task.request.missed = True
                self.loop.know_anew(task.request)
            self.loop.leave(task, task.finished)
        else:
            self.loop.fail(task.request, "the engine gave it up")


# -- in the engine's process ------------------------------------------------------------------------------------


def _serve(pipe: Connection, setup: EngineSetup) -> None:
    end_with_parent()  # also in the middle of a step
    for number in (signal.SIGINT, signal.SIGTERM):  # those that go to a whole group are for the run, which ends this
        signal.signal(number, signal.SIG_IGN)
    engine: Any = None
    try:
        from .engine import EngineOptions, VllmEngine

        engine = VllmEngine(EngineOptions(**setup.options))
        engine.empty()
        with engine.scheduler.watchdog.watching():
            _install(engine, setup.settings, setup.make)
            pipe.send(engine.describe())
            _work(pipe, engine)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the run is no more
    except BaseException as error:
        with contextlib.suppress(OSError):
            pipe.send(("broken", type(error).__name__, " ".join(str(error).split())))
            if engine is not None:
                pipe.send(("steps", list(engine.scheduler.log)))


def _install(engine: Any, settings: Mapping[str, Any], make: Any) -> None:
    """Let *engine* go on under the policy of *settings*."""
    from .scheduler import Settings

    engine.remake = settings, make
    chosen = Settings(**settings)
    if make is None or chosen.policy is None:
        engine.scheduler.install(chosen)
    else:
        engine.scheduler.install(chosen, policy=make(chosen.policy, dict(chosen.params or {})))


def _work(pipe: Connection, engine: Any) -> None:
    scheduler = engine.scheduler
    scheduler.zero = 0.0  # all times on the monotonic clock
    scheduler.keep_log = True
    flying: dict[str, tuple[int, int, float, float]] = {}
    lost: Counter[int] = Counter()
    seen = 0  # steps of the log
    arrived, told = 0, -1  # tasks that came, and how many had when it was last said that the policy waits for more
    alive = time.monotonic()
    with engine.undisturbed():
        while True:
            busy = engine.engine.has_unfinished_requests()
            came = False
            while pipe.poll(0.0 if came else _idle(scheduler) if busy else 1.0):
                word, *more = pipe.recv()
                if word == "close":
                    return
                if word == "add":
                    _add(engine, flying, more)
                    busy = came = True
                    arrived += 1
                    continue
                if word == "call":
                    pipe.send(_called(engine, *more))
                elif word == "install":
                    engine.empty()
                    sys.path[:], folder, *chosen = more  # as they are there now
                    os.chdir(folder)
                    _install(engine, *chosen)
                    pipe.send(engine.describe())
                elif word == "end":
                    pipe.send(("steps", list(scheduler.log)))
                    engine.empty()
                flying.clear()
                lost.clear()
                scheduler.log.clear()
                scheduler.times.clear()
                seen = 0
                scheduler.zero, scheduler.keep_log = 0.0, True
                busy, arrived, told = False, 0, -1
            if flying and time.monotonic() - alive > ALIVE:
                pipe.send(("alive",))
                alive = time.monotonic()
            if not busy or (not came and _idle(scheduler)):
                continue
            over = [out for out in engine.step() if out.finished]
            for log in scheduler.log[seen:]:
                lost.update(log.preempted)
            seen = len(scheduler.log)
            for out in over:
                number, visit, *stamps = flying.pop(out.request_id)
                aborted = out.outputs[0].finish_reason == "abort"
                own = int(out.request_id)
                times = scheduler.times.pop(own, [])
                outcome = "dropped" if aborted else "finished"
                pipe.send(("over", number, visit, outcome, list(times), lost.pop(own, 0), *stamps))
            if scheduler.waits_for_arrivals and told != arrived:
                pipe.send(("still", arrived))
                told = arrived


def _idle(scheduler: Any) -> float:
    """Seconds, a second at most, for which the policy wants the engine to stand still if nothing arrives."""
    if scheduler.idle_until is None or scheduler.in_flight:
        return 0.0
    left: float = scheduler.idle_until - scheduler.now()
    return max(0.0, min(1.0, left))


def _own(number: int, visit: int) -> int:
    """vLLM wants a name of its own for each visit of a request."""
    return number * 1000 + visit


def _add(engine: Any, flying: dict[str, tuple[int, int, float, float]], more: list[Any]) -> None:
    from .plan import Planned

    received = time.monotonic()
    number, visit, prompt, output, limit, at, budget, said = more
    own = _own(number, visit)
    engine.add(Planned(own, 0.0, prompt, output, limit, said), at)
    flying[str(own)] = (number, visit, received, time.monotonic())
    engine.scheduler.grant(budget)


def _called(engine: Any, function: Callable[..., Any], *more: Any) -> Any:
    """What *function*, which can be imported there, gives of *engine*, whose policy comes back after it."""
    engine.empty()
    found = function(engine, *more)
    engine.empty()
    _install(engine, *engine.remake)
    return found
