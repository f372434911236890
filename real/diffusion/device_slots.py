"""A device with a model on it: the slots of its requests, and the runners that run its modules."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch
from servetwin.core import BadInput, Request, ServeTwinError

from .graph_runner import WIDTH, GraphRunner
from .kind import Kind
from .networks import Model
from .noise_schedule import steps_table
from .options import Options

#: A number that no request has.
NOBODY = -1


class Progress:
    """Where a request stands on a device: its *slot*, and the rows of its denoising steps once it has begun them."""

    __slots__ = ("done", "request", "rows", "slot")

    def __init__(self, request: int, slot: int) -> None:
        self.request = request
        self.slot = slot
        self.rows: np.ndarray | None = None
        self.done = 0


class HandOver:
    """A request's way to another device: *host* seconds that the serving thread spent on it, and of GPUs the events
    around the copy, the first of which was recorded *ahead* seconds after the beginning."""

    __slots__ = ("ahead", "begun", "copied", "host")

    def __init__(self) -> None:
        self.host = self.ahead = 0.0
        self.begun: torch.cuda.Event | None = None
        self.copied: torch.cuda.Event | None = None

    def seconds(self) -> float:
        """From its beginning until all was on the other device; waits until it is."""
        if self.begun is None or self.copied is None:
            return self.host
        self.copied.synchronize()
        return float(self.ahead + self.begun.elapsed_time(self.copied) / 1e3)


class DeviceSlots:
    """*kind* on the torch device *device*."""

    def __init__(self, kind: Kind, options: Options, device: torch.device) -> None:
        self.kind = kind
        self.options = options
        self.device = device
        self.gpu = device.type == "cuda"
        self.sampler = kind.sampling.chosen(options.scheduler)
        self.tokens = kind.tokens(kind.latent) if kind.sampling.dynamic is not None else 0
        self.model = Model(kind, options, device)
        self.runners: dict[str, GraphRunner] = {}  # those of the first lane that runs a module, or of nobody
        self.seconds: dict[str, float] = {}  # module -> what it took to compile, tune and capture all of its sizes
        self._spare: dict[str, list[GraphRunner]] = {}  # what further lanes use; kept from one run to the next
        self._used: dict[GraphRunner, object] = {}  # runner -> its lane
        # Lanes on threads share the slots and the source of the noise.
        self._lock = threading.RLock()
        self.generator = torch.Generator(device)
        self.transfer = torch.cuda.Stream(device) if self.gpu else None  # for transfers between devices
        self.reset()

    def reset(self) -> None:
        """Forget all requests."""
        self.progress: dict[int, Progress] = {}
        self.free = list(range(self.options.slots - 1, -1, -1))
        #: Slot -> what was last recorded on a stream that touched it, for the next one to wait for.
        self.pending: dict[int, torch.cuda.Event] = {}

    def warm(self, module: str, limit: int) -> GraphRunner:
        """The runner of *module* for batches of up to *limit*, with every size run once."""
        runner = self.runners.get(module)
        if runner is None or runner.limit < limit:
            runner = self.runners[module] = self._make(module, limit)
        return runner

    def lease(self, module: str, limit: int, lane: object) -> GraphRunner:
        """A runner of *module* as `warm` gives it, which is *lane*'s alone until `give_back`.

        A runner's rows, its cursor on the device and the memory of its graphs serve one batch at a time: two lanes on
        one runner would read each other's rows.
        """
        first = self.runners.get(module)
        if first is None or first not in self._used:
            runner = self.warm(module, limit)
        else:
            spare = self._spare.setdefault(module, [])
            idle = next((u for u in spare if u not in self._used and u.limit >= limit), None)
            runner = idle or self._make(module, limit)
            if idle is None:
                spare.append(runner)
        self._used[runner] = lane
        return runner

    def give_back(self, lane: object) -> None:
        """*lane* has no more use for its runners."""
        self._used = {runner: user for runner, user in self._used.items() if user is not lane}

    def _make(self, module: str, limit: int) -> GraphRunner:
        if limit > self.options.slots:
            raise BadInput(f"batches of up to {limit} do not fit into {self.options.slots} slots", right=f"{limit}")
        body, eager = self.model.bodies[module], self.options.eager
        runner = GraphRunner(module, body, limit, self.device, eager=eager, priority=self.priority(module))
        began = time.perf_counter()
        with torch.no_grad():
            runner.warm(range(1, limit + 1))
        self.seconds.setdefault(module, time.perf_counter() - began)  # later ones find the programs
        return runner

    def priority(self, module: str) -> int:
        """The priority of the streams on which *module* is captured and runs: -1 goes before 0."""
        first = self.options.first
        return -1 if first != "none" and (first == "loop") == (module == self.kind.loop) else 0

    # -- slots ------------------------------------------------------------------------------------------

    def take(self, request: Request) -> Progress:
        """The request's progress here; a new slot and what it brings if it comes for the first time."""
        with self._lock:
            progress = self.progress.get(request.id)
            known = progress is not None
            if progress is None:
                progress = self.occupy(request.id)
        if self.pending:
            self.wait_for(progress.slot)
        if not known:
            self.model.bring(progress.slot, request.id)
        return progress

    def wait_for(self, slot: int, stream: torch.cuda.Stream | None = None) -> None:
        """Let *stream* (None: the current one) wait for whoever touched *slot* last on a stream that may not be done.

        Once is enough: whoever comes next is ordered after the one that waited.
        """
        event = self.pending.pop(slot, None)
        if event is not None:
            (stream or torch.cuda.current_stream(self.device)).wait_event(event)

    def occupy(self, request: int) -> Progress:
        """A free slot for *request*. Raises `ServeTwinError` if there is none."""
        if not self.free:
            raise ServeTwinError(f"more than {self.options.slots} requests have begun: raise the number of slots")
        progress = self.progress[request] = Progress(request, self.free.pop())
        return progress

    def release(self, request: int) -> None:
        """The request has ended."""
        with self._lock:
            progress = self.progress.pop(request, None)
            if progress is not None:
                self.free.append(progress.slot)

    def hand_over(self, request: int, other: DeviceSlots, after: torch.cuda.Event | None = None) -> HandOver:
        """Copy the slot of *request* to *other*, those on another device, and free it here.

        On GPUs nobody waits: the copy runs on a stream of its own (*after* that event, if its last batch may not be
        over), whoever takes the request at *other* waits for the copy, and so does whoever is given the slot that is
        free here.
        """
        begin, way = time.perf_counter(), HandOver()
        mine, theirs = self.progress[request], other.occupy(request)
        theirs.rows, theirs.done = mine.rows, mine.done
        if mine.rows is not None:
            theirs.rows = mine.rows.copy()
            theirs.rows[:, 0] = theirs.slot
        with contextlib.ExitStack() as streams:
            for slots in (other, self):  # on one device the copy is on the source's stream
                if slots.transfer is not None:
                    streams.enter_context(torch.cuda.stream(slots.transfer))
            self._copy(mine.slot, other, theirs.slot, after, way, begin)
        self.release(request)
        way.host = time.perf_counter() - begin
        return way

    def _copy(
        self, slot: int, other: DeviceSlots, their: int, after: torch.cuda.Event | None, way: HandOver, begin: float
    ) -> None:
        stream = self.transfer
        if stream is not None:
            self.wait_for(slot, stream)
            other.wait_for(their, stream)
            if after is not None:
                stream.wait_event(after)
            if other.gpu:
                way.begun = torch.cuda.Event(enable_timing=True)
                way.begun.record(stream)
                way.ahead = time.perf_counter() - begin
        for name, tensor in self.model.state.items():
            other.model.state[name][their].copy_(tensor[slot], non_blocking=True)
        # A copy to or from the CPU is over for its users when the GPU's stream has come to its end.
        if stream is not None and not other.gpu:
            stream.synchronize()
        elif stream is not None:
            copied = way.copied = torch.cuda.Event(enable_timing=True)
            copied.record(stream)
            self.pending[slot] = other.pending[their] = copied
        elif other.transfer is not None:
            other.transfer.synchronize()

    def meet(self, other: DeviceSlots) -> None:
        """Copy a slot to *other* and wait for it: the first copy between two GPUs maps the memory of one into the
        other, which takes long."""
        self.occupy(NOBODY)
        self.hand_over(NOBODY, other).seconds()
        other.release(NOBODY)

    # -- work, on the current stream ---------------------------------------------------------------------

    def begin(self, progress: Progress, steps: int) -> None:
        """Set up noise and schedule of a request that starts its loop."""
        options, kind = self.options, self.kind
        table = steps_table(self.sampler, steps, kind.sampling, self.tokens)
        rows = np.empty((steps, WIDTH), dtype=np.float32)
        rows[:, 0] = progress.slot
        rows[:, 1:5] = table.rows[:, :4]
        rows[:, 5] = kind.guidance
        rows[:, 6:] = table.rows[:, 4:]
        progress.rows = rows
        progress.done = 0
        seed = (options.seed << 32) + progress.request
        with self._lock:
            self.model.noise(progress.slot, seed, table.first, self.generator)

    def step(self, batch: Sequence[Progress], runner: GraphRunner | None = None) -> None:
        """One iteration, on *runner* (None: the first). Who has done all its steps just stays: its latents do not
        change."""
        runner = runner or self.runners[self.kind.loop]
        into = runner.rows()
        for i, progress in enumerate(batch):
            rows = progress.rows
            assert rows is not None
            done = progress.done
            if done < len(rows):
                into[i] = rows[done]
                progress.done = done + 1
            else:
                into[i] = rows[-1]
                into[i, 3:5] = (1.0, 0.0)
                into[i, 6] = 0.0
        runner.launch(len(batch))

    def once(self, module: str, batch: Sequence[Progress], runner: GraphRunner | None = None) -> None:
        """Run a module without a loop, on *runner* (None: the first)."""
        runner = runner or self.runners[module]
        into = runner.rows()
        for i, progress in enumerate(batch):
            into[i, 0] = progress.slot
        runner.launch(len(batch))

    def check(self, modules: Sequence[str]) -> None:
        """Raise `BadInput` unless this kind of model has all *modules*."""
        for module in modules:
            if module not in self.kind.modules:
                right = ", ".join(self.kind.modules)
                raise BadInput(f"{self.kind.name} has no module {module!r}", right=f"one of {right}")
