"""A device with a model on it: the slots of its requests, and the runners that run its modules."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from servetwin.core import BadInput, Request, ServeTwinError, Shape

from .graph_runner import WIDTH, GraphRunner
from .kind import Kind
from .networks import REUSE, Model
from .noise_schedule import begun_anew, steps_table
from .options import Options

#: Iterations of a request, by the module that loops.
Work = Mapping[str, int]
#: A number that no request has.
NOBODY = -1


class Progress:
    """Where a request stands on a device: its *slot*, and the rows of its denoising steps once it has begun them.
    *shape* is what the request says (None: nothing), *loop* the module whose steps they are."""

    __slots__ = ("done", "loop", "request", "rows", "shape", "slot")

    def __init__(self, request: int, slot: int, shape: Shape | None = None) -> None:
        self.request = request
        self.slot = slot
        self.shape = shape
        self.rows: np.ndarray | None = None
        self.loop: str | None = None
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
    """*kind* on the torch device *device*, for requests of these *shapes* (None: of the model's own)."""

    def __init__(
        self, kind: Kind, options: Options, device: torch.device, shapes: Iterable[Shape | None] = (None,)
    ) -> None:
        self.kind = kind
        self.options = options
        self.device = device
        self.gpu = device.type == "cuda"
        self.sampler = kind.sampling.chosen(options.scheduler)
        self.model = Model(kind, options, device, shapes)
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

    def lay_out(self, shapes: Sequence[Shape | None]) -> None:
        """Be there for requests of these *shapes*. The networks stay; what was made for other shapes is let go."""
        if self.model.rooms.keys() >= set(shapes):
            return
        for made in (self.runners, self.seconds, self._spare, self._used):
            made.clear()
        self.model.lay_out(shapes)
        self.reset()

    def slot_mib(self) -> dict[str, float]:
        """MiB that a request takes here, by its shape where requests say one."""
        return {str(shape or self.kind.name): size / 2**20 for shape, size in self.model.slot_bytes.items()}

    def _limits(self, module: str, limit: int | Mapping[Shape | None, int]) -> dict[Shape | None, int]:
        """The largest batches of *module* by shape; where it is fixed, all are run as of the first."""
        shapes = [*self.model.rooms]
        limits = dict.fromkeys(shapes, limit) if isinstance(limit, int) else dict(limit)
        return {shapes[0]: max(limits.values())} if module in self.kind.fixed else limits

    def warm(self, module: str, limit: int | Mapping[Shape | None, int]) -> GraphRunner:
        """The runner of *module* for batches of up to *limit* (of each shape), with every size run once."""
        limits = self._limits(module, limit)
        runner = self.runners.get(module)
        if runner is None or runner.limit < max(limits.values()):
            runner = self.runners[module] = self._new(module, max(limits.values()))
        self._warm(runner, limits)
        return runner

    def lease(self, module: str, limit: int | Mapping[Shape | None, int], lane: object) -> GraphRunner:
        """A runner of *module* as `warm` gives it, which is *lane*'s alone until `give_back`.

        A runner's rows, its cursor on the device and the memory of its graphs serve one batch at a time: two lanes on
        one runner would read each other's rows.
        """
        first = self.runners.get(module)
        if first is None or first not in self._used:
            runner = self.warm(module, limit)
        else:
            limits = self._limits(module, limit)
            most = max(limits.values())
            spare = self._spare.setdefault(module, [])
            idle = next((u for u in spare if u not in self._used and u.limit >= most), None)
            runner = idle or self._new(module, most)
            self._warm(runner, limits)
            if idle is None:
                spare.append(runner)
        self._used[runner] = lane
        return runner

    def give_back(self, lane: object) -> None:
        """*lane* has no more use for its runners."""
        self._used = {runner: user for runner, user in self._used.items() if user is not lane}

    def _new(self, module: str, limit: int) -> GraphRunner:
        if limit > self.options.slots:
            what = f"batches of up to {limit} do not fit into {self.options.slots} slots"
            raise BadInput(what, where="--slots", right=f"{limit}, or more")
        bodies = {shape: room.bodies[module] for shape, room in self.model.rooms.items()}
        return GraphRunner(
            module, bodies, limit, self.device, eager=self.options.eager, priority=self.priority(module)
        )

    def _warm(self, runner: GraphRunner, limits: Mapping[Shape | None, int]) -> None:
        """Let *runner* run every batch size of each shape once that it has not yet; large images first, since the
        others then fit into their memory."""
        began, module = time.perf_counter(), runner.name
        for shape in sorted(limits, key=lambda shape: -1 if shape is None else -shape.pixels):
            known, most = runner.limits[shape], limits[shape]
            if known >= most:
                continue
            try:
                with torch.no_grad():
                    runner.warm(range(known + 1, most + 1), shape)
            except torch.OutOfMemoryError:
                of = f" of {shape}" if shape is not None else ""
                what = f"batches of up to {most}{of} do not fit into the memory of {self.device} ({module})"
                raise BadInput(what, right="smaller batches or shapes, or fewer --slots") from None
        self.seconds.setdefault(module, time.perf_counter() - began)  # later ones find the programs

    def priority(self, module: str) -> int:
        """The priority of the streams on which *module* is captured and runs: -1 goes before 0."""
        first = self.options.first
        return -1 if first != "none" and (first == "loop") == (module in (*self.kind.loops, REUSE)) else 0

    # -- slots ------------------------------------------------------------------------------------------

    def take(self, request: Request) -> Progress:
        """The request's progress here; a new slot and what it brings if it comes for the first time."""
        with self._lock:
            progress = self.progress.get(request.id)
            known = progress is not None
            if progress is None:
                progress = self.occupy(request.id, request.shape)
        if self.pending:
            self.wait_for(progress.slot)
        if not known:
            self.model.bring(progress.slot, request.id, progress.shape)
        return progress

    def wait_for(self, slot: int, stream: torch.cuda.Stream | None = None) -> None:
        """Let *stream* (None: the current one) wait for whoever touched *slot* last on a stream that may not be done.

        Once is enough: whoever comes next is ordered after the one that waited.
        """
        event = self.pending.pop(slot, None)
        if event is not None:
            (stream or torch.cuda.current_stream(self.device)).wait_event(event)

    def occupy(self, request: int, shape: Shape | None) -> Progress:
        """A free slot for *request*, which is of that *shape*. Raises `ServeTwinError` if there is none."""
        if not self.free:
            raise ServeTwinError(f"more than {self.options.slots} requests have begun: raise the number of slots")
        progress = self.progress[request] = Progress(request, self.free.pop(), shape)
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
        mine = self.progress[request]
        theirs = other.occupy(request, mine.shape)
        theirs.rows, theirs.done, theirs.loop = mine.rows, mine.done, mine.loop
        if mine.rows is not None:
            theirs.rows = mine.rows.copy()
            theirs.rows[:, 0] = theirs.slot
        with contextlib.ExitStack() as streams:
            for slots in (other, self):  # on one device the copy is on the source's stream
                if slots.transfer is not None:
                    streams.enter_context(torch.cuda.stream(slots.transfer))
            self._copy(mine, other, theirs.slot, after, way, begin)
        self.release(request)
        way.host = time.perf_counter() - begin
        return way

    def _copy(
        self,
        mine: Progress,
        other: DeviceSlots,
        their: int,
        after: torch.cuda.Event | None,
        way: HandOver,
        begin: float,
    ) -> None:
        slot, stream = mine.slot, self.transfer
        if stream is not None:
            self.wait_for(slot, stream)
            other.wait_for(their, stream)
            if after is not None:
                stream.wait_event(after)
            if other.gpu:
                way.begun = torch.cuda.Event(enable_timing=True)
                way.begun.record(stream)
                way.ahead = time.perf_counter() - begin
        there = other.model.rooms[mine.shape].state
        for name, tensor in self.model.rooms[mine.shape].state.items():
            there[name][their].copy_(tensor[slot], non_blocking=True)
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
        self.occupy(NOBODY, next(iter(self.model.rooms)))
        self.hand_over(NOBODY, other).seconds()
        other.release(NOBODY)

    # -- work, on the current stream ---------------------------------------------------------------------

    def begin(self, progress: Progress, steps: int, loop: str | None = None, work: Work | None = None) -> None:
        """Set up noise and schedule of a request that starts *steps* steps of *loop* (None: the first).

        Of a model with several loops *work* says how many steps each has of the request (None: this one has all):
        together they are one noise schedule, of which a later loop has the end, and the latents of the one before.
        """
        options, kind = self.options, self.kind
        loop = loop or kind.loop
        before, whole = 0, steps
        if len(kind.loops) > 1 and work is not None:
            before, whole = kind.steps_before(loop, work), kind.steps(work)
        tokens = self.model.rooms[progress.shape].tokens
        table = steps_table(self.sampler, whole, kind.sampling, tokens)
        part = table.rows[before : before + steps]
        if before:
            part = begun_anew(part)
        rows = np.empty((steps, WIDTH), dtype=np.float32)
        rows[:, 0] = progress.slot
        rows[:, 1:5] = part[:, :4]
        rows[:, 5] = kind.guidance
        rows[:, 6:] = part[:, 4:]
        progress.rows, progress.loop = rows, loop
        progress.done = 0
        if before:
            return
        seed = (options.seed << 32) + progress.request
        with self._lock:
            self.model.noise(progress.slot, seed, table.first, self.generator, progress.shape)

    def step(self, batch: Sequence[Progress], runner: GraphRunner | None = None) -> None:
        """One iteration, on *runner* (None: the first). Who has done all its steps just stays: its latents do not
        change."""
        runner = runner or self.runners[batch[0].loop or self.kind.loop]
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
        runner.launch(len(batch), batch[0].shape)

    def once(self, module: str, batch: Sequence[Progress], runner: GraphRunner | None = None) -> None:
        """Run a module without a loop, on *runner* (None: the first)."""
        runner = runner or self.runners[module]
        into = runner.rows()
        for i, progress in enumerate(batch):
            into[i, 0] = progress.slot
        runner.launch(len(batch), next(iter(runner.bodies)) if module in self.kind.fixed else batch[0].shape)

    def check(self, modules: Sequence[str]) -> None:
        """Raise `BadInput` unless this kind of model has all *modules*."""
        for module in modules:
            if module not in self.kind.modules:
                right = ", ".join(self.kind.modules)
                raise BadInput(f"{self.kind.name} has no module {module!r}", right=f"one of {right}")
