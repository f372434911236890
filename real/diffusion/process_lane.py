"""Workers in processes of their own, as NeuStream deploys them: each builds its modules and runs its batches there.

All workers of a device share one set of slot tensors. The first of them makes it and passes it to the others: by CUDA
IPC on a GPU, in shared memory on the CPU. So a transfer between stages moves nothing; it is a message. The serving
loop, its policies and the slots stay in the process of the run, which tells a worker what to run and hears when it is
over.

Where workers may fail (`RemoteSlots.fails`) a process can be killed, stopped for a while, slowed down, and started
again (`ProcessLane.kill`, `slow`, `begin_again`). On the CPU the slots outlive whoever made them, since the run holds
them too; on a GPU they are lost with their worker, which is then the only one there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import torch
import torch.multiprocessing
from servetwin.core import BadInput, Batch, ServeTwinError, Shape, Stage, Task, Worker
from servetwin.core.processes import temporary_folders
from servetwin.core.processes.parent_death import end_with_parent
from servetwin.core.processes.stopped import StopWatch

from .device_slots import DeviceSlots, Progress, Work
from .kind import Kind
from .lanes import Done, Lane, Sink, Slowdown, limits_of
from .options import Options

#: Seconds that a process may take to end when it was told to.
PATIENCE = 5.0
#: Seconds between two looks whether a process that computes is stopped.
LOOK = 1.0
#: What a server process imports once, of which workers are forked on the CPU: it takes seconds.
PRELOADED = (
    __name__,
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.safety_checker",
    "transformers.models.clip.modeling_clip",
)
#: What runs between a batch and a worker: (iterations, leaves, tasks, requests that have ended, requests that take
#: their last prediction again); a task is (request, its shape, slot, whether it is new here, its iterations, what is
#: left of them, and those in each loop where there are several).
Job = tuple[int, int, list[tuple[int, Shape | None, int, bool, int, int, Work | None]], list[int], list[int]]


class RemoteSlots:
    """A device whose workers are processes: gives slots out, and starts and ends its *lanes*."""

    def __init__(self, kind: Kind, options: Options, device: torch.device) -> None:
        self.kind = kind
        self.options = options
        self.device = device
        self.gpu = device.type == "cuda"
        self.runners: dict[str, Any] = {}  # those are in the processes
        self.lanes: list[ProcessLane] = []
        self.shapes: tuple[Shape | None, ...] = (None,)
        self.fails = False  # whether workers may be killed and started again; said before they are started
        self.whole: dict[str, torch.Tensor] | None = None  # the slots, where the run holds them too
        self.starting = threading.Lock()
        self._context: Any = None
        self.reset()

    def lay_out(self, shapes: Sequence[Shape | None]) -> None:
        """Be there for requests of these *shapes*."""
        self.shapes = tuple(shapes)

    def reset(self) -> None:
        """Forget all requests."""
        self.progress: dict[int, int] = {}  # request -> slot
        self.unbrought: set[int] = set()  # who may not have in its slot what it came with
        self.free = list(range(self.options.slots - 1, -1, -1))

    def slot_mib(self) -> dict[str, float]:
        """Nothing: what a request takes is known in the processes."""
        return {}

    def slot(self, request: int) -> tuple[int, bool]:
        """The slot of *request*, and whether it has just been given one."""
        slot = self.progress.get(request)
        if slot is not None:
            new = request in self.unbrought
            self.unbrought.discard(request)
            return slot, new
        if not self.free:
            raise ServeTwinError(f"more than {self.options.slots} requests have begun: raise the number of slots")
        slot = self.progress[request] = self.free.pop()
        return slot, True

    def release(self, request: int) -> None:
        """The request has ended."""
        slot = self.progress.pop(request, None)
        if slot is not None:
            self.free.append(slot)
            self.unbrought.discard(request)
            for lane in self.lanes:
                lane.ended.append(request)

    def open(self) -> None:
        """Start the processes and wait until all are warmed up. Raises what went wrong in one."""
        # A process cannot use CUDA if that from which it was forked has so much as looked for it, as imports do.
        context: Any = torch.multiprocessing.get_context("spawn" if self.gpu else "forkserver")
        if not self.gpu:
            context.set_forkserver_preload(list(PRELOADED))
            temporary_folders.for_multiprocessing()
        self._context = context
        passes = [context.SimpleQueue() for _ in self.lanes[1:]]
        ours = [context.SimpleQueue()] if self.fails and not self.gpu else []
        for i, lane in enumerate(self.lanes):
            lane.begin(context, [*passes, *ours] if i == 0 else passes[i - 1])
        for lane in self.lanes:
            lane.await_ready()
        for queue in ours:
            self.whole = queue.get()

    def begin_again(self, lane: ProcessLane, ready: Callable[[], None]) -> ProcessLane:
        """Start the worker of *lane*, whose process was killed, again; gives its new lane. *ready* is called, by way
        of what the executor hears, when it is warmed up."""
        new = ProcessLane(self, lane.worker, lane.heard, lane.sink)
        self.lanes.remove(new)
        self.lanes[self.lanes.index(lane)] = new
        if self.gpu:  # the slots went with the process that made them
            self.unbrought.update(self.progress)
        new.begin_again(lane, self._context, [] if self.whole is None else self.whole, ready)
        return new

    def close(self) -> None:
        """End the processes; the first, to which the tensors belong, at last."""
        self.whole = None
        lanes, self.lanes = self.lanes[::-1], []
        for lane in lanes:
            lane.end()


class Started:
    """The process of *lane*, which was started again, is warmed up after so many *seconds*; the event loop lets that
    take effect."""

    def __init__(self, lane: ProcessLane, ready: Callable[[], None], seconds: float) -> None:
        self.lane, self.ready, self.seconds = lane, ready, seconds


class ProcessLane(Lane):
    """A lane in a process of its own. On a GPU the executor polls `is_over`; on the CPU a thread listens."""

    def __init__(
        self,
        slots: RemoteSlots,
        worker: Worker,
        heard: SimpleQueue[tuple[object, object]],
        sink: Sink | None = None,
    ) -> None:
        self.remote = slots
        self.worker = worker
        self.heard = heard
        self.sink = sink
        self.polled = slots.gpu
        self.batch: Batch | None = None
        self.done: Done | None = None
        self.leaving: list[Progress] = []
        self.ended: list[int] = []
        self.last = not worker.stage.next
        for module in worker.stage.modules:
            if module not in slots.kind.modules:
                right = ", ".join(slots.kind.modules)
                raise BadInput(f"{slots.kind.name} has no module {module!r}", right=f"one of {right}")
        if self.last and sink is not None:
            kinds = {s: slots.kind if s is None else slots.kind.at(s) for s in slots.shapes}
            self.images = {
                shape: torch.zeros(limit, *kinds[shape].image_shape, dtype=torch.uint8).share_memory_()
                for shape, limit in limits_of(worker).items()
            }
        self._process: Any = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # nobody kills what is about to be started
        self._closing = False
        self._trouble: ServeTwinError | None = None
        self.starts = False  # it was started again, and is not ready
        self._stopped_at: float | None = None  # since when its process stands still
        self.said = torch.tensor([1.0, 0.0], dtype=torch.float64).share_memory_() if slots.fails else None
        self._visits: dict[int, Task] = {}  # which visit of a request its process knows
        self._brought: list[int] = []  # whose inputs the batch in hand puts into their slots
        slots.lanes.append(self)

    # -- its life ---------------------------------------------------------------------------------------

    def begin(self, context: Any, passes: Any) -> None:
        """Start the process. *passes* are the queues through which it gives the slot tensors to the others, or that
        through which it gets them.
        """
        slots, worker = self.remote, self.worker
        self._pipe: Connection
        self._pipe, theirs = context.Pipe()
        images = self.images if self.last and self.sink is not None else None
        options = replace(slots.options, processes=False)
        limits = limits_of(worker)
        about = (
            slots.kind,
            options,
            slots.device,
            worker.stage,
            slots.shapes,
            limits,
            images,
            torch.get_num_threads(),
            self.said,
        )
        self._process = context.Process(target=_main, args=(theirs, passes, *about), name=worker.name, daemon=True)
        with slots.starting:  # multiprocessing looks at all that there are
            self._process.start()
        theirs.close()
        self._stops = StopWatch(self._process.pid)

    def await_ready(self) -> None:
        """Wait until it is warmed up. Raises `ServeTwinError` if it is stopped meanwhile."""
        while not self._pipe.poll(LOOK):
            if self._stops.too_long():
                raise self._stopped()
        self._hear()
        what, name = (self._watch, "watches") if self.polled else (self._listen, "hears")
        self._begin_thread(what, name)

    def _begin_thread(self, what: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=what, name=f"{name} {self.worker.name}", daemon=True)
        self._thread.start()

    def begin_again(self, before: ProcessLane, context: Any, passes: Any, ready: Callable[[], None]) -> None:
        """Start the process anew that *before* had, which was killed, on a thread: that takes a while. The executor
        hears `Started` when it is warmed up."""
        self.starts = True
        if self.said is not None and before.said is not None:
            self.said[0] = before.said[0]

        def live() -> None:
            began = time.monotonic()
            try:
                before.bury()  # what it held is free then
                with self._lock:
                    if self._closing:
                        return
                    self.begin(context, passes)
                while not self._pipe.poll(LOOK):
                    if self.dead:
                        return
                    if self._stops.too_long():
                        raise self._stopped()
                self._hear()
            except Exception as problem:
                if not self._closing:
                    self.heard.put((Started(self, ready, 0.0), problem))
                return
            self.heard.put((Started(self, ready, time.monotonic() - began), None))
            (self._watch if self.polled else self._listen)()

        self._begin_thread(live, "starts")

    def kill(self) -> None:
        """End the process at once (SIGKILL), whatever it is doing; nothing that is still heard of it counts."""
        if self.dead:
            return
        with self._lock:
            self.dead = self._closing = True
            if self._process is not None:
                self._process.kill()
        self.starts = False
        self.remote.unbrought.update(self._brought)
        self.batch = self.done = self._stopped_at = None

    def bury(self) -> None:
        """Wait until the process, which was killed, is no more, and let go of what it leaves."""
        if self._process is not None:
            self._process.join()
        if self._thread is not None:
            self._thread.join()  # it hears that nobody is at the other end
        self._let_go()

    def _let_go(self) -> None:
        if self._process is None:
            return
        self._pipe.close()
        with self.remote.starting:
            self._process.close()
        self._process = None

    def slow(self, factor: float) -> None:
        """From now on all takes *factor* times as long; infinite: the process is stopped (SIGSTOP) until the next
        call."""
        assert self.said is not None
        if factor == inf:
            if self._stopped_at is None and self._process is not None:
                self._stopped_at = time.perf_counter()
                os.kill(self._process.pid, signal.SIGSTOP)
            return
        self.said[0] = factor
        if self._stopped_at is not None:
            self.said[1] += time.perf_counter() - self._stopped_at
            self._stopped_at = None
            os.kill(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self.starts or self._stopped_at is not None:
            self.kill()
        if self.dead:
            self.bury()
        self._closing = True
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(PATIENCE if self.batch is None else 0.1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._let_go()

    def close(self) -> None:
        self.remote.close()

    # -- batches ----------------------------------------------------------------------------------------

    def start(self, batch: Batch, done: Done) -> None:
        self.batch, self.done = batch, done
        slots, loops = self.remote, self.worker.stage.loop is not None
        several = len(slots.kind.loops) > 1
        tasks = [
            (t.id, t.request.shape, *slots.slot(t.id), t.iterations, t.left, t.request.work if several else None)
            for t in batch.tasks
        ]
        if self.last and self.sink is not None:
            steps = batch.iterations
            leaving = [t for t in tasks if not loops or t[5] <= steps]
            self.leaving = [Progress(t[0], t[2], t[1]) for t in leaving]
        ended, self.ended = self.ended, []
        if slots.fails:
            self._brought = [task[0] for task in tasks if task[3]]
            ended += self._seen_anew(ended, batch)
        job: Job = (batch.iterations, batch.leaves, tasks, ended, [task.id for task in batch.reused])
        try:
            self._pipe.send(job)
        except OSError:
            raise self._gone() from None

    def _seen_anew(self, ended: Sequence[int], batch: Batch) -> list[int]:
        """Who of *batch* is here for another time: its process must forget the first."""
        for request in ended:
            self._visits.pop(request, None)
        again = [t.id for t in batch.tasks if self._visits.get(t.id, t) is not t]
        self._visits.update((t.id, t) for t in batch.tasks)
        return again

    def is_over(self) -> bool:
        if not self._pipe.poll():
            if self._trouble is not None:
                raise self._trouble
            return False
        self._hear()
        return True

    def _hear(self) -> None:
        """One message. Raises what went wrong there."""
        try:
            problem = self._pipe.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        if problem is not None:
            kind, text = problem
            name = self.worker.name
            if kind == "memory":
                raise torch.OutOfMemoryError(text)
            raise (BadInput if kind == "input" else ServeTwinError)(text if kind == "input" else f"{name}: {text}")

    def _gone(self) -> ServeTwinError:
        if self._closing:  # as it was meant to
            return ServeTwinError(f"the process of worker {self.worker.name} was ended")
        self._process.join(1.0)
        code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return ServeTwinError(f"the process of worker {self.worker.name} has ended ({how})")

    def _listen(self) -> None:
        while not self._closing:
            try:
                while not self._pipe.poll(LOOK):
                    if self._waits_in_vain():
                        raise self._stopped()
                self._stops.heard()
                self._hear()
            except Exception as problem:
                if not self._closing:
                    self.heard.put((self, problem))
                return
            self.heard.put((self, None))

    def _watch(self) -> None:
        """Where nobody else waits: the executor, which polls `is_over` without a break, does not look by itself."""
        while not self._closing:
            if self._waits_in_vain():
                self._trouble = self._stopped()
                return
            time.sleep(LOOK)

    def _waits_in_vain(self) -> bool:
        """Whether its process, which has a batch, was stopped by somebody else."""
        return self.batch is not None and self._stopped_at is None and self._stops.too_long()

    def _stopped(self) -> ServeTwinError:
        return ServeTwinError(self._stops.told(f"worker {self.worker.name}"))


# -- in the process ---------------------------------------------------------------------------------------


def _main(
    pipe: Connection,
    passes: Any,
    kind: Kind,
    options: Options,
    device: torch.device,
    stage: Stage,
    shapes: tuple[Shape | None, ...],
    limits: dict[Shape | None, int],
    images: dict[Shape | None, torch.Tensor] | None,
    threads: int,
    said: torch.Tensor | None = None,
) -> None:
    """A worker: builds its modules, says that it is ready, then runs what it is told until it is told None."""
    end_with_parent()  # also in the middle of a batch
    for number in (signal.SIGINT, signal.SIGTERM):  # those that go to a whole group are for the run, which ends this
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        slots = DeviceSlots(kind, options, device, shapes)
        _share(slots, passes)
        _keep(slots, stage)
        worker: Any = SimpleNamespace(stage=stage, name=stage.name)
        lane = Lane(slots, worker, limits=limits)
        if images is not None:
            lane.images = images
        if said is not None:
            lane.slowdown = Slowdown(said, partial(torch.cuda.synchronize, device) if slots.gpu else _nothing)
        pipe.send(None)
        _work(pipe, slots, lane)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the run is no more
    except torch.OutOfMemoryError as problem:
        _tell(pipe, ("memory", str(problem)))
    except BadInput as problem:
        _tell(pipe, ("input", str(problem)))
    except Exception as problem:
        text = str(problem).strip().splitlines()
        known = isinstance(problem, ServeTwinError)
        _tell(pipe, ("other", text[0] if known else f"{type(problem).__name__}: {text[0] if text else ''}"))
    # What torch and CUDA would do at the end of a process takes time and can hang while others hold its tensors.
    sys.stderr.flush()
    os._exit(0)


def _tell(pipe: Connection, problem: tuple[str, str]) -> None:
    with contextlib.suppress(OSError):
        pipe.send(problem)
        pipe.recv()  # until the run has read it and says that this is the end


def _share(slots: DeviceSlots, passes: Any) -> None:
    """All work on the same slot tensors: the first worker's, or those that the run has kept of it."""
    whole = slots.model.whole
    if isinstance(passes, dict):
        slots.model.adopt(passes)
        return
    if not isinstance(passes, list):
        slots.model.adopt(passes.get())
        return
    if not slots.gpu:
        for tensor in whole.values():
            tensor.share_memory_()
    else:
        torch.cuda.synchronize(slots.device)
    for other in passes:
        other.put(whole)


def _keep(slots: DeviceSlots, stage: Stage) -> None:
    """Keep the networks of *stage* only."""
    slots.model.keep(set(stage.modules))
    if slots.gpu:
        torch.cuda.empty_cache()


def _work(pipe: Connection, slots: DeviceSlots, lane: Lane) -> None:
    stream = torch.cuda.Stream(slots.device) if slots.gpu else None
    event = torch.cuda.Event() if slots.gpu else None
    with torch.no_grad(), torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
        while (job := pipe.recv()) is not None:
            batch: Any = _batch(slots, job)
            if lane.slowdown is not None:
                lane.slowdown.begin()
            lane.work(batch)
            if event is not None:
                event.record(stream)
                while not event.query():
                    pass
            if lane.slowdown is not None:
                lane.slowdown.keep()
            pipe.send(None)


def _batch(slots: DeviceSlots, job: Job) -> SimpleNamespace:
    """What a lane needs to know of a batch; its requests stand in the slots that they were given."""
    iterations, leaves, tasks, ended, again = job
    for request in ended:
        slots.progress.pop(request, None)
    kept: Sequence[SimpleNamespace] = [
        SimpleNamespace(request=SimpleNamespace(id=number, shape=shape, work=work), iterations=whole, left=left)
        for number, shape, _, _, whole, left, work in tasks
    ]
    for number, shape, slot, new, *_ in tasks:
        if number not in slots.progress:
            slots.progress[number] = Progress(number, slot, shape)
            if new:
                slots.model.bring(slot, number, shape)
    reused = [task for task in kept if task.request.id in again]
    return SimpleNamespace(tasks=kept, iterations=iterations, leaves=leaves, reused=reused)


def _nothing() -> None:
    pass
