"""A model on its devices, warmed up, and the runs that it serves."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from servetwin.core import (
    BadInput,
    Batch,
    Recorder,
    Request,
    ServeTwinError,
    ServingLoop,
    Shape,
    Stage,
    Summary,
    Task,
    Worker,
)
from servetwin.core.errors import PolicyFault, Stopped
from servetwin.core.faults.faults import Faults
from servetwin.core.request import Place
from servetwin.core.serving.pool import Pool

from .cpu_affinity import pinned_core
from .diffusion.device_slots import DeviceSlots
from .diffusion.execution import Execution, execution_of
from .diffusion.kind import Kind
from .diffusion.lanes import Sink, limits_of
from .diffusion.model_registry import find
from .diffusion.options import Options
from .diffusion.process_lane import RemoteSlots
from .executor import RealExecutor
from .tools.script_tool import ScriptTool

#: The key of experiments that says who fails.
FAULTS = "deployment.faults"


@dataclass
class Spell:
    """A batch as it ran: what a report and a profile need of it. Times in seconds since the run began."""

    worker: str
    start: float
    end: float
    size: int
    iterations: int
    joins: int
    leaves: int
    shape: Shape | None = None  # of its requests
    reused: int = 0  # of its requests, those whose network stood still
    lost: bool = False  # it was cut off, or its worker failed between two batches


class Log(Recorder):
    """Passes everything on to *inner*, keeps what the report needs, and tells *executor* who has ended.

    What *inner* does takes time, which the next batch would wait for: it is done in `write`, at best while the device
    computes. Unless it *passes_batches*, batches are for the report only.
    """

    def __init__(self, inner: Recorder, passes_batches: bool = True) -> None:
        self.inner = inner
        self.passes_batches = passes_batches
        self.wants_batches = inner.wants_batches
        self.summary = inner.summary
        self.executor: RealExecutor | None = None
        self.spells: list[Spell] = []
        self.unwritten: list[Batch | tuple[Request, float]] = []

    @property
    def attempts(self) -> Mapping[int, Sequence[Mapping[str, Any]]]:
        """Those of *inner*, which writes them."""
        return self.inner.attempts

    @attempts.setter
    def attempts(self, attempts: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        self.inner.attempts = attempts

    def arrived(self, request: Request) -> None:
        self.inner.arrived(request)

    def ended(self, request: Request, now: float) -> None:
        self.unwritten.append((request, now))
        if request.id in self.inner.attempts or _flying(request):
            self.write()  # what a batch in flight does to it is no part of its record
        if self.executor is not None:
            self.executor.forget(request.id)

    def write(self) -> None:
        """Pass on what is over, in the order in which it ended."""
        for thing in self.unwritten:
            if isinstance(thing, Batch):
                self.inner.batch(thing)
            else:
                self.inner.ended(*thing)
        self.unwritten.clear()

    def batch(self, batch: Batch) -> None:
        batch.tasks = tuple(batch.tasks)  # the policy may go on with its list
        if self.passes_batches:
            self.unwritten.append(batch)
        if batch.lost:
            self.write()  # before its worker is told of as failed
            return
        self.spells.append(
            Spell(
                batch.worker.name,
                batch.start,
                batch.end,
                batch.size,
                batch.iterations,
                len(batch.joiners),
                batch.leaves,
                batch.tasks[0].request.shape if batch.tasks else None,
                len(batch.reused),
            )
        )

    def failed(self, place: Place, now: float) -> None:
        self.write()
        self.spells.append(Spell(place.name, now, now, 0, 0, 0, 0, lost=True))
        self.inner.failed(place, now)

    def batch_failed(self, batch: Batch, now: float) -> None:
        self.write()
        self.inner.batch_failed(batch, now)

    def again(self, lost: Task, task: Task) -> None:
        self.inner.again(lost, task)


def _flying(request: Request) -> bool:
    """Whether a batch that is not over has *request* in it."""
    for task in request.tasks:
        batch = task.flight if task.finished is None else None
        if batch is not None and task in batch.tasks:
            return True
    return False


@dataclass
class Report:
    """What a run says beside its records. *lateness* is the client's (sent minus due), *gap* lies between the end
    of an iteration and the start of the next of the same worker where some of its requests go on; both in
    milliseconds. *iteration_ms* is by worker and batch size ("4", or "4 of 512x512" where requests have shapes)."""

    summary: Summary
    lateness_ms: dict[str, float]
    gap_ms: dict[str, float]
    iteration_ms: dict[str, dict[str, dict[str, float]]]
    spells: list[Spell] = field(repr=False)
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)  #: how the calls of each pool ended
    #: From one device to another ("gpu0 to gpu1"), in milliseconds: "ms" until all of a request was there, "host_ms"
    #: for how long the serving thread was busy with it.
    hand_overs: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    restarts: dict[str, list[float]] = field(default_factory=dict)  #: seconds that each took, by worker
    #: By profile, all time of iterations over that by the profile; set by who knows the profiles.
    over_profile: dict[str, float] = field(default_factory=dict)
    moves: int | None = None  #: of the serving thread, to less disturbed cores, where it looks for them

    def as_dict(self) -> dict[str, Any]:
        """The content of ``real.json``."""
        found: dict[str, Any] = {
            "lateness_ms": self.lateness_ms,
            "gap_ms": self.gap_ms,
            "iteration_ms": self.iteration_ms,
        }
        if self.over_profile:
            found["over_profile"] = self.over_profile
        if self.moves is not None:
            found["moves"] = self.moves
        if self.hand_overs:
            found["hand_overs"] = self.hand_overs
        if self.restarts:
            found["restarts"] = self.restarts
        return {**found, "tools": self.tools} if self.tools else found


class Server:
    """The model *kind* as *options* say, served to by the workers of `serve`; built and warmed up once for many
    runs.
    """

    def __init__(self, kind: Kind | str, options: Options | None = None) -> None:
        self.kind = find(kind) if isinstance(kind, str) else kind
        self.options = options or Options()
        self.by_device: dict[str, DeviceSlots | RemoteSlots] = {}  # device name of workers -> its slots
        self.pinned = pinned_core(self.options.pinned_core)  # for threads that poll a GPU

    def place(self, device: str, shapes: Sequence[Shape | None] | None = None) -> DeviceSlots | RemoteSlots:
        """What stands for the device that workers call *device*: the model there, or processes that have it; ready
        for requests of these *shapes* (as `device_slots`)."""
        if not self.options.processes:
            return self.device_slots(device, shapes)
        slots = self.by_device.get(device)
        if not isinstance(slots, RemoteSlots):
            actual = self.options.torch_device(device)
            there = (s for s in self.by_device.values() if isinstance(s, RemoteSlots) and s.device == actual)
            slots = next(there, None) or RemoteSlots(self.kind, self.options, actual)
            self.by_device[device] = slots
        if shapes is not None:
            slots.lay_out(shapes)
        return slots

    def device_slots(self, device: str, shapes: Sequence[Shape | None] | None = None) -> DeviceSlots:
        """The model on the device that workers call *device*, in this process, with slots for requests of these
        *shapes*; left out, of those for which it has some, at first the model's own."""
        slots = self.by_device.get(device)
        if not isinstance(slots, DeviceSlots):
            actual = self.options.torch_device(device)
            if actual.type == "cuda":
                torch.backends.cudnn.benchmark = True
            slots = self.by_device[device] = DeviceSlots(self.kind, self.options, actual, shapes or (None,))
        elif shapes is not None:
            slots.lay_out(shapes)
        return slots

    def serve(
        self,
        stages: Sequence[Stage],
        workers: Sequence[Worker],
        requests: Iterable[Request],
        recorder: Recorder | None = None,
        *,
        stop_after: float | None = None,
        sink: Sink | None = None,
        tools: Mapping[str, ScriptTool] | None = None,
        **wiring: Any,
    ) -> Report:
        """Serve *requests* for real with *workers*, whose stages are *stages*; *wiring* goes to the `ServingLoop`.
        *tools* are what pools of threads call, by the pool's name.

        Every batch size is warmed up before the clock starts. Whatever ends the run early (Ctrl-C, memory that ran
        out, a lane that broke) leaves the records intact, with the live requests failed, and is raised as
        `ServeTwinError` (Ctrl-C, and `Stopped` by a signal, as itself).
        """
        log = Log(recorder or Recorder())
        executor, loop = self.prepare(stages, workers, log, sink=sink, tools=tools, **wiring)
        try:
            executor.play(loop, list(requests), stop_after)
            loop.look_over()
        except (Exception, KeyboardInterrupt, Stopped) as problem:
            reason = say(problem)
            if executor.broken is not None and len(executor.by_device) > 1:
                reason = f"{executor.broken.name} on {executor.broken.device}: {reason}"
            loop.close_books()  # whatever they say now, it is no news
            loop.stop(reason)
            if isinstance(problem, KeyboardInterrupt | Stopped | PolicyFault):
                raise
            raise ServeTwinError(f"the run ended early: {reason}") from problem
        finally:
            log.write()
            executor.close()
        found = report(log, executor.lateness)
        for (source, target), timed in executor.hand_overs.items():
            found.hand_overs[f"{source} to {target}"] = {
                "ms": _spread([way.seconds() * 1e3 for way in timed]),
                "host_ms": _spread([way.host * 1e3 for way in timed]),
            }
        if executor.pinned is not None:
            found.moves = executor.pinned.moves
        found.restarts = executor.restarts
        found.tools = {name: tool.told() for name, tool in executor.tools.items()}
        return found

    def prepare(
        self,
        stages: Sequence[Stage],
        workers: Sequence[Worker],
        log: Log,
        *,
        sink: Sink | None = None,
        exercise: float = 0.2,
        tools: Mapping[str, ScriptTool] | None = None,
        **wiring: Any,
    ) -> tuple[RealExecutor, ServingLoop]:
        """An executor with its lanes warmed up, and the loop on it."""
        served = [worker for worker in workers if not isinstance(worker, Pool)]
        shapes = list(dict.fromkeys(shape for worker in served for shape in limits_of(worker)))
        by_device = {name: self.place(name, shapes) for name in dict.fromkeys(w.device for w in served)}
        devices = dict.fromkeys(by_device.values())  # several may be the same
        if self.options.processes and len(devices) > 1 and _passes_on(by_device, served):
            what = f"workers in processes of their own on {len(devices)} devices, between which requests go"
            raise BadInput(what, right="one device, or all workers in one process")
        _may_fail(by_device, served, wiring.get("fleet"))
        executor = RealExecutor(by_device, sink, tools, self.pinned)
        try:
            for worker in workers:
                executor.add(worker)
            for slots in devices:
                slots.reset()
                if isinstance(slots, RemoteSlots):
                    slots.open()
                else:
                    _exercise(slots, exercise)
            _meet(by_device, workers)
        except BaseException:
            executor.close()
            raise
        log.executor = executor
        executor.spare = log.write
        executor.zero = time.monotonic()  # what is planned now is planned for a run that begins
        return executor, ServingLoop(stages, workers, executor, log, **wiring)

    def describe(self) -> dict[str, Any]:
        """What ``meta.json`` should say about the real side: versions, devices, options."""
        options = asdict(self.options)
        if not self.options.reuse:
            del options["reuse"]  # as in records of before there was such a thing
        options["weights"] = "random" if self.options.weights is None else self.options.weights.name
        return {
            "kind": "real",
            "model": self.kind.name,
            "options": options,
            "versions": versions(),
            "devices": {
                name: {**device_facts(slots.device), "execution": self.execution(name).as_dict()}
                for name, slots in self.by_device.items()
            },
        }

    def execution(self, device: str) -> Execution:
        """How the loop's network is executed on the device that workers call *device*; no model is built for it."""
        return execution_of(self.options, self.kind, self.options.torch_device(device))


def _may_fail(by_device: Mapping[str, DeviceSlots | RemoteSlots], workers: Sequence[Worker], fleet: Any) -> None:
    """Let *workers* fail if *fleet* says so. Raises `BadInput` where they cannot."""
    fails = isinstance(fleet, Faults)
    for slots in by_device.values():
        if isinstance(slots, RemoteSlots):
            slots.fails = fails
        elif fails:
            what = "workers of one process cannot fail one by one"
            raise BadInput(what, where=FAULTS, right="workers in processes of their own")
    there = Counter(by_device[worker.device] for worker in workers)
    for slots, count in there.items():
        if fails and slots.gpu and count > 1:
            what = f"{count} workers on {slots.device}: on a GPU the slots of all are lost with the first of them"
            raise BadInput(what, where=FAULTS, right="one worker on each GPU (all modules in one), or --device cpu")


def _passes_on(by_device: Mapping[str, DeviceSlots | RemoteSlots], workers: Sequence[Worker]) -> bool:
    """Whether requests go from one device to another that is not the same."""
    stages: dict[object, set[str]] = {}
    for worker in workers:
        stages.setdefault(by_device[worker.device], set()).add(worker.stage.name)
    return len(set().union(*stages.values())) > 1


def _meet(by_device: Mapping[str, DeviceSlots | RemoteSlots], workers: Sequence[Worker]) -> None:
    """Let the devices between which requests will go pass on something once."""
    stages: dict[str, set[str]] = {name: set() for name in by_device}
    for worker in workers:
        if not isinstance(worker, Pool):
            stages[worker.device].add(worker.stage.name)
    for (a, here), (b, there) in itertools.permutations(by_device.items(), 2):
        if isinstance(here, DeviceSlots) and isinstance(there, DeviceSlots) and stages[b] - stages[a]:
            here.meet(there)


def _exercise(slots: DeviceSlots, seconds: float) -> None:
    """Keep a GPU busy for a moment, so that it does not start from its idle clock."""
    runner = next((slots.runners[name] for name in slots.kind.loops if name in slots.runners), None)
    if not slots.gpu or runner is None:
        return
    until = time.monotonic() + seconds
    rows = runner.rows()
    rows[:, 0] = np.arange(runner.limit)
    rows[:, 1:5] = (1.0, 1.0, 1.0, 0.0)
    shape, limit = max(runner.limits.items(), key=lambda item: item[1])
    with torch.no_grad():
        while time.monotonic() < until:
            runner.launch(limit, shape)
            torch.cuda.synchronize(slots.device)


def say(problem: BaseException) -> str:
    """What ended a run, in one line: the reason with which its live requests fail."""
    if isinstance(problem, KeyboardInterrupt):
        return "interrupted"
    if isinstance(problem, torch.OutOfMemoryError):
        return "the device ran out of memory"
    text = [*str(problem).strip().splitlines(), ""][0]
    return text if isinstance(problem, ServeTwinError | Stopped) else f"{type(problem).__name__}: {text}"


def report(log: Log, lateness: Sequence[float]) -> Report:
    """What *log* amounts to."""
    gaps = []
    last: dict[str, Spell] = {}
    durations: dict[str, dict[tuple[str, int], list[float]]] = {}
    for spell in log.spells:
        if spell.lost:
            last.pop(spell.worker, None)
            continue
        before = last.get(spell.worker)
        if before is not None and before.size > before.leaves:
            gaps.append((spell.start - before.end) * 1e3)
        last[spell.worker] = spell
        if not spell.joins and not spell.leaves and not spell.reused:
            key = (str(spell.shape) if spell.shape is not None else "", spell.size)
            durations.setdefault(spell.worker, {}).setdefault(key, []).append((spell.end - spell.start) * 1e3)
    iteration = {
        worker: {
            f"{n} of {shape}" if shape else str(n): {
                "mean": statistics.fmean(d),
                "median": statistics.median(d),
                "p99": float(np.percentile(d, 99)),
                "samples": len(d),
            }
            for (shape, n), d in sorted(sizes.items())
        }
        for worker, sizes in durations.items()
    }
    return Report(log.summary, _spread([x * 1e3 for x in lateness]), _spread(gaps), iteration, log.spells)


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p99 = np.percentile(values, (50, 99))
    return {"median": float(p50), "p99": float(p99), "max": float(max(values)), "samples": len(values)}


def versions() -> dict[str, str]:
    """The versions that a measured time depends on."""
    found = {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")}
    found["python"] = platform.python_version()
    try:
        found["servetwin"] = version("servetwin")
    except ModuleNotFoundError:
        found["servetwin"] = "not installed"
    return found


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, memory and driver of a device."""
    if device.type == "cpu":
        return {
            "name": _processor(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }
    facts = torch.cuda.get_device_properties(device)
    return {
        "name": facts.name,
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _processor() -> str:
    """What the CPU calls itself: a profile is of one kind of CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names) or "CPU"
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def _driver() -> str:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            return next(word for word in file.readline().split() if word[:1].isdigit() and "." in word)
    except (OSError, StopIteration):
        import subprocess

        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
