"""Which of several workers of a stage a request goes to.

A router is asked once per request and stage, when the request arrives there, and only where there is a choice. It
sees what a real one could know: the queues on each device and its profile, never the future.

=================  ==============================================================================================
"round_robin"      one after the other
"least_loaded"     the one whose device should have worked off all that is there, and this request, first
"least_violating"  the one where the request does the least harm: the fewest seconds past deadlines, its own and
                   those of the requests on the device
=================  ==============================================================================================

Requests on their way to a worker count as much as those in its queue, so a burst sees no stale loads. Where several
workers are equally good they take turns.

Whatever the router, a request stays on the device that it was on if a worker there serves its next stage; so the two
that weigh devices count what all workers of a device have to do, later stages included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from .errors import BadInput, LawBroken
from .loop import Router
from .pool import Pool
from .request import Request
from .token_worker import TokenWorker
from .worker import Worker


def router(name: str, workers: Sequence[Worker], stages: Mapping[str, str] | None = None) -> Router:
    """A new router of this name, for a system of *workers*; *stages* names others, for single stages."""
    try:
        usual = Affine(ROUTERS[name](workers))
        others = {stage: Affine(ROUTERS[other](workers)) for stage, other in (stages or {}).items()}
    except KeyError as error:
        raise BadInput(f"unknown router {error.args[0]!r}", right=", ".join(ROUTERS)) from None
    return ByStage(usual, others) if others else usual


class ByStage:
    """Asks another router for some stages."""

    def __init__(self, usual: Router, others: Mapping[str, Router]) -> None:
        self.usual = usual
        self.others = others

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        return self.others.get(workers[0].stage.name, self.usual)(request, workers, now)


class Affine:
    """Keeps a request on its device where that serves the next stage; asks *choose* about the rest."""

    def __init__(self, choose: Router) -> None:
        self.choose = choose

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        if request.tasks:
            last = request.tasks[-1].worker
            here = [w for w in workers if last is not None and w.device == last.device]
            if len(here) == 1:
                return here[0]
            workers = here or workers
        return self.choose(request, workers, now)


class RoundRobin:
    """One worker after the other, for each stage by itself."""

    def __init__(self, workers: Sequence[Worker] = ()) -> None:
        self.turns: dict[str, int] = {}

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        stage = workers[0].stage.name
        turn = self.turns.get(stage, 0)
        self.turns[stage] = turn + 1
        return workers[turn % len(workers)]


#: Weights that differ by less than this share are equal: the same jobs in another order may sum up to another last
#: bit.
TIE = 1e-9


class _Weighing:
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
        raise LawBroken(f"the router cannot weigh the workers of {stage}: {weights}")

    def weight(self, request: Request, worker: Worker, now: float) -> tuple[float, ...]:
        """What speaks against *worker*, what counts most first."""
        raise NotImplementedError

    def jobs(self, request: Request, worker: Worker, now: float) -> Iterator[tuple[float, float]]:
        """(seconds alone, deadline) of each request on the worker's device, and of *request* if it went there."""
        for other in self.on[worker.device]:
            view = other.view
            for tasks in (view.running, view.waiting, other.inbox, other.coming):
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


class LeastLoaded(_Weighing):
    """The worker whose device should be done first."""

    def weight(self, request: Request, worker: Worker, now: float) -> tuple[float, ...]:
        alone = [seconds for seconds, _ in self.jobs(request, worker, now)]
        return (sum(alone) * self.stretch(worker, len(alone)) / len(alone),)


class LeastViolating(_Weighing):
    """The worker where the fewest seconds past deadlines come about; of equals, the one that ends *request* first."""

    def weight(self, request: Request, worker: Worker, now: float) -> tuple[float, ...]:
        jobs = list(self.jobs(request, worker, now))
        stretch = self.stretch(worker, len(jobs))
        late = sum(max(0.0, now + seconds * stretch - deadline) for seconds, deadline in jobs)
        return late, jobs[-1][0] * stretch


ROUTERS: dict[str, Callable[[Sequence[Worker]], Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "least_violating": LeastViolating,
}
