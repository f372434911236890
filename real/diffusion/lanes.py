"""Lanes: what runs a worker's batches. On a GPU a stream that is polled, on the CPU a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue

import torch
from servetwin.core import BadInput, Batch, InvariantBroken, Shape, Task, Worker
from servetwin.core.serving.shaped_worker import ShapedWorker

from .device_slots import DeviceSlots, Progress
from .graph_runner import GraphRunner
from .networks import OUTPUT, REUSE

Done = Callable[[Batch], None]
#: Takes the finished image (bytes, 3 x height x width) of a request by its id.
Sink = Callable[[int, torch.Tensor], None]


def limits_of(worker: Worker) -> dict[Shape | None, int]:
    """The largest batches of *worker*, by the shape of its requests (None: they say none)."""
    found: dict[Shape | None, int] = {None: worker.view.limit}
    return dict(worker.view.limits.items()) if isinstance(worker, ShapedWorker) else found


class Slowdown:
    """Makes what a worker computes take longer, by waiting after each step: *said* are the factor and, so far, the
    seconds for which its process stood still. *settle* waits until the device has done what it was given."""

    def __init__(self, said: torch.Tensor, settle: Callable[[], None]) -> None:
        self.said, self.settle = said, settle
        self.begin()

    def begin(self) -> None:
        """A batch begins."""
        self.since, self.stood = time.perf_counter(), float(self.said[1])

    def keep(self) -> None:
        """A step is over: wait as long as it would still take."""
        factor = float(self.said[0])
        if factor > 1.0:
            self.settle()
            took = time.perf_counter() - self.since - (float(self.said[1]) - self.stood)
            time.sleep(max(0.0, took) * (factor - 1.0))
        self.begin()


class Lane:
    """Runs the batches of *worker* at *slots*, one at a time. Where it is *polled*, the executor asks `is_over`."""

    polled = False
    #: Its process was ended: what is still heard of it counts no more.
    dead = False
    #: Makes what it computes take longer, where that may happen.
    slowdown: Slowdown | None = None

    def __init__(
        self,
        slots: DeviceSlots,
        worker: Worker,
        sink: Sink | None = None,
        limits: Mapping[Shape | None, int] | None = None,
    ) -> None:
        self.slots = slots
        self.worker = worker
        self.sink = sink
        self.batch: Batch | None = None
        self.done: Done | None = None
        stage, limits = worker.stage, limits_of(worker) if limits is None else limits
        slots.check(stage.modules)
        self.last = not stage.next
        self.converts = self.last and OUTPUT in slots.model.bodies
        if stage.actions is not None and len(slots.kind.loops) > 1:
            loops = " and ".join(slots.kind.loops)
            what = f"{worker.name} may change its steps, and a request of {slots.kind.name} loops in {loops}"
            raise BadInput(what, right="a pipeline without actions")
        reuses = stage.actions is not None and stage.actions.reuse
        if reuses and not slots.options.reuse:
            what = f"{worker.name} may reuse predictions, which {slots.kind.name} does not keep here"
            raise BadInput(what, right="the option reuse, or actions without it")
        #: What runs its modules: nobody else's, while it is not closed.
        self.runners: dict[str, GraphRunner] = {}
        try:
            for module in (*stage.modules, *([OUTPUT] if self.converts else []), *([REUSE] if reuses else [])):
                self.runners[module] = slots.lease(module, limits, self)
        except BaseException:
            slots.give_back(self)
            raise
        if self.last:
            self.images = {
                shape: torch.zeros(
                    limit, *slots.model.rooms[shape].kind.image_shape, dtype=torch.uint8, pin_memory=slots.gpu
                )
                for shape, limit in limits.items()
            }
        self.leaving: list[Progress] = []

    def start(self, batch: Batch, done: Done) -> None:
        """Begin *batch*; it is over when the executor has heard of it."""
        raise NotImplementedError

    def is_over(self) -> bool:
        """Whether the batch is over."""
        raise NotImplementedError

    def finish(self) -> None:
        """The batch is over: hand out the images that it made and let the loop go on."""
        batch, done = self.batch, self.done
        assert batch is not None
        assert done is not None
        self.batch = self.done = None
        if self.sink is not None:
            for i, progress in enumerate(self.leaving):
                self.sink(progress.request, self.images[progress.shape][i].clone())
        done(batch)

    def prepare(self, task: Task) -> None:
        """*task* waits for this lane, which is busy: whatever can be done for it meanwhile."""

    def close(self) -> None:
        """No more batches come."""
        self.slots.give_back(self)

    def work(self, batch: Batch) -> None:
        """Do what *batch* asks for, on the current stream."""
        slots, stage, runners = self.slots, self.worker.stage, self.runners
        progress = [slots.take(task.request) for task in batch.tasks]
        shape = progress[0].shape
        if any(p.shape != shape for p in progress):
            shapes = " and ".join(sorted({str(p.shape) for p in progress}))
            raise InvariantBroken(f"{batch} holds requests of several shapes: {shapes}")
        leaving = progress
        if stage.loop is None:
            for module in stage.modules:
                slots.once(module, progress, runners[module])
        else:
            joining = [i for i, p in enumerate(progress) if p.loop != stage.loop]
            if joining:
                for module in stage.before:
                    slots.once(module, [progress[i] for i in joining], runners[module])
                for i in joining:
                    slots.begin(progress[i], batch.tasks[i].iterations, stage.loop, batch.tasks[i].request.work)
            again = {task.request.id for task in batch.reused}
            computed = [p for p in progress if p.request not in again] if again else progress
            for _ in range(batch.iterations):
                if computed:
                    slots.step(computed, runners[stage.loop])
                if again:
                    slots.step([p for p in progress if p.request in again], runners[REUSE])
                if self.slowdown is not None:
                    self.slowdown.keep()
            if not batch.leaves:
                self.leaving = []
                return
            steps = batch.iterations
            leaving = [p for p, task in zip(progress, batch.tasks, strict=True) if task.left <= steps]
            for module in stage.after:
                slots.once(module, leaving, runners[module])
        self.leaving = leaving if self.last else []
        if self.last:
            if self.converts:
                slots.once(OUTPUT, leaving, runners[OUTPUT])
            images, kept = slots.model.rooms[shape].state["image"], self.images[shape]
            for i, p in enumerate(leaving):
                kept[i].copy_(images[p.slot], non_blocking=True)


class StreamLane(Lane):
    """A lane on a stream of its own: `start` launches, and the executor polls `is_over`.

    What a request needs before its first iteration (its input and its noise on the device) is set up on a second
    stream while the device computes, where there is time for it: some 0.1 ms for each, which the batch that it joins
    would else wait for.
    """

    polled = True

    def __init__(self, slots: DeviceSlots, worker: Worker, sink: Sink | None = None) -> None:
        super().__init__(slots, worker, sink)
        priority = slots.priority(worker.stage.loop or worker.stage.modules[0])
        self.stream = torch.cuda.Stream(slots.device, priority=priority)
        self.event = torch.cuda.Event()
        self.side = torch.cuda.Stream(slots.device)
        self.prepared = torch.cuda.Event()
        self.awaits = False  # whether something was prepared since the last batch

    def prepare(self, task: Task) -> None:
        slots, stage = self.slots, self.worker.stage
        known = slots.progress.get(task.id)
        settled = stage.actions is None  # else its policy says how many steps it has when it begins
        begins = (
            settled and stage.loop is not None and not stage.before and (known is None or known.loop != stage.loop)
        )
        if known is not None and not begins:
            return
        if known is None and len(slots.free) <= self.worker.view.limit:
            return  # the slots that are left are for those who begin
        with torch.no_grad(), torch.cuda.stream(self.side):
            progress = slots.take(task.request)
            if begins:
                slots.begin(progress, task.left, stage.loop, task.request.work)
            self.prepared.record(self.side)
        if slots.gpu:  # for another lane too, if this one never runs it
            slots.pending[progress.slot] = self.prepared
        self.awaits = True

    def start(self, batch: Batch, done: Done) -> None:
        self.batch, self.done = batch, done
        with torch.no_grad(), torch.cuda.stream(self.stream):
            if self.awaits:
                self.stream.wait_event(self.prepared)
                self.awaits = False
            self.work(batch)
            self.event.record(self.stream)

    def is_over(self) -> bool:
        over: bool = self.event.query()
        return over


class ThreadLane(Lane):
    """A lane on a thread of its own, which puts itself into *heard* when a batch is over, with what went wrong."""

    def __init__(
        self,
        slots: DeviceSlots,
        worker: Worker,
        heard: SimpleQueue[tuple[object, object]],
        sink: Sink | None = None,
    ) -> None:
        super().__init__(slots, worker, sink)
        self.heard = heard
        self._jobs: SimpleQueue[Batch | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"lane {worker.name}", daemon=True)
        self._thread.start()

    def start(self, batch: Batch, done: Done) -> None:
        self.batch, self.done = batch, done
        self._jobs.put(batch)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        super().close()

    def _serve(self) -> None:
        with torch.no_grad():
            while (batch := self._jobs.get()) is not None:
                try:
                    self.work(batch)
                except BaseException as error:  # the executor ends the run with it
                    self.heard.put((self, error))
                else:
                    self.heard.put((self, None))
