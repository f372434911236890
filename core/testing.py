"""Test a policy without a simulation: make requests up, move a clock by hand, look at what the policy decides.

`FakeWorker` asks a `Policy`, `FakeEngine` a `TokenPolicy`. Behind both is the serving loop that also serves simulated
and real runs. So a policy is asked in the same order, sees the same view, and what it must not do raises the same
error: a batch over the limit, a task that is not there, idling until the past.

>>> from servetwin.core import Decision, Policy
>>> class OneAtATime(Policy):
...     def decide(self, view, now):
...         return Decision([*view.running, *view.waiting][:1])
>>> worker = FakeWorker(OneAtATime())
>>> first, second = worker.arrive(iterations=1), worker.arrive(iterations=1)
>>> worker.decide(now=0.0)
[0]
>>> worker.end(now=0.03)
>>> worker.decide(now=0.03)
[1]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .batch_worker import BatchWorker
from .errors import BadInput
from .llm.batch import TokenBatch
from .llm.limits import EngineLimits
from .llm.policy import TokenPolicy, TokenView
from .llm.request import TokenRequest, TokenTask
from .llm.slo import CumulativeSLO, TokenSLO
from .llm.worker import TokenWorker
from .loop import ServingLoop
from .pipeline import Module, Pipeline
from .policy import Batch, Policy, WorkerView
from .records import Recorder
from .request import Outcome, Request, Task
from .worker import Worker

__all__ = ["EngineStep", "FakeEngine", "FakeWorker"]


class FakeWorker:
    """One worker whose queue and clock a test works by hand.

    *policy* is what is tested. *seconds* is what the profile says that a batch takes (one iteration, with *loop*): a
    number for every size, a list by size from 1 on (the last one goes on for larger batches), or a function of the
    size. *then* names the modules that a request has still to pass after this worker, each with its seconds.
    *limit* is the largest batch, *slo_factor* what the policy is told of the experiment's SLO.

    *view* is what the policy sees. *batch* is what runs, or None. *dropped* are the ids of the requests that the
    policy refused or gave up, in that order. Requests have the ids 0, 1, 2, ... in the order in which they arrive.
    """

    def __init__(
        self,
        policy: Policy,
        seconds: float | Sequence[float] | Callable[[int], float] = 0.03,
        *,
        limit: int = 8,
        loop: bool = True,
        then: Mapping[str, float] | None = None,
        slo_factor: float | None = None,
    ) -> None:
        later = dict(then or {})
        if MODULE in later:
            raise BadInput(f"{MODULE!r} is the worker's own module", where="then", right="another name")
        modules = [Module(MODULE, loop=loop), *map(Module, later)]
        stages = Pipeline.chain(*modules).stages([[m.name] for m in modules])
        alone = _by_size(seconds)

        def estimate(module: str, batch: int) -> float:
            return alone(batch) if module == MODULE else later[module]

        self.view = WorkerView(stages[0], estimate, limit=limit, slo_factor=slo_factor)
        self.policy = policy
        self._worker = BatchWorker(stages[0], policy, self.view)
        behind = [BatchWorker(stage, Policy(), WorkerView(stage, estimate, limit=limit)) for stage in stages[1:]]
        self._hand = _Hand()
        self._told = _Dropped()
        self._loop = ServingLoop(stages, [self._worker, *behind], self._hand, self._told)

    @property
    def batch(self) -> Batch | None:
        """What runs now: its tasks, its size, whether it runs them *whole*, what the policy said of repeating it."""
        return self._hand.batch

    @property
    def dropped(self) -> list[int]:
        """The ids of the requests that were given up, in that order."""
        return self._told.ids

    @property
    def idle_until(self) -> float | None:
        """Until when the policy wants to idle, in seconds, or None: until something arrives."""
        return min(self._hand.alarms, default=None)

    def arrive(self, iterations: int = 50, *, slo: float = float("inf"), at: float | None = None) -> Task:
        """A request for so many iterations arrives *at* that time (seconds; by default now), due *slo* seconds later.

        It stands in the queue; the policy hears of it with the next `decide`. Gives its task. Raises `BadInput` if
        *at* is in the past.
        """
        self._hand.wait(at)
        request = Request(self._hand.next_id(), self._hand.now(), slo, {MODULE: iterations})
        self._loop.arrive(request)
        return self._hand.sent

    def decide(self, now: float) -> list[int]:
        """Ask the policy at *now* (seconds); gives the ids of the batch that it starts, in its order, or none.

        What it drops leaves the queues, what it runs is in flight until `end`. Raises `BadInput` if a batch is in
        flight (and the policy does not decide ahead) or *now* is in the past, `InvariantBroken` if the policy decides
        what it must not.
        """
        if self._hand.batch is not None and not self.policy.ahead:
            raise BadInput("a batch is in flight, and the policy does not decide ahead", right="end(now) first")
        self._hand.wait(now)
        batch = self._hand.ask(self._worker)
        return [task.id for task in batch.tasks] if batch is not None else []

    def end(self, now: float) -> None:
        """The batch in flight ends at *now* (seconds). Raises `BadInput` if there is none."""
        self._hand.end(now)


@dataclass(frozen=True)
class EngineStep:
    """What an engine started: (id, tokens) of each *prefill*, the ids of those that *decode*, and of those that were
    *preempted* for it."""

    prefill: list[tuple[int, int]]
    decode: list[int]
    preempted: list[int]


class FakeEngine:
    """An engine of a language model whose queue and clock a test works by hand.

    *policy* is what is tested. *prefill* is seconds per token of a prompt, or a function of (tokens, sum of the
    squared lengths or None); *decode* seconds of a decode step, or a function of (requests, sum of their computed
    tokens): what the profile says. *slo* is (P, D), multiples of these (`CumulativeSLO`), or any `TokenSLO`, or None.
    The memory has *blocks*; *limits* are further fields of `EngineLimits` (*block_size*, *max_batched_tokens*, ...).

    *view* is what the policy sees, *dropped* are the ids of the requests that were given up. Requests have the ids 0,
    1, 2, ... in the order in which they arrive.
    """

    def __init__(
        self,
        policy: TokenPolicy,
        *,
        prefill: float | Callable[[int, float | None], float] = 0.001,
        decode: float | Callable[[int, int], float] = 0.05,
        slo: TokenSLO | tuple[float, float] | None = None,
        blocks: int = 10_000,
        **limits: Any,
    ) -> None:
        stages = Pipeline([Module(MODULE, loop=True)], []).stages([[MODULE]])
        by_tokens = prefill if callable(prefill) else _per_token(prefill)
        by_batch = decode if callable(decode) else _per_step(decode)
        if isinstance(slo, tuple):
            slo = CumulativeSLO(*slo, by_batch(1, 0), 0.0, lambda n: by_tokens(n, None))
        self.view = TokenView(
            stages[0],
            EngineLimits(blocks, **limits),
            estimate_prefill=by_tokens,
            estimate_decode=by_batch,
            slo=slo,
        )
        self._worker = TokenWorker(stages[0], policy, self.view)
        self._hand = _Hand()
        self._told = _Dropped()
        self._loop = ServingLoop(stages, [self._worker], self._hand, self._told)

    @property
    def dropped(self) -> list[int]:
        """The ids of the requests that were given up, in that order."""
        return self._told.ids

    @property
    def idle_until(self) -> float | None:
        """Until when the policy wants to idle, in seconds, or None: until something arrives."""
        return min(self._hand.alarms, default=None)

    def arrive(
        self, prompt: int, *, output: int = 300, limit: int | None = None, at: float | None = None
    ) -> TokenTask:
        """A request with *prompt* tokens arrives *at* that time (seconds; by default now).

        It will put out *output* tokens, which the policy cannot know, and declares *limit* (by default the same) as
        the most. It stands in the queue; the policy hears of it with the next `decide`. Gives its task. Raises
        `BadInput` if *at* is in the past.
        """
        self._hand.wait(at)
        tokens = {MODULE: (prompt, output if limit is None else limit)}
        self._loop.arrive(TokenRequest(self._hand.next_id(), self._hand.now(), tokens, {MODULE: output}))
        task = self._hand.sent
        assert isinstance(task, TokenTask)
        return task

    def decide(self, now: float) -> EngineStep | None:
        """Ask the policy at *now* (seconds); gives the step that the engine starts, or None if it idles.

        What does not fit into memory is not in the step, whatever the policy said. Raises `BadInput` if a step is in
        flight or *now* is in the past, `InvariantBroken` if the policy decides what it must not.
        """
        if self._hand.batch is not None:
            raise BadInput("a step is in flight", right="end(now) first")
        self._hand.wait(now)
        batch = self._hand.ask(self._worker)
        if batch is None:
            return None
        assert isinstance(batch, TokenBatch)
        decode = batch.chosen
        if decode is None:
            decode = [task for task in self.view.running if task.decoding] if batch.decode else []
        prefill = [(task.id, count) for task, count, _ in batch.prefill]
        return EngineStep(prefill, [task.id for task in decode], [task.id for task in batch.preempted])

    def end(self, now: float) -> None:
        """The step in flight ends at *now* (seconds): its tokens come out. Raises `BadInput` if there is none."""
        self._hand.end(now)


#: The name of the module that a fake worker or engine serves.
MODULE = "model"


def _by_size(seconds: float | Sequence[float] | Callable[[int], float]) -> Callable[[int], float]:
    if callable(seconds):
        return seconds
    if isinstance(seconds, Sequence):
        table = list(seconds)
        if not table:
            raise BadInput("no seconds are given", where="seconds", right="a number for each batch size, from 1 on")
        return lambda batch: table[min(batch, len(table)) - 1]
    return lambda _: seconds


def _per_token(seconds: float) -> Callable[[int, float | None], float]:
    return lambda tokens, _: seconds * tokens


def _per_step(seconds: float) -> Callable[[int, int], float]:
    return lambda *_: seconds


class _Dropped(Recorder):
    """Remembers who was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[int] = []

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        if request.outcome is Outcome.DROPPED:
            self.ids.append(request.id)


class _Alarm:
    """A call that nobody makes, since the test says when the policy is asked."""

    def __init__(self, hand: _Hand, when: float) -> None:
        self.hand, self.when = hand, when
        hand.alarms.append(when)

    def cancel(self) -> None:
        if self.when in self.hand.alarms:
            self.hand.alarms.remove(self.when)


class _Hand:
    """An `Executor` on which nothing happens by itself."""

    sent: Task

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.alarms: list[float] = []
        self._time = 0.0
        self._ids = 0
        self._calls: list[Callable[[], None]] = []
        self._done: Callable[[Any], None] | None = None

    # -- what the serving loop asks for ---------------------------------------------------------------------

    def now(self) -> float:
        return self._time

    def run(self, worker: object, batch: Batch, done: Callable[[Any], None]) -> None:
        self.batch, self._done = batch, done

    def send(self, source: object, task: Task, deliver: Callable[[Task], None]) -> None:
        self.sent = task
        if source is None:  # what is handed on leaves the test
            deliver(task)

    def call_at(self, when: float, callback: Callable[[], None]) -> _Alarm:
        return _Alarm(self, when)

    def when_settled(self, callback: Callable[[], None]) -> bool:
        self._calls.append(callback)
        return True

    # -- what the test does ---------------------------------------------------------------------------------

    def next_id(self) -> int:
        self._ids += 1
        return self._ids - 1

    def wait(self, until: float | None) -> None:
        """Let time pass."""
        if until is None:
            return
        if not until >= self._time:
            raise BadInput(f"{until:g} s is in the past", right=f"{self._time:g} s or later")
        self._time = until
        self.alarms = [when for when in self.alarms if when > until]

    def ask(self, worker: Worker) -> Batch | None:
        """Let *worker* decide: all that happens at this instant has. Gives the batch that it starts, if it does."""
        before, called = self.batch, worker.called
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        if not called:
            worker.turn()
        return self.batch if self.batch is not before else None

    def end(self, now: float) -> None:
        batch, done = self.batch, self._done
        if batch is None or done is None:
            raise BadInput("nothing is in flight", right="decide(now) first")
        self.wait(now)
        if isinstance(batch, TokenBatch):
            batch.took = now - batch.start
        self.batch = self._done = None
        done(batch)
