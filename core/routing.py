"""Which of several workers of a stage a request goes to.

A router is asked once per request and stage, when the request arrives there, and only where there is a choice. It
sees what a real one could know: each worker's queues and its profile, never the future.

=================  ==============================================================================================
"round_robin"      one after the other
"least_loaded"     the one that should have worked off its queue first
"least_violating"  the one where the request does the least harm: the fewest seconds past deadlines, its own and
                   those of the requests there
=================  ==============================================================================================

Whatever the router, a request stays on the device that it was on if a worker there serves its next stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .errors import BadInput
from .loop import Router, Worker
from .request import Request, Task


def router(name: str) -> Router:
    """A new router of this name."""
    try:
        return Affine(ROUTERS[name]())
    except KeyError:
        raise BadInput(f"unknown router {name!r}", right=", ".join(ROUTERS)) from None


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

    def __init__(self) -> None:
        self.turns: dict[str, int] = {}

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        stage = workers[0].stage.name
        turn = self.turns.get(stage, 0)
        self.turns[stage] = turn + 1
        return workers[turn % len(workers)]


def least_loaded(request: Request, workers: Sequence[Worker], now: float) -> Worker:
    """The worker that should have worked off its queue, with this request in it, first."""
    return min(workers, key=lambda w: _seconds_per_iteration(w) * (_own_work(request, w) + _work(w)))


def least_violating(request: Request, workers: Sequence[Worker], now: float) -> Worker:
    """The worker where the fewest seconds past deadlines come about; of equals, the quickest."""
    return min(workers, key=lambda w: _harm(request, w, now))


def _tasks(worker: Worker) -> Iterator[Task]:
    yield from worker.view.running
    yield from worker.view.waiting
    yield from worker.inbox


def _work(worker: Worker) -> int:
    return sum(task.left for task in _tasks(worker))


def _own_work(request: Request, worker: Worker) -> int:
    return request.work.get(worker.stage.loop, 1) if worker.stage.loop else 1


def _iteration(worker: Worker, present: int) -> float:
    """Seconds of an iteration with *present* requests about; those that do not fit into a batch wait their turn."""
    view, stage = worker.view, worker.stage
    size = min(present, view.limit)
    modules = (stage.loop,) if stage.loop else stage.modules
    return sum(view.estimate(m, size) for m in modules) * present / size


def _seconds_per_iteration(worker: Worker) -> float:
    """Seconds of the worker's time that one request's iteration takes, sharing a batch with those about."""
    present = 1 + sum(1 for _ in _tasks(worker))
    return _iteration(worker, present) / present


def _harm(request: Request, worker: Worker, now: float) -> tuple[float, float]:
    """Seconds past deadlines if all at *worker* and *request* share it evenly; when *request* would end."""
    others = [(task.deadline, task.left, worker.view.solo(task)) for task in _tasks(worker)]
    present = len(others) + 1
    pace, alone = _iteration(worker, present), _iteration(worker, 1)
    arriving = Task(request, worker.stage, now)
    own = (request.deadline, arriving.left, worker.view.solo(arriving))
    late = 0.0
    end = now
    for deadline, left, solo in (*others, own):
        end = now + left * pace + max(0.0, solo - left * alone)
        late += max(0.0, end - deadline)
    return late, end


ROUTERS: dict[str, Callable[[], Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": lambda: least_loaded,
    "least_violating": lambda: least_violating,
}
