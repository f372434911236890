"""Which of several workers of a stage a request goes to: what a router sees and says.

A `Router` is asked once per request and stage, and only where there is a choice. It names a worker when the request
arrives, or leaves the request in the stage's central queue until a worker has room (late binding). Routers that come
along are in `servetwin.policies.routing`; `servetwin.core.serving.dispatch` asks them, in simulation and on real
backends alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from .pipeline import Stage
from .request import Request

T = TypeVar("T")


class Counts(NamedTuple):
    """How many requests are at a worker: *waiting* in its queue, *on_wire* (sent to it and not there yet), *running*;
    *kv_use* is the share of its KV blocks that are taken, from 0 to 1 (0 if it is no engine)."""

    waiting: int
    on_wire: int
    running: int
    kv_use: float


class Job(NamedTuple):
    """A request at a worker: the *seconds* that it still takes alone, here and later, and its *deadline*."""

    seconds: float
    deadline: float


class WorkerState:
    """What a router may see of a worker, and a policy of its peers. It can only be read, and leads nowhere.

    *kind* is "batch" (one batch in flight), "engine" (of a language model), "group" (of devices) or "pool" (of
    threads), *limit* the most requests that run at once (of a group: on a single device each). ``alone(request)``
    gives the seconds that a request would take here and later if it were served alone (of a group: on one device),
    ``estimate(module, batch)`` those that the profile says a batch takes (of an engine: a decode step).
    ``found(request)`` gives the tokens of its prompt that the engine's prefix cache holds, 0 without a cache. With a
    `Router` that sees stale states, counts, jobs and what caches hold are up to that old.
    """

    __slots__ = (
        *("alike", "alone", "counts", "device", "estimate", "found", "here", "jobs", "kind", "left", "limit", "name"),
        *("stage", "watch"),
    )

    name: str
    device: str
    stage: Stage
    kind: Literal["batch", "engine", "group", "pool"]
    limit: int
    alone: Callable[[Request], float]
    estimate: Callable[[str, int], float]
    counts: Callable[[], Counts]
    found: Callable[[Request], int]
    #: How many requests are here, or on the wire: `present`, and quicker than the `counts`.
    here: Callable[[], int]
    #: Those that run, wait, and are on the wire, in that order.
    jobs: Callable[[], Sequence[Job]]
    #: The seconds of the `jobs` alone, which is quicker.
    left: Callable[[], Sequence[float]]
    #: A number; `alone` and `estimate` say the same of workers with the same.
    alike: Callable[[], int]
    #: Of a router, from its `start` on: ``watch(changed, timed)`` puts this state into the set *changed* before the
    #: router is asked, whenever what it tells may have changed since; with *timed*, also where what is left of `jobs`
    #: has become less by time alone. `Kept` looks after that.
    watch: Callable[[set[WorkerState], bool], None]

    def __init__(self, **said: Any) -> None:
        for name in WorkerState.__slots__:
            object.__setattr__(self, name, said[name])

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        return self.counts().waiting

    @property
    def on_wire(self) -> int:
        """Requests that were sent to it and are not there yet."""
        return self.counts().on_wire

    @property
    def running(self) -> int:
        """Requests that have begun here and are not done."""
        return self.counts().running

    @property
    def kv_use(self) -> float:
        """The share of its KV blocks that are taken, from 0 to 1; 0 if it is no engine."""
        return self.counts().kv_use

    @property
    def queue(self) -> int:
        """Requests that have not begun here: waiting, or on the wire."""
        counts = self.counts()
        return counts.waiting + counts.on_wire

    @property
    def present(self) -> int:
        """All requests that are here, or on the wire."""
        return self.here()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of a worker is not a router's to set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} of a worker is not a router's to delete")

    def __repr__(self) -> str:
        return f"<WorkerState of {self.name} on {self.device}>"


class Kept(Generic[T]):
    """What *ask* says of each of *workers*, asked anew only of those at which something may have changed since.

    Made in `Router.start`, for routers that look at all workers for each request: of 64 engines hardly more than two
    have changed since the request before. *ask* goes by what the worker alone tells, and not by the time. If it asks
    for `WorkerState.jobs` or `left`, *timed* must be true.
    """

    def __init__(
        self, workers: Sequence[WorkerState], ask: Callable[[WorkerState], T], *, timed: bool = False
    ) -> None:
        self._ask = ask
        self._changed: set[WorkerState] = set()
        self._workers: Sequence[WorkerState] = ()
        self._values: list[T] = []
        self._places: dict[WorkerState, int] = {}
        for worker in workers:
            worker.watch(self._changed, timed)

    def of(self, workers: Sequence[WorkerState]) -> Sequence[T]:
        """What there is to say of *workers*, some of those that it was made for, in their order. Not to be changed,
        nor to be kept beyond the call."""
        changed, values = self._changed, self._values
        if workers is not self._workers:
            self._workers = workers
            self._places = {worker: place for place, worker in enumerate(workers)}
            self._values = values = [self._ask(worker) for worker in workers]
        elif changed:
            places, ask = self._places, self._ask
            for worker in changed:
                place = places.get(worker)
                if place is not None:
                    values[place] = ask(worker)
        changed.clear()
        return values


class Router:
    """Chooses among the workers of a stage. One object serves one system; its parameters come by keyword.

    A subclass gives `route`; or leaves it, for a central queue, and may give `bind`. It has no clock and no files of
    its own, and what it draws at random comes from the seed that `start` is given.
    """

    #: What it is called in messages.
    CALLED = "router"
    #: Whether it draws at random, from the seed that `start` is given: runs with other seeds then differ.
    draws = False
    #: Whether it goes by requests and their order alone, and never asks how things stand at workers: what waits and
    #: runs there, jobs, caches. Replicas of engines behind it are simulated one by one, which is quicker.
    static = False
    #: Of a router with a central queue: how many requests a worker may have and still has room for one more; None:
    #: as many as may run there at once.
    depth: int | None = None

    def start(self, workers: Sequence[WorkerState], seed: int) -> None:
        """Look at all workers of the system once, before anything arrives. *seed* is the experiment's."""

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState | None:
        """The one of *workers*, which all serve the same stage, that *request* goes to; None: it waits in the stage's
        central queue."""
        return None

    def bind(
        self, queue: Sequence[Request], workers: Sequence[WorkerState], now: float
    ) -> tuple[Request, WorkerState] | None:
        """Which request of the central *queue* goes to which of *workers*, those that have room; asked again until
        either is empty, or the answer is None. By default who has waited longest goes where the fewest are, those
        with equally many by turns."""
        turn, many = self._turns(), len(workers)
        place = min(range(many), key=lambda i: (workers[i].present, (i - turn) % many))
        return queue[0], workers[place]

    def _turns(self) -> int:
        turn: int = getattr(self, "_turn", -1) + 1
        self._turn = turn
        return turn


def first_worker(request: Request, workers: Sequence[Any], now: float) -> Any:
    """The router of a system without replicas."""
    return workers[0]
