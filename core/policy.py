"""What a policy sees and says.

A policy is handed a `WorkerView` and answers with a `Decision`. It has no clock, no device, no randomness and
no way to look into the future; so the same object decides in a simulation and on a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from .arithmetic import float_sum
from .pipeline import Stage
from .request import ActingTask, Place, Shape, Task
from .routing import WorkerState


class Repeat:
    """A policy's promise that it would decide the same again: a simulator may then take many iterations as one event.

    The decision stands for *times* iterations in all, as long as no request arrives, ends or changes and, after *j*
    of them, the time is below ``limit + j * drift`` and none has taken more than *longest* seconds (as
    `TokenView.last_step` tells it; for workers that are no engines of language models such a decision stands for one
    iteration). It is a permission: whoever runs the batch may stop after any
    iteration and ask again, and must get the same answer as if it had asked after each.
    """

    __slots__ = ("drift", "limit", "longest", "times")

    def __init__(
        self, times: int, limit: float = float("inf"), drift: float = 0.0, longest: float = float("inf")
    ) -> None:
        self.times, self.limit, self.drift, self.longest = times, limit, drift, longest


class Decision:
    """What a worker is to do next.

    *run* is the batch, in order; each of its tasks runs one iteration, or with *whole* all that it has left at
    this stage without re-forming the batch. *drop* gives tasks up for good. With nothing to run the worker
    idles until something arrives, or until *idle_until* at the latest (seconds since the run began).

    Where the stage says what may be done with steps (`Stage.actions`): *steps* gives those of *run* that begin with
    it fewer steps than they ask for, and those of *run* that are in *reuse* take the network's last prediction again
    instead of running it. At a group of devices (`WorkerView.group`) *devices* are the numbers of those on which the
    batch runs.
    """

    __slots__ = ("devices", "drop", "idle_until", "repeat", "reuse", "run", "steps", "whole")

    def __init__(
        self,
        run: Sequence[Task] = (),
        drop: Sequence[Task] = (),  # given by place it costs half as much as by name
        repeat: Repeat | None = None,
        whole: bool = False,
        idle_until: float | None = None,
        *,
        steps: Mapping[Task, int] | None = None,
        reuse: Sequence[Task] = (),
        devices: Sequence[int] = (),
    ) -> None:
        self.run = run
        self.drop = drop
        self.repeat = repeat
        self.whole = whole
        self.idle_until = idle_until
        self.steps = steps
        self.reuse = reuse
        self.devices = devices

    def __repr__(self) -> str:
        ids = [t.id for t in self.run]
        return f"<Decision run={ids}{' whole' if self.whole else ''} drop={[t.id for t in self.drop]}>"


class Batch:
    """What a worker runs in one go.

    *iterations* is how many iterations each task runs before the batch may be re-formed: 1, or with *whole* the
    most that any of its tasks has left. *joiners* are the tasks that begin their stage with it, *leaves* counts
    those that end it. An executor may run the decision up to *times* times on end, within what *repeat* says; it
    sets *count* to how often it did and, where *keep_ends* is set, *ends* to the times at which those iterations
    ended. The first task to end its stage does so with iteration *last*; an executor that comes so far sets *leaves*.
    *reused* are the tasks for which the network does not run: they take its last prediction again. At a group of
    devices *devices* are those that it runs on, and *changed* says whether a task of it ran on others before.
    """

    joiners: Sequence[Task] = ()
    reused: Sequence[Task] = ()
    leaves = 0
    last = 1
    ends: list[float] | None = None
    keep_ends = False
    start = end = 0.0
    thread = -1  # of a pool of threads: the one that runs it
    devices: tuple[int, ...] = ()
    changed = False
    lost = False  # it was cut off at its end by a fault: *count* iterations were over

    tasks: Sequence[Task]

    def __init__(
        self,
        id: int,  # noqa: A002
        worker: Place,
        tasks: Sequence[Task],
        whole: bool = False,
        repeat: Repeat | None = None,
    ) -> None:
        self.id = id
        self.worker = worker
        self.tasks = tasks
        self.size = len(tasks)
        self.whole = whole
        self.repeat = repeat
        # What each batch is asked for at once is set: looking for what is not there, on the way to a default of the
        # class, costs more.
        self.joiners = ()
        self.iterations = self.times = self.count = 1
        self.leaves = 0
        self.ends = None

    def over(self, now: float) -> int:
        """How many of its iterations are over *now*, while it is in flight."""
        return self.count - 1

    def computing(self, until: float) -> list[tuple[int, float, float]]:
        """(device of its worker, from when, to when), up to *until*: where and when it computes."""
        return [(device, self.start, until) for device in self.devices or (0,)]

    def details(self) -> dict[str, Any]:
        """What a record of it says beside what is said of each."""
        said: dict[str, Any] = {"reused": [task.id for task in self.reused]} if self.reused else {}
        return {**said, "devices": [*self.devices]} if self.devices else said

    def __repr__(self) -> str:
        return f"<Batch {self.id} of {self.size} on {self.worker.name}>"


#: Seconds of a module for a batch of that size on so many devices, of requests of that shape.
ByDegree = Callable[[str, int, int, Shape | None], float]


def _nowhere(task: Task) -> tuple[int, ...]:
    return ()


class DeviceGroup:
    """Devices 0 to *size* - 1. A batch runs on any of them that are free, if their number is one of *degrees*.

    *change* is what a step takes longer, in seconds, before which one of its requests changes devices; None if that
    is not known, and none may. *devices_of* gives those on which a task ran last, or runs (none before its first
    batch). *shapes* are those that requests have here; none if they have no shapes. Policies can only read it.
    """

    __slots__ = ("_busy", "_estimate", "_free", "change", "degrees", "devices_of", "shapes", "size")

    size: int
    degrees: tuple[int, ...]
    change: float | None
    devices_of: Callable[[Task], tuple[int, ...]]
    shapes: tuple[Shape, ...]
    _free: Callable[[], tuple[int, ...]]
    _busy: Callable[[Task], bool]
    _estimate: ByDegree

    def __init__(
        self,
        degrees: tuple[int, ...],
        estimate: ByDegree,
        free: Callable[[], tuple[int, ...]],
        *,
        size: int,
        busy: Callable[[Task], bool],
        devices_of: Callable[[Task], tuple[int, ...]] = _nowhere,
        change: float | None = None,
        shapes: tuple[Shape, ...] = (),
    ) -> None:
        said = {"_estimate": estimate, "_free": free, "_busy": busy, "devices_of": devices_of}
        for name, value in (said | {"change": change, "degrees": degrees, "size": size, "shapes": shapes}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def of_one(cls, view: WorkerView) -> DeviceGroup:
        """That of a worker with a single device, which *view* shows."""

        def free() -> tuple[int, ...]:
            return (0,) if view.in_flight is None else ()

        def busy(task: Task) -> bool:
            return view.in_flight is not None and task in view.in_flight.tasks

        def estimate(module: str, batch: int, degree: int, shape: Shape | None) -> float:
            return view.estimate(module, batch, shape)

        return cls((1,), estimate, free, size=1, busy=busy)

    @property
    def free(self) -> tuple[int, ...]:
        """The numbers of the devices on which nothing runs, in ascending order."""
        return self._free()

    def busy(self, task: Task) -> bool:
        """Whether *task* is in a batch now."""
        return self._busy(task)

    def estimate(self, module: str, batch: int, degree: int, shape: Shape | None = None) -> float:
        """Seconds that *module* takes on *degree* devices for a batch of that size (one iteration of a loop), by the
        scheduler's profile; of requests of that *shape*, where requests have shapes."""
        return self._estimate(module, batch, degree, shape)

    def shown(self, seal: Callable[..., Any]) -> DeviceGroup:
        """A copy whose functions were *seal*-ed."""
        kept = 1 << 14
        return DeviceGroup(
            self.degrees,
            seal(self._estimate, kept),
            seal(self._free),
            size=self.size,
            busy=seal(self._busy),
            devices_of=seal(self.devices_of),
            change=self.change,
            shapes=self.shapes,
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"view.group.{name} is not the policy's to set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"view.group.{name} is not the policy's to delete")


class WorkerView:
    """What a policy may see of the worker that it decides for.

    *waiting* and *running* hold the tasks that the worker has admitted, in order of admission: those that have not
    begun this stage, and those that have and are not done. They are the loop's own queues, to be read in place.
    *in_flight* and *backlog* tell what the worker computes now and what was decided ahead of that. *limit* is the
    largest batch that worker and device allow. *slo_factor* is the experiment's, where its SLO has one. *peers* are
    all workers of the system, this one included, as a router sees them (`servetwin.core.routing.WorkerState`); none
    if it is the only one. What they say changes at any time: a `Repeat` must not rest on it.

    The loop and its policy have views of their own on the same; the policy's can only be read
    (`servetwin.core.isolation.read_only`).
    """

    __slots__ = (
        "_alone",
        "_estimate",
        "_group",
        "backlog",
        "in_flight",
        "limit",
        "name",
        "peers",
        "running",
        "slo_factor",
        "stage",
        "waiting",
    )

    def __init__(
        self,
        stage: Stage,
        estimate: Callable[[str, int], float],
        *,
        limit: int,
        name: str = "",
        slo_factor: float | None = None,
    ) -> None:
        self.name = name or stage.name
        self.stage = stage
        self.limit = limit
        self.slo_factor = slo_factor
        self.waiting: dict[Task, None] = {}
        self.running: dict[Task, None] = {}
        self.in_flight: Batch | None = None
        self.backlog: deque[Batch] = deque()
        self._estimate = estimate
        self._alone: dict[str, float] = {}  # module -> seconds at batch 1, once `solo` has been asked
        self.peers: Sequence[WorkerState] = ()
        self._group: DeviceGroup | None = None

    @property
    def group(self) -> DeviceGroup:
        """The devices that it may share out among batches (a single one, unless the deployment says otherwise)."""
        return self._group or DeviceGroup.of_one(self)

    def form(self, group: DeviceGroup) -> None:
        """Let it serve that *group*."""
        self._group = group

    def estimate(self, module: str, batch: int, shape: Shape | None = None) -> float:
        """Seconds that *module* takes for a batch of that size (one iteration of a loop), by the scheduler's profile;
        of requests of that *shape*, where requests have shapes.

        Raises `BadInput` if the profile does not reach that far.
        """
        return self._estimate(module, batch)

    def limit_of(self, shape: Shape | None) -> int:
        """The largest batch of requests of that *shape* that worker, device and profile allow."""
        return self.limit

    def solo(self, task: Task, done: int = 0) -> float:
        """Seconds of compute that *task* still wants if it is served alone: here, and at every stage after this.

        *done* is how many more iterations are over than it says yet: a simulator may take many as one event (see
        `Repeat`), and counts *left* down when that is over.
        """
        stage, work, alone, left = self.stage, task.request.work, self._alone, task.left - done
        if not alone:
            alone.update({m: self._estimate(m, 1) for m in (*stage.modules, *stage.rest)})
        seconds = 0.0
        if stage.loop:
            seconds = left * alone[stage.loop]
            if stage.before and left == task.iterations:
                seconds += float_sum([alone[m] for m in stage.before])
        if stage.after:
            seconds += float_sum([alone[m] for m in stage.after])
        if stage.rest:
            seconds += float_sum([work.get(m, 1) * alone[m] for m in stage.rest])
        return seconds


class PolicyBase:
    """What `Policy` and `servetwin.core.llm.policy.TokenPolicy` have in common."""

    #: Ask also while a batch runs; what is decided then waits its turn in the worker's backlog (Clockwork does this).
    ahead = False
    #: Whether it can serve a pool of threads: it runs only what waits, and counts on no batch being alone in flight.
    pools = False
    #: Whether a request may wait for as long as others keep coming, neither served nor given up: shortest first, say.
    starves = False
    #: Whether it says on which devices of a group a batch runs (`WorkerView.group`); only such can serve a group.
    names_devices = False
    #: The keys of a module's actions (``pipeline.modules.NAME.actions``) without which it has nothing to choose; a
    #: run says so where no module has them.
    uses_actions: tuple[str, ...] = ()
    #: Whether it heeds the shapes of requests (`Task.shape`, ``view.estimate(module, batch, shape)``). Of one that
    #: does not, each shape has an object of its own where requests are of several
    #: (`servetwin.core.serving.shape_turns`).
    heeds_shapes = False
    #: Which of these objects is asked first: that of the request with the least "slack", of the one that came first
    #: ("arrival"), or of the one that takes the least time from now on ("shortest").
    turn: Literal["slack", "arrival", "shortest"] = "slack"


class Policy(PolicyBase):
    """Decides what a worker runs next. One object serves one worker; its parameters come by keyword.

    A subclass must give `decide`; the rest has defaults. Calls come in the order of events: `start` once, `admit`
    for each task as the worker takes it in, `decide` when the worker is free, `ended` when a batch is done, `removed`
    when a task goes for a reason that is not the policy's.
    """

    def start(self, view: WorkerView) -> None:
        """Look at the worker once, before anything arrives: bounds and tables that never change."""

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        """Take *task* in, or refuse it (it is dropped then)."""
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        """What the worker does next."""
        raise NotImplementedError

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        """A batch is done; its tasks that have more to do have stayed in ``view.running``."""

    def onward(self, task: ActingTask, view: WorkerView, now: float) -> bool:
        """Whether *task*, which is done here, takes the branch that leaves this stage (to a larger model, say), where
        its policy may choose: `StepActions.confidence`. By default those do who would by chance."""
        assert task.confidence is not None
        return task.confidence < view.stage.branches[0].edge.probability

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        """*task* was taken away by someone else (another branch dropped the request, or the run was stopped).

        Only a policy that keeps queues of its own need care.
        """
