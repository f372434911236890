"""Views and tasks from literals, so that a policy can be asked without a simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

from servetwin.core import Batch, BatchWorker, Decision, Module, Pipeline, Policy, Request, Task, WorkerView

DIT = Pipeline.chain(Module("dit", loop=True), Module("vae"))
PLACED = [["dit"], ["vae"]]


class Desk:
    """A worker's view, and a policy to be asked at it.

    *tables* gives seconds by batch size (from 1) for each module; sizes beyond the end get the last value.
    """

    def __init__(
        self,
        policy: Policy,
        tables: Mapping[str, Sequence[float]],
        *,
        pipeline: Pipeline = DIT,
        placement: Sequence[Sequence[str]] = PLACED,
        at: str = "dit",
        limit: int = 20,
        slo_factor: float | None = 3.0,
    ) -> None:
        estimate: Callable[[str, int], float] = lambda m, n: tables[m][min(n, len(tables[m])) - 1]  # noqa: E731
        self.stage = next(s for s in pipeline.stages(placement) if at in s.modules)
        self.view = WorkerView(self.stage, estimate, limit=limit, slo_factor=slo_factor)
        self.policy = policy
        self.worker = BatchWorker(self.stage, policy, self.view)
        self._ids = count()
        policy.start(self.view)

    def request(self, *, arrival: float = 0.0, slo: float = 1e9, steps: int = 10) -> Task:
        """A request that reaches the worker, which takes it in if the policy admits it."""
        request = Request(next(self._ids), arrival, slo, {"dit": steps, "unet": steps})
        task = Task(request, self.stage, arrival, self.worker.place)
        if self.policy.admit(task, self.view, arrival):
            self.view.waiting[task] = None
        return task

    def admitted(self, **kwargs: float) -> bool:
        """Whether the policy admits such a request."""
        return self.request(**kwargs) in self.view.waiting  # type: ignore[arg-type]

    def decide(self, now: float) -> Decision:
        """Ask; what the policy drops or runs leaves the queues as the serving loop would have it."""
        decision = self.policy.decide(self.view, now)
        for task in decision.drop:
            self.view.waiting.pop(task, None)
            self.view.running.pop(task, None)
        for task in decision.run:
            self.view.waiting.pop(task, None)
            self.view.running[task] = None
        if decision.run:
            batch = Batch(1, self.worker.place, decision.run, whole=decision.whole)
            if self.view.in_flight is None:
                self.view.in_flight = batch
            else:  # decided ahead of what still runs
                self.view.backlog.append(batch)
        return decision

    def done(self, now: float, count: int = 1) -> None:
        """The batch that runs has ended, after *count* iterations on end."""
        batch = self.view.in_flight
        assert batch is not None
        batch.count = count
        for task in batch.tasks:
            task.left = 0 if batch.whole else task.left - count
            if not task.left:
                batch.leaves += 1
                del self.view.running[task]
        self.view.in_flight = self.view.backlog.popleft() if self.view.backlog else None
        self.policy.ended(batch, self.view, now)

    def lose(self) -> None:
        """What runs and what was decided behind it fails, and no end of it is heard."""
        for batch in (self.view.in_flight, *self.view.backlog):
            if batch is not None:
                for task in batch.tasks:
                    del self.view.running[task]
        self.view.in_flight = None
        self.view.backlog.clear()

    def rounds(self, *times: float) -> list[list[int]]:
        """The batches (request ids) of consecutive iterations that begin at *times*."""
        batches = []
        for now in times:
            batches.append([t.id for t in self.decide(now).run])
            self.done(now)
        return batches


def ids(tasks: Sequence[Task]) -> list[int]:
    return [t.id for t in tasks]
