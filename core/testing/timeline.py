"""Whole runs without a simulation package: a clock that jumps from event to event, and batches of given seconds.

`play` serves a scenario, a list of `Job` or `Prompt`, under the invariants of docs/reference/invariants.md, and gives
what ran when. It stands on the serving loop of all other runs; only time is synthetic: a batch takes what the table
of its worker says, and nothing else takes any. So a test can say which batches there must be.

>>> from servetwin.core import Decision, Policy
>>> class FirstTwo(Policy):
...     def decide(self, view, now):
...         return Decision([*view.running, *view.waiting][:2])
>>> played = play(FirstTwo, [Job(2), Job(1), Job(1, at=0.05)], seconds=0.1)
>>> played.expect([0, 1], [0, 2])
>>> played.outcomes
['met', 'met', 'met']
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..arithmetic import float_sum
from ..errors import BadInput, PolicyFault
from ..groups.group_worker import GroupWorker
from ..invariants.checker import InvariantChecker
from ..isolation import task_ledger
from ..llm.batch import TokenBatch
from ..llm.policy import TokenPolicy
from ..llm.serving.worker import TokenWorker
from ..pipeline import Module, Pipeline, Stage, StepActions
from ..policy import Batch, Decision, Policy, PolicyBase, WorkerView
from ..records import Recorder
from ..request import Outcome, Request, Shape, Task
from ..serving.acting_worker import ActingWorker
from ..serving.batch_worker import BatchWorker
from ..serving.client import Client
from ..serving.loop import ServingLoop
from ..serving.worker import Worker
from .estimates import Decode, Prefill, Seconds, by_size, token_view
from .jobs import MODULE, Job, Prompt, in_order, jobs, prompts
from .schedule import Bar, End, Played

#: Events after which a run is given up: a policy that wakes itself up for ever ends sooner, by an invariant.
MOST_EVENTS = 500_000
#: Events on end without a batch after which a policy idles for ever.
MOST_IDLE = 50_000


@dataclass(frozen=True)
class System:
    """A pipeline to serve: *seconds* of a batch by module and size, *limits* the largest batch by module.

    Each module is served by a worker of its own; where *gpus* says so, on a group of so many devices: on 2, 4, 8, ...
    of them at once a batch takes what `on_degree` says, and *change* seconds more before which a request changes
    devices (None: it may not). Raises `BadInput` if a module has no seconds.
    """

    pipeline: Pipeline
    seconds: Mapping[str, Seconds]
    limits: Mapping[str, int] = field(default_factory=dict)
    slo_factor: float | None = None
    gpus: Mapping[str, int] = field(default_factory=dict)
    change: float | None = None

    def workers(self, make: Callable[[Stage], PolicyBase]) -> list[Worker]:
        """A worker for each module, under what *make* gives for its stage."""
        names = list(self.pipeline.modules)
        for name in names:
            if name not in self.seconds:
                raise BadInput(f"module {name!r} has no seconds", where="seconds", right=f"{', '.join(names)}")
        tables = {name: by_size(self.seconds[name]) for name in names}

        def estimate(module: str, batch: int) -> float:
            return tables[module](batch)

        found: list[Worker] = []
        for stage in self.pipeline.stages([[name] for name in names]):
            limit = self.limits.get(stage.modules[0], 8)
            view = WorkerView(stage, estimate, limit=limit, slo_factor=self.slo_factor)
            size = self.gpus.get(stage.modules[0], 1)
            if size > 1:

                def by_degree(module: str, batch: int, degree: int, shape: Shape | None) -> float:
                    return on_degree(tables[module](batch), degree)

                degrees = [1 << n for n in range(size.bit_length())]
                more: dict[str, Any] = {"size": size, "degrees": degrees, "change": self.change}
                found.append(GroupWorker(stage, make(stage), view, estimate=by_degree, **more))  # type: ignore[arg-type]
                continue
            kind = BatchWorker if stage.actions is None else ActingWorker
            found.append(kind(stage, make(stage), view))  # type: ignore[arg-type]
        return found


def on_degree(seconds: float, degree: int) -> float:
    """What takes so many *seconds* on one device takes this on *degree*: four fifths of it are shared out."""
    return seconds * (0.2 + 0.8 / degree)


class InTurn(Policy):
    """Whole requests, first come, first served: what serves the modules that are not under test."""

    def decide(self, view: WorkerView, now: float) -> Decision:
        return Decision(list(view.waiting)[: view.limit], whole=True)


def chain(
    seconds: Seconds = 0.03,
    *,
    limit: int = 8,
    loop: bool = True,
    then: Mapping[str, Seconds] | None = None,
    slo_factor: float | None = None,
    actions: StepActions | None = None,
    gpus: int = 1,
    change: float | None = None,
) -> System:
    """The worker under test, and the modules that a request has to pass *then*, each with its seconds. *actions* are
    what its policy may do with steps; *gpus* and *change* as in `System`."""
    later = dict(then or {})
    if MODULE in later:
        raise BadInput(f"{MODULE!r} is the worker's own module", where="then", right="another name")
    pipeline = Pipeline.chain(Module(MODULE, loop=loop, actions=actions), *map(Module, later))
    return System(pipeline, {MODULE: seconds, **later}, {MODULE: limit}, slo_factor, {MODULE: gpus}, change)


class Play:
    """A run that is under way, event by event. *policy* makes a new policy for each worker that it serves.

    With *checked* all invariants are checked at each event.
    """

    def __init__(
        self,
        system: System | dict[str, Any],
        make: Callable[[], Any],
        given: Sequence[Job | Prompt],
        *,
        checked: bool,
    ) -> None:
        self.played = Played()
        self.policies: list[Any] = []
        self.clock = Timeline(self.played)
        if isinstance(system, System):
            self.workers = system.workers(lambda stage: self._policy(make, stage))
        else:
            stages = Pipeline([Module(MODULE, loop=True)], []).stages([[MODULE]])
            self.workers = [TokenWorker(stages[0], self._policy(make, stages[0]), token_view(stages[0], **system))]
        recorder: Recorder = Ends(self.played)
        self.invariants = InvariantChecker(recorder) if checked else None
        stages_ = list(dict.fromkeys(worker.stage for worker in self.workers))
        self.loop = ServingLoop(stages_, self.workers, self.clock, self.invariants or recorder)
        if self.invariants is not None:
            self.invariants.watch(self.loop)
        Client(self.loop, self._requests(in_order(given)))  # type: ignore[type-var]

    def _policy(self, make: Callable[[], Any], stage: Stage) -> Any:
        if stage.loop is None and len(stage.modules) == 1 and stage.modules[0] != MODULE:
            return InTurn()
        self.policies.append(make())
        return self.policies[-1]

    def _requests(self, given: Sequence[Job | Prompt]) -> Iterator[Request]:
        for number, job in enumerate(given):
            request = job.request(number)
            self.played.sent[number] = request.arrival, request.deadline
            yield request

    def step(self) -> bool:
        """Let all happen that happens at the next instant; whether there was one."""
        return self.clock.step()

    def finish(self) -> Played:
        """Nothing is left to happen. Raises `PolicyFault` if requests have not ended, `InvariantBroken` if
        the books do not add up."""
        if self.loop.live:
            some = ", ".join(str(number) for number in [*self.loop.live][:5])
            what = f"{len(self.loop.live)} requests never ended ({some}), though nothing was left to happen"
            raise PolicyFault(f"{what}; held by {self.loop.holders() or 'no worker'}")
        self.loop.look_over()
        if self.invariants is not None:
            self.invariants.finish()
        return self.played


def play(
    policy: Callable[[], Any] | PolicyBase,
    scenario: Sequence[int | tuple[int, int] | Job | Prompt],
    *,
    system: System | None = None,
    booked: bool = True,
    **more: Any,
) -> Played:
    """Serve *scenario* under *policy* to its end, under all invariants; gives what ran when.

    *policy* is a policy, or its class, or a function that makes one. Of a `Policy` the scenario holds `Job`s (or
    numbers of iterations), and *more* are *seconds*, *limit*, *loop*, *then* and *slo_factor* as in `FakeWorker`, and
    *gpus* and *change* of a group of devices as in `System`; or *system* says what is served, where *policy* must be
    a class or function, as each worker has its own. Of a `TokenPolicy` it holds `Prompt`s (or numbers of tokens), and
    *more* is as in `FakeEngine`.

    Raises `PolicyFault` or `InvariantBroken` if the policy decides what it must not, or never ends; `BadInput` if the
    scenario makes no sense.
    """
    made = policy if isinstance(policy, PolicyBase) else policy()
    tokens = isinstance(made, TokenPolicy)
    if not isinstance(made, Policy | TokenPolicy):
        raise BadInput(f"{policy!r} is no policy", where="play", right="a policy, its class, or what makes one")
    first = [made]

    def make() -> Any:
        if first:
            return first.pop()
        if isinstance(policy, PolicyBase):
            raise BadInput("one object serves one worker", where="play", right="the policy's class")
        return policy()

    given: Sequence[Job | Prompt] = prompts(scenario) if tokens else jobs(scenario)  # type: ignore[arg-type]
    served = more if tokens else system or chain(**more)
    with books(booked):
        run = Play(served, make, given, checked=True)
        while run.step():
            pass
        return run.finish()


@contextmanager
def books(kept: bool = True) -> Iterator[None]:
    """Within this, books of what tasks say are *kept* for every policy."""
    before, task_ledger.BOOKED = task_ledger.BOOKED, kept or task_ledger.BOOKED
    try:
        yield
    finally:
        task_ledger.BOOKED = before


class Ends(Recorder):
    """Tells *played* how requests ended."""

    def __init__(self, played: Played) -> None:
        super().__init__()
        self.played = played

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        outcome = (request.outcome or Outcome.FAILED).value
        self.played.ends[request.id] = End(request.arrival, request.deadline, outcome, now)


class _Call:
    """A call that is still to come."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Timeline:
    """An `Executor` whose clock jumps from event to event; it tells *played* what it ran."""

    def __init__(self, played: Played) -> None:
        self.played = played
        self._time = 0.0
        self._events: list[tuple[float, int, _Call]] = []
        self._order = itertools.count()
        self._idle = 0  # events since something was run
        self._settled: list[Callable[[], None]] = []

    def now(self) -> float:
        return self._time

    def run(self, worker: Worker, batch: Batch, done: Callable[[Any], None]) -> None:
        start = self._time
        self._idle = 0
        if isinstance(batch, TokenBatch):
            seconds = batch.took = _of_step(worker, batch)
            bar = _bar_of_step(worker, batch, start, start + seconds)
        else:
            view, stage = worker.view, worker.stage
            steps = batch.iterations if stage.loop else 1
            degree = len(batch.devices) or 1
            seconds = steps * float_sum(view.group.estimate(module, batch.size, degree) for module in stage.modules)
            seconds += (view.group.change or 0.0) if batch.changed else 0.0
            ids = tuple([task.id for task in batch.tasks])
            bar = Bar(worker.name, start, start + seconds, ids, devices=batch.devices)
        self.played.bars.append(bar)
        self.call_at(start + seconds, lambda: done(batch))

    def send(self, source: Worker | None, task: Task, deliver: Callable[[Task], None]) -> None:
        deliver(task)

    def call_at(self, when: float, callback: Callable[[], None]) -> _Call:
        call = _Call(callback)
        heapq.heappush(self._events, (max(when, self._time), next(self._order), call))
        return call

    def when_settled(self, callback: Callable[[], None]) -> bool:
        self._settled.append(callback)
        return True

    def step(self) -> bool:
        """Let all happen that happens at the next instant; whether there was one."""
        if not self._events:
            return False
        self._time = self._events[0][0]
        while True:
            while self._events and self._events[0][0] <= self._time:
                number, call = self._events[0][1], heapq.heappop(self._events)[2]
                if number > MOST_EVENTS:
                    raise PolicyFault(f"the run has not come to an end after {MOST_EVENTS} events")
                self._idle += 1
                if self._idle > MOST_IDLE:
                    raise PolicyFault(f"it idles for ever: no batch in {MOST_IDLE} events, at {self._time:g} s")
                if call.callback is not None:
                    call.callback()
            if not self._settled:
                return True
            self._settled.pop(0)()


def _of_step(worker: Worker, batch: TokenBatch) -> float:
    """Seconds of an engine's step: what its prompts take and what its decodes take, one after the other."""
    view: Any = worker.view
    seconds = 0.0
    if batch.prefill:
        counts = [count for _, count, _ in batch.prefill]
        seconds += view.estimate_prefill(sum(counts), float(sum(count * count for count in counts)))
    if batch.decode:
        seconds += view.estimate_decode(batch.decode, batch.context)
    return float(seconds)


def _bar_of_step(worker: Worker, batch: TokenBatch, start: float, end: float) -> Bar:
    prefill = tuple([(task.id, count) for task, count, _ in batch.prefill])
    chosen = batch.chosen
    if chosen is None:
        chosen = [t for t in worker.view.running if t.decoding] if batch.decode else []  # type: ignore[attr-defined, misc]
    decode = tuple([task.id for task in chosen])
    run = (*[number for number, _ in prefill], *decode)
    return Bar(worker.name, start, end, run, prefill, decode, tuple([task.id for task in batch.preempted]))


__all__ = ["Bar", "Decode", "End", "Play", "Played", "Prefill", "System", "Timeline", "chain", "play"]
