"""Test a policy by hand: make requests up, move a clock, look at what the policy decides.

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

Or in one line, with requests that run and requests that wait:

>>> FakeWorker(OneAtATime(), running=[(50, 30)], waiting=[50, 20]).decide(now=0.0)
[0]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput
from ..isolation.code_inspection import watcher
from ..llm.batch import TokenBatch
from ..llm.policy import Step, TokenPolicy, TokenView
from ..llm.request import TokenTask
from ..llm.serving.worker import TokenWorker
from ..llm.slo import TokenSLO
from ..pipeline import Module, Pipeline
from ..policy import Batch, Decision, Policy, Repeat, WorkerView
from ..records import Recorder
from ..request import Outcome, Request, Task
from ..serving.loop import ServingLoop
from ..serving.worker import Worker
from .estimates import Decode, Prefill, Seconds, token_view
from .jobs import MODULE, Job, Prompt, jobs, prompts
from .timeline import chain

__all__ = ["EngineStep", "FakeEngine", "FakeWorker", "engine_view", "worker_view"]

#: Requests as they stand when a test begins.
Jobs = Sequence["int | tuple[int, int] | Job"]
Prompts = Sequence["int | tuple[int, int] | Prompt"]


class FakeWorker:
    """One worker whose queue and clock a test works by hand.

    *policy* is what is tested. *seconds* is what the profile says that a batch takes (one iteration, with *loop*): a
    number for every size, a list by size from 1 on (the last one goes on for larger batches), or a function of the
    size. *then* names the modules that a request has still to pass after this worker, each with its seconds.
    *limit* is the largest batch, *slo_factor* what the policy is told of the experiment's SLO.

    *running* and *waiting* are the requests that are there to begin with, in order of admission: a number of
    iterations, a pair (iterations, left) of one that runs, or a `Job`, which came at 0 or earlier. The policy is
    asked to admit the running ones, too. The clock begins at 0.

    *view* is what the policy sees. *batch* is what runs, or None. *dropped* are the ids of the requests that the
    policy refused or gave up, in that order. Requests have the ids 0, 1, 2, ... in the order in which they arrive,
    the running ones first.
    """

    def __init__(
        self,
        policy: Policy,
        seconds: Seconds = 0.03,
        *,
        waiting: Jobs = (),
        running: Jobs = (),
        limit: int = 8,
        loop: bool = True,
        then: Mapping[str, Seconds] | None = None,
        slo_factor: float | None = None,
    ) -> None:
        begun, later = jobs(running), jobs(waiting)
        self.policy = policy
        before = _Before(policy)
        modules = chain(seconds, limit=limit, loop=loop, then=then, slo_factor=slo_factor)
        self._worker, *behind = modules.workers(
            lambda stage: before if stage.modules[0] == MODULE else Policy()  # type: ignore[arg-type, return-value]
        )
        self._hand = _Hand()
        self._told = _Dropped()
        self._loop = ServingLoop(
            [worker.stage for worker in (self._worker, *behind)], [self._worker, *behind], self._hand, self._told
        )
        self.view: WorkerView = self._worker.shown
        self._begin(before, begun, later)

    def _begin(self, before: _Before, begun: Sequence[Job], later: Sequence[Job]) -> None:
        """Bring about that *begun* run and *later* wait, as it comes about in a run."""
        hand = self._hand
        if begun and self.policy.ahead:
            raise BadInput("a policy that decides ahead knows only its own batches", where="running", right="none")
        for job in begun:
            done = job.iterations - (job.left or job.iterations)
            if not done:
                raise BadInput(f"{job} has not begun", where="running", right="(iterations, fewer that are left)")
            hand.turn_to(job.at, "running")
            self._loop.arrive(job.request(hand.next_id()))
            while done:
                before.answer = Decision([hand.sent], repeat=Repeat(done))
                hand.ask(self._worker)
                assert hand.batch is not None
                hand.batch.count = min(done, hand.batch.times)
                done -= hand.batch.count
                before.answer = Decision()
                hand.end(hand.now())
        before.hand_over(self._worker, hand)
        for job in later:
            hand.turn_to(job.at, "waiting")
            self._loop.arrive(job.request(hand.next_id()))
        hand.turn_to(0.0, "")

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
        self._loop.arrive(Job(iterations, at=self._hand.now(), slo=slo).request(self._hand.next_id()))
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

    *running* and *waiting* are the requests that are there to begin with: a number of tokens, a pair (tokens of the
    prompt, tokens that are out) of one that runs, or a `Prompt`, which came at 0 or earlier. Running ones hold the
    memory that they need. The clock begins at 0.

    *view* is what the policy sees, *dropped* are the ids of the requests that were given up. Requests have the ids 0,
    1, 2, ... in the order in which they arrive, the running ones first.
    """

    def __init__(
        self,
        policy: TokenPolicy,
        *,
        waiting: Prompts = (),
        running: Prompts = (),
        prefill: Prefill = 0.001,
        decode: Decode = 0.05,
        slo: TokenSLO | tuple[float, float] | None = None,
        blocks: int = 10_000,
        **limits: Any,
    ) -> None:
        begun, later = prompts(running), prompts(waiting)
        stages = Pipeline([Module(MODULE, loop=True)], []).stages([[MODULE]])
        view = token_view(stages[0], prefill=prefill, decode=decode, slo=slo, blocks=blocks, **limits)
        before = _Before(policy)
        self._worker = TokenWorker(stages[0], before, view)  # type: ignore[arg-type]
        self._hand = _Hand()
        self._told = _Dropped()
        self._loop = ServingLoop(stages, [self._worker], self._hand, self._told)
        self.view: TokenView = self._worker.shown
        self._begin(before, begun, later)

    def _begin(self, before: _Before, begun: Sequence[Prompt], later: Sequence[Prompt]) -> None:
        """Bring about that *begun* run and *later* wait, as it comes about in an engine."""
        hand, most = self._hand, self.view.max_batched_tokens
        for prompt in begun:
            if not prompt.generated and prompt.computed is None:
                raise BadInput(f"{prompt} has not begun", where="running", right="(tokens, tokens that are out)")
            hand.turn_to(prompt.at, "running")
            self._loop.arrive(prompt.request(hand.next_id()))
            task = hand.sent
            assert isinstance(task, TokenTask)
            steps = []
            left = prompt.tokens if prompt.computed is None else prompt.computed
            while left:
                steps.append(Step([(task, min(left, most))]))
                left -= min(left, most)
            steps += [Step((), [task])] * max(0, prompt.generated - 1)
            for step in steps:
                before.answer = step
                batch = hand.ask(self._worker)
                if batch is None or batch.preempted:  # type: ignore[attr-defined]
                    raise BadInput("those that run do not fit into the memory", where="blocks", right="more of them")
                before.answer = Step()
                hand.end(hand.now())
        before.hand_over(self._worker, hand)
        for prompt in later:
            hand.turn_to(prompt.at, "waiting")
            self._loop.arrive(prompt.request(hand.next_id()))
        hand.turn_to(0.0, "")

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
        sent = Prompt(prompt, output, limit, at=self._hand.now())
        self._loop.arrive(sent.request(self._hand.next_id()))
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


def worker_view(*, waiting: Jobs = (), running: Jobs = (), **more: Any) -> WorkerView:
    """What a policy sees of a worker with these requests; *more* as in `FakeWorker`.

    >>> view = worker_view(waiting=[50, 20], running=[(50, 30)], seconds=0.03)
    >>> [(task.id, task.left) for task in [*view.running, *view.waiting]]
    [(0, 30), (1, 50), (2, 20)]
    """
    worker = FakeWorker(_Nothing(), waiting=waiting, running=running, **more)
    worker.decide(now=0.0)  # takes them in
    return worker.view


def engine_view(*, waiting: Prompts = (), running: Prompts = (), **more: Any) -> TokenView:
    """What a policy sees of an engine with these requests; *more* as in `FakeEngine`.

    >>> view = engine_view(waiting=[100], running=[(200, 3)], blocks=100)
    >>> view.decoding, view.context, view.free_blocks
    (1, 202, 87)
    """
    engine = FakeEngine(_NoSteps(), waiting=waiting, running=running, **more)
    engine.decide(now=0.0)
    return engine.view


class _Nothing(Policy):
    def decide(self, view: WorkerView, now: float) -> Decision:
        return Decision()


class _NoSteps(TokenPolicy):
    def decide(self, view: TokenView, now: float) -> Step:
        return Step()


@watcher
class _Before:
    """Stands in for *inner*, which is asked nothing yet, and answers what it is told to."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.start, self.removed = inner.start, inner.removed
        self.ahead, self.pools = False, inner.pools
        self.chunks = True
        self.answer: Decision = Step() if isinstance(inner, TokenPolicy) else Decision()

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        answer = self.answer
        self.answer = Step() if isinstance(answer, Step) else Decision()
        return answer

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None: ...

    def hand_over(self, worker: Worker, hand: _Hand) -> None:
        """From here on *inner* is asked."""
        worker.policy = self.inner
        for task in worker.view.running:
            hand.turn_to(task.arrival, "running")
            if not self.inner.admit(task, worker.shown, hand.now()):
                raise BadInput(f"the policy does not admit {task}", where="running", right="requests that it takes")


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

    def turn_to(self, when: float, where: str) -> None:
        """Set the clock, before the test begins."""
        if when > 0.0:
            raise BadInput(
                f"a request comes at {when:g} s", where=where, right="0 or earlier; arrive(at=...) is later"
            )
        self._time = when

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
