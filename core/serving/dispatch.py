"""Asks routers for a serving loop, and keeps the requests that wait centrally.

Whatever the router, a request stays on the device that it was on if a worker there serves its next stage. A request
of a central queue is bound when a worker of its stage has room, and sent there then: no worker has room while
requests wait centrally that it could serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from ..errors import BadInput
from ..isolation.answers import fault
from ..isolation.integrity import comes_along
from ..isolation.read_only import opaque
from ..pipeline import Stage
from ..request import Request, Task
from ..routing import Counts, Job, Router, WorkerState
from .worker import Worker


class Bound(Protocol):
    """The loop, as far as it is told which worker a request goes to."""

    now: Callable[[], float]

    def forward(
        self, request: Request, stage: Stage, before: Task | None, jump: bool = False, target: Worker | None = None
    ) -> None: ...


def counts_of(worker: Worker) -> Counts:
    """How many requests are at *worker* now."""
    view = worker.view
    on_wire = sum([task.request.outcome is None for task in worker.coming]) if worker.coming else 0
    return Counts(len(view.waiting) + len(worker.inbox), on_wire, len(view.running), worker.kv_use)


def present_of(worker: Worker) -> Callable[[], int]:
    """What tells how many requests are at *worker* now, in whichever state: it is asked of every worker, for every
    request."""
    view, coming = worker.view, worker.coming

    def present() -> int:
        many = len(view.waiting) + len(worker.inbox) + len(view.running)
        return many + sum([task.request.outcome is None for task in coming]) if coming else many

    return present


def jobs_of(worker: Worker) -> tuple[Job, ...]:
    """The requests at *worker* now. Of a batch that runs many iterations as one event, those that are over count."""
    return (*_jobs(worker),)


def left_of(worker: Worker) -> list[float]:
    """The seconds that each of `jobs_of` takes."""
    left = worker.seconds_left()
    return [job.seconds for job in _jobs(worker)] if left is None else left


def _jobs(worker: Worker) -> Iterator[Job]:
    view = worker.view
    batch = view.in_flight
    over = batch.over(worker.loop.now()) if batch is not None else 0
    for task in view.running:
        if task.request.outcome is None:
            yield Job(view.solo(task, over if over and task.runs_in(batch) else 0), task.deadline)
    for tasks in (view.waiting, worker.inbox, worker.coming):
        for task in tasks:
            if task.request.outcome is None:
                yield Job(view.solo(task), task.deadline)


def finds_of(worker: Worker) -> Callable[[Request], int]:
    """What tells how much of a prompt the prefix cache of *worker* holds now."""
    return worker.finds()


class Seen(NamedTuple):
    """How things stood at a worker."""

    counts: Counts
    jobs: tuple[Job, ...]
    finds: Callable[[Request], int]


def _unwatched(changed: set[WorkerState], timed: bool) -> None:
    raise BadInput("changes at workers are told to routers only", right="watch called in a router's start")


def state_of(
    worker: Worker,
    counts: Callable[[Worker], Counts] = counts_of,
    jobs: Callable[[Worker], Sequence[Job]] = jobs_of,
    finds: Callable[[Worker], Callable[[Request], int]] = finds_of,
    watch: Callable[[set[WorkerState], bool], None] = _unwatched,
    alike: Callable[[], int] | None = None,
) -> WorkerState:
    """What may be seen of *worker*: its state as *counts*, *jobs* and *finds* tell it; *watch* and *alike* as in
    `WorkerState`."""
    left = (lambda: left_of(worker)) if jobs is jobs_of else lambda: [job.seconds for job in jobs(worker)]
    here = present_of(worker) if counts is counts_of else lambda: sum(counts(worker)[:3])
    return WorkerState(
        name=worker.name,
        device=worker.device,
        stage=worker.stage,
        kind=worker.kind,
        limit=worker.most,
        alone=opaque(lambda request: worker.seconds_alone(request, worker.loop.now())),
        estimate=opaque(worker.view.estimate),
        counts=opaque(lambda: counts(worker)),
        here=opaque(here),
        jobs=opaque(lambda: jobs(worker)),
        left=opaque(left),
        found=opaque(lambda request: finds(worker)(request)),
        watch=opaque(watch),
        alike=opaque(alike or (lambda: worker.place[0])),
    )


def _seen(worker: Worker) -> Seen:
    return Seen(counts_of(worker), jobs_of(worker), worker.finds(kept=True))


class Changes:
    """Puts those of *workers* that may have changed since a router last asked into the sets that it gave.

    What a router sees of a worker changes where a request is sent to it, reaches it or is taken away, and when a
    batch begins or ends. At engines of language models that decide a step when the last one is over all of these are
    noted. At other workers nobody notes them, so that they count as changed each time. If no router wants to be told,
    nothing is noted.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._watching: list[tuple[set[WorkerState], Mapping[Worker, WorkerState], bool]] = []
        self._unsettled: dict[Worker, None] = dict.fromkeys(workers)
        self._moving: dict[Worker, None] = {}  # those in several steps on end: what is left of each goes by the time
        self._noting = self._timed = False

    def watch(self, changed: set[WorkerState], states: Mapping[Worker, WorkerState], timed: bool) -> None:
        """From now on, put those of *states* into *changed* whose workers may have changed; with *timed*, also where
        what is left of requests has become less by time alone."""
        if not any(changed is one for one, _, _ in self._watching):
            self._watching.append((changed, states, timed))
        self._timed |= timed

    def tell(self) -> None:
        """A router is about to be asked."""
        if not self._watching:
            return
        if not self._noting:
            self._noting = True
            for worker in self._workers:
                self._note(worker)
        unsettled, moving = self._unsettled, self._moving
        for changed, states, timed in self._watching:
            changed.update([states[worker] for worker in unsettled])
            if timed and moving:
                changed.update([states[worker] for worker in moving])
        if self._timed:
            for worker in unsettled:
                batch = worker.view.in_flight
                if batch is not None and batch.count > 1:
                    moving[worker] = None
                else:
                    moving.pop(worker, None)
        for worker in [worker for worker in unsettled if not (worker.coming or worker.unsettled)]:
            del unsettled[worker]

    def sent(self, worker: Worker) -> None:
        """A request is sent to *worker*."""
        self._unsettled[worker] = None

    def _note(self, worker: Worker) -> None:
        """Hear of all that happens at *worker*."""
        unsettled = self._unsettled

        def noting(happens: Callable[..., Any]) -> Callable[..., Any]:
            def noted(*given: Any, **named: Any) -> Any:
                unsettled[worker] = None
                return happens(*given, **named)

            return noted

        worker.note_changes(noting)


class Dispatcher:
    """Asks *usual*, or the router of its own that a stage has in *others*, about requests to the stages that several
    of *workers* serve. What a router sees is up to *stale* seconds old, by router: taken when a request comes and
    what is known is older than that. *seed* is the experiment's."""

    def __init__(
        self,
        workers: Sequence[Worker],
        usual: Router,
        others: Mapping[str, Router] | None = None,
        *,
        stale: Mapping[Router, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.usual, self.others = usual, dict(others or {})
        self.routers = list(dict.fromkeys((usual, *self.others.values())))
        self._stale = dict(stale or {})
        self._workers = list(workers)
        self._seen: dict[Router, tuple[float, dict[Worker, Seen]]] = {}
        self._changes = Changes(self._workers)
        self._relook: dict[Router, list[set[WorkerState]]] = {}  # of those that see stale states, the sets they gave
        self._numbers: list[int] = []  # by worker, the place of the first that is alike
        self._offered: tuple[list[Worker], Router | None, tuple[WorkerState, ...]] = [], None, ()
        self._states = {router: self._states_for(router) for router in self.routers}
        self._worker_of = {id(state): worker for states in self._states.values() for worker, state in states.items()}
        self._waiting: dict[str, dict[Request, tuple[Stage, Task | None]]] = {}  # by stage, who waits centrally
        self._serving: dict[str, Sequence[Worker]] = {}
        self._binding = False
        for router in self.routers:
            router.start(list(self._states[router].values()), seed)

    @property
    def could_write(self) -> bool:
        """Whether the code of a router could write what it may only read: of one that does not come along, any."""
        return not all(comes_along(type(router)) for router in self.routers)

    def attach(self, loop: Bound) -> None:
        """Work for *loop*."""
        self._loop = loop

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker | None:
        """The one of *workers* that *request* goes to, or None: it waits centrally (`hold`)."""
        if request.tasks:
            last = request.tasks[-1].worker
            here = [w for w in workers if last is not None and w.device == last.device]
            if len(here) == 1:
                return here[0]
            workers = here or workers
        router = self.others.get(workers[0].stage.name, self.usual)
        self._look(router, now)
        before, asked, offered = self._offered
        if router is not asked or workers != before:
            states = self._states[router]
            offered = tuple([states[worker] for worker in workers])
            self._offered = list(workers), router, offered
        self._changes.tell()
        chosen = router.route(request, offered, now)
        if chosen is None:
            return None
        if type(chosen) is not WorkerState or chosen not in offered:
            right = "one of the workers that it is given, or None"
            raise fault(router, f"it routes {request!r} to {chosen!r}", right, "route")
        return self._worker_of[id(chosen)]

    def sent(self, worker: Worker) -> None:
        """A request is sent to *worker*."""
        self._changes.sent(worker)

    def hold(self, request: Request, stage: Stage, before: Task | None, workers: Sequence[Worker]) -> None:
        """*request*, whose visit *before* is over, waits centrally for one of *workers*."""
        if request.outcome is not None:
            return  # another branch of it was dropped
        self._serving[stage.name] = workers
        self._waiting.setdefault(stage.name, {})[request] = stage, before
        self.freed(stage)

    def freed(self, stage: Stage) -> None:
        """A worker of *stage* may have room: bind who waits centrally, as far as there is."""
        waiting = self._waiting.get(stage.name)
        if not waiting or self._binding:
            return
        self._binding = True  # binding may end requests, and so come here again
        try:
            while waiting and self._bind_one(stage, waiting):
                pass
        finally:
            self._binding = False

    def waiting(self, stage: Stage) -> int:
        """How many requests wait centrally for *stage*."""
        return len(self._waiting.get(stage.name, ()))

    def held(self, stage: Stage) -> list[Request]:
        """Who waits centrally for *stage*."""
        return list(self._waiting.get(stage.name, ()))

    def forget(self, request: Request) -> None:
        """*request* has ended."""
        for waiting in self._waiting.values():
            waiting.pop(request, None)

    def _bind_one(self, stage: Stage, waiting: dict[Request, tuple[Stage, Task | None]]) -> bool:
        router = self.others.get(stage.name, self.usual)
        now, states = self._loop.now(), self._states[router]
        free = [states[worker] for worker in self._serving[stage.name] if self._has_room(router, worker)]
        if not free:
            return False
        queue = list(waiting)
        answer = router.bind(queue, free, now)
        if answer is None:
            return False
        request, state = self._checked(router, answer, waiting, free)
        _, before = waiting.pop(request)
        self._loop.forward(request, stage, before, target=self._worker_of[id(state)])
        return True

    def _has_room(self, router: Router, worker: Worker) -> bool:
        counts = counts_of(worker)
        depth = worker.most if router.depth is None else router.depth
        return counts.waiting + counts.on_wire + counts.running < depth

    def _checked(
        self, router: Router, answer: object, waiting: Mapping[Request, object], free: Sequence[WorkerState]
    ) -> tuple[Request, WorkerState]:
        right = "a request of its queue and a worker that is given, or None"
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise fault(router, f"it binds {answer!r}", right, "bind")
        request, state = answer
        if not isinstance(request, Request) or request not in waiting:
            raise fault(router, f"it binds {request!r}, which does not wait centrally", right, "bind")
        if not any(state is one for one in free):
            raise fault(router, f"it binds {request!r} to {state!r}, which has no room", right, "bind")
        return request, state

    def _look(self, router: Router, now: float) -> None:
        """Let *router* see how things stand, if what it knows is too old."""
        stale = self._stale.get(router, 0.0)
        if stale and (router not in self._seen or now - self._seen[router][0] >= stale):
            self._seen[router] = now, {worker: _seen(worker) for worker in self._workers}
            for changed in self._relook.get(router, ()):
                changed.update(self._states[router].values())

    def _alike(self, place: int) -> int:
        """The place of the first worker that takes the same for the same as the one at *place*."""
        if not self._numbers:
            first: dict[object, int] = {}
            self._numbers = [first.setdefault(worker.alike(), i) for i, worker in enumerate(self._workers)]
        return self._numbers[place]

    def _states_for(self, router: Router) -> dict[Worker, WorkerState]:
        found: dict[Worker, WorkerState] = {}
        stale = self._stale.get(router)

        def seen(worker: Worker) -> Seen:
            if router not in self._seen:  # nothing has come yet
                return _seen(worker)
            return self._seen[router][1][worker]

        def watch(changed: set[WorkerState], timed: bool) -> None:
            if not stale:
                self._changes.watch(changed, found, timed)
            elif not any(changed is one for one in self._relook.setdefault(router, [])):
                self._relook[router].append(changed)

        told = (lambda w: seen(w).counts, lambda w: seen(w).jobs, lambda w: seen(w).finds)
        for place, worker in enumerate(self._workers):
            counts, jobs, finds = told if stale else (counts_of, jobs_of, finds_of)
            found[worker] = state_of(worker, counts, jobs, finds, watch, partial(self._alike, place))
        return found
