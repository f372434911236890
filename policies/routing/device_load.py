"""What a device has to do, as the routers that weigh devices count it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from servetwin.core import Batch, InvariantBroken, Request, Task, Worker
from servetwin.core.llm import TokenTask
from servetwin.core.llm.worker import TokenWorker
from servetwin.core.pool import Pool

#: Weights that differ by less than this share are equal: the same jobs in another order may sum up to another last
#: bit.
TIE = 1e-9


def _runs(task: Task, batch: Batch | None) -> bool:
    """Whether *task* runs in *batch*, which has run several times on end."""
    return task.decoding if isinstance(task, TokenTask) else batch is not None and task in batch.tasks


class DeviceLoad:
    """Goes by what a device has to do: the worker with the least weight; those that weigh the same take turns."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.on: dict[str, list[Worker]] = {}
        for worker in workers:
            self.on.setdefault(worker.device, []).append(worker)
        self.next: dict[str, int] = {}  # by stage, the place of the worker whose turn it is among equals

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        weights = [self.weight(request, worker, now) for worker in workers]
        least = min(weights)
        stage, many = workers[0].stage.name, len(workers)
        first = self.next.get(stage, 0)
        for place in range(first, first + many):
            if all(math.isclose(a, b, rel_tol=TIE) for a, b in zip(weights[place % many], least, strict=True)):
                self.next[stage] = (place + 1) % many
                return workers[place % many]
        raise InvariantBroken(f"the router cannot weigh the workers of {stage}: {weights}")

    def weight(self, request: Request, worker: Worker, now: float) -> tuple[float, ...]:
        """What speaks against *worker*, what counts most first."""
        raise NotImplementedError

    def jobs(self, request: Request, worker: Worker, now: float) -> Iterator[tuple[float, float]]:
        """(seconds alone, deadline) of each request on the worker's device, and of *request* if it went there."""
        for other in self.on[worker.device]:
            view = other.view
            # Of a batch that runs many iterations as one event, those that are over count, as if each were told of.
            batch = view.in_flight
            over = batch.count - 1 if batch is not None else 0
            for task in view.running:
                if task.request.outcome is None:
                    yield view.solo(task, over if over and _runs(task, batch) else 0), task.deadline
            for tasks in (view.waiting, other.inbox, other.coming):
                for task in tasks:
                    if task.request.outcome is None:
                        yield view.solo(task), task.deadline
        yield worker.seconds_alone(request, now), request.deadline

    def stretch(self, worker: Worker, present: int) -> float:
        """How much longer a request takes than alone while *present* share the device; they are batched as far as the
        limit of its first loop (or of *worker*, if it has none) allows."""
        main = next((w for w in self.on[worker.device] if w.stage.loop), worker)
        if isinstance(main, Pool):
            return max(1.0, present / main.threads)
        if isinstance(main, TokenWorker):
            return float(present)  # an LLM's step hardly depends on its batch: what counts is all there is to do
        view, stage = main.view, main.stage
        size = min(present, view.limit)
        modules = (stage.loop,) if stage.loop else stage.modules
        together, alone = (sum(view.estimate(m, n) for m in modules) for n in (size, 1))
        return together / alone * present / size
