"""Whether what goes by the clock fits the rest of an experiment file: arrivals whose rate changes over time, or those
of each class, and faults."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from .experiment import DrawnArrivals, Experiment, Misfit, Workload
from .keys.faults import FaultSpec
from .keys.schedule import ByClass, Schedule
from .llm import TokenSLOSpec

Path = tuple[str, ...]
WHOLE: Path = ("workload", "arrivals")

#: The keys that each kind of fault has besides its time and place; in parentheses those that it may have.
FAULT_KEYS = {
    "fail": ((), ("lasts", "until")),
    "crash": (("restart",), ()),
    "pause": ((), ("lasts", "until")),
    "slow": (("factor",), ("lasts", "until")),
    "late": (("seconds",), ("lasts", "until")),
    "lost": ((), ("lasts", "until")),
}
FAULT_EXAMPLES = {
    "restart": "restart: {weights: 12, source: ...}",
    "factor": "factor: 3",
    "seconds": "seconds: 0.5",
}


def schedules(load: Workload) -> Iterator[tuple[Path, Schedule]]:
    """The schedules of *load*, by where they stand: its own, or those of classes."""
    if isinstance(load.arrivals, Schedule):
        yield WHOLE, load.arrivals
    for name, own in load.classes.items():
        if isinstance(own.arrivals, Schedule):
            yield ("workload", "classes", name, "arrivals"), own.arrivals


def follows(load: Workload) -> bool:
    """Whether the trace of *load* only says how fast requests come at each time."""
    return isinstance(load.arrivals, Schedule) and load.arrivals.window is not None


def ends(load: Workload) -> bool:
    """Whether requests of *load* come until a time, and then none."""
    said: list[DrawnArrivals | None]
    said = [own.arrivals for own in load.classes.values()]
    if isinstance(load.arrivals, Schedule):
        said = [load.arrivals]
    elif not isinstance(load.arrivals, ByClass):
        return False
    return bool(said) and all(isinstance(arrivals, Schedule) and arrivals.ends for arrivals in said)


def check(experiment: Experiment) -> None:
    """Raise `Misfit` where a schedule contradicts itself or the rest of *experiment*."""
    load = experiment.workload
    _check_by_class(load)
    for path, schedule in schedules(load):
        _check_factors(path, schedule)
        _check_ends(path, schedule, load)
    if isinstance(load.arrivals, Schedule):
        _check_trace(load, load.arrivals)
    window = experiment.slo.window if isinstance(experiment.slo, TokenSLOSpec) else None
    if window is not None and isinstance(load.arrivals, Schedule | ByClass):
        what = "a window of so many requests is so many seconds at one rate, and this load has none"
        raise Misfit(("slo", "window"), what, "no window")


def _check_by_class(load: Workload) -> None:
    by_class = isinstance(load.arrivals, ByClass)
    if by_class and not load.classes:
        raise Misfit((*WHOLE, "process"), "there are no classes", "workload.classes, each with arrivals")
    if by_class and load.sessions is not None:
        what = "sessions begin by one process"
        raise Misfit((*WHOLE, "process"), what, "gamma, poisson, constant, bursty, schedule or closed")
    if by_class and load.recorded is not None:
        what = "what a trace says stands in its order, and classes come each in its own"
        raise Misfit(("workload", "trace"), what, "lengths and steps that are drawn")
    for name, own in load.classes.items():
        path = ("workload", "classes", name)
        if by_class and own.arrivals is None:
            right = "arrivals: {process: poisson, rate: ...}"
            raise Misfit((*path, "arrivals"), "it does not say when its requests come", right)
        if by_class and own.share is not None:
            raise Misfit((*path, "share"), "how many there are follows from its arrivals", "no share")
        if not by_class and own.arrivals is not None:
            what = "the requests of all classes come by workload.arrivals"
            raise Misfit((*path, "arrivals"), what, "workload.arrivals: {process: by_class}")
        if isinstance(own.arrivals, Schedule) and own.arrivals.window is not None:
            what = "a trace's rate is that of all its requests"
            raise Misfit((*path, "arrivals", "window"), what, "points, wave or spikes")


def _check_factors(path: Path, said: Schedule) -> None:
    if said.rate is None and said.window is None:
        raise Misfit((*path, "rate"), "key 'rate' is missing", "requests per second where the factor is 1")
    if said.points is not None:
        if said.window is not None:
            raise Misfit((*path, "points"), "the factors are those of the trace (window)", "no points, or no window")
        if said.points[0][0] != 0.0:
            raise Misfit((*path, "points"), f"they begin at {said.points[0][0]:g} s", "a first point [0, FACTOR]")
        for (before, _), (at, _) in pairwise(said.points):
            if at <= before:
                raise Misfit((*path, "points"), f"{at:g} s comes after {before:g} s", "times that rise")
        for at, factor in said.points:
            if factor > 1e6 or at > 1e7:
                raise Misfit((*path, "points"), f"[{at:g}, {factor:g}]", "times to 1e7 s, factors to 1e6")
    elif said.between == "ramps":
        raise Misfit((*path, "between"), "there are no points to ramp between", "points: [[0, 1], [60, 2]]")
    last = max((at for at, _ in said.points or []), default=0.0)
    spikes = sorted(said.spikes, key=lambda spike: spike.at)
    for one, other in pairwise(spikes):
        if other.at < one.at + one.seconds:
            what = f"the one at {other.at:g} s begins before that at {one.at:g} s is over"
            raise Misfit((*path, "spikes"), what, "spikes one after the other")
    last = max(last, spikes[-1].at + spikes[-1].seconds if spikes else 0.0)
    ending = (said.points or [[0.0]])[-1][0]
    # A ramp may end where the points begin anew; a step that begins there would never be.
    if said.every is not None and (last > said.every or (ending == said.every and said.between == "steps")):
        what = f"it begins anew after {said.every:g} s, and points or spikes go on to {last:g} s"
        raise Misfit((*path, "every"), what, "points and spikes within it")
    if said.every is not None and said.points is None and not said.spikes and said.window is None:
        raise Misfit((*path, "every"), "there are no points and no spikes to repeat", "no every (a wave repeats)")


def _check_ends(path: Path, said: Schedule, load: Workload) -> None:
    if not said.ends:
        return
    key = "until" if said.until is not None else "window"
    end = f"until {said.until:g} s" if said.until is not None else "until the trace that it follows ends"
    if load.in_turns:
        what = "of sessions the requests are counted, for turns follow each other"
        raise Misfit((*path, key), what, "no until, and workload.requests")
    if load.requests is not None and ends(load):
        what = f"{load.requests} requests are wanted, and all {end}"
        right = "null, or no until" if key == "until" else "null (until: ... ends it sooner, every: ... never)"
        raise Misfit(("workload", "requests"), what, right)


def _check_trace(load: Workload, said: Schedule) -> None:
    if said.window is None:
        return
    if load.trace is None:
        raise Misfit((*WHOLE, "window"), "there is no trace to follow", "workload.trace: {file: ...}, or points")
    if load.trace.windows is not None:
        what = "which window of the trace is replayed depends on the seed, and a load does not"
        raise Misfit(("workload", "trace", "windows"), what, "start and end")
    draws = [*load.steps.values(), *(d for x in load.lengths.values() for d in (x.prompt, x.output, x.prefix))]
    told = load.classes and all(own.share is None for own in load.classes.values())
    shaped = load.shape is not None and load.shape.draw == "trace"
    if told or shaped or any(draw is not None and draw.draw == "trace" for draw in draws):
        what = "the trace says how fast requests come, and others come than those that it holds"
        raise Misfit(("workload", "trace"), what, "steps, lengths, shapes and classes that are drawn")


def check_faults(experiment: Experiment) -> None:
    """Raise `Misfit` where faults contradict themselves or another part of *experiment*."""
    said = experiment.deployment.faults
    if said is None:
        return
    path = ("deployment", "faults")
    for i, fault in enumerate(said.script):
        _check_fault((*path, "script", i), fault)
    _check_together(path, experiment)
    memory = said.out_of_memory
    llms = experiment.pipeline.llms
    if memory is not None and memory.restart is None and llms:
        engines = [w for w in experiment.deployment.workers if w.modules[0] in llms]
        if memory.workers is None or any(w.name in memory.workers for w in engines):
            what = "an engine that runs out of memory does not go on"
            right = "restart: {weights: 12, source: ...}, or the workers of other modules under workers"
            raise Misfit((*path, "out_of_memory", "restart"), what, right)


def _check_together(path: Path, experiment: Experiment) -> None:
    """Raise `Misfit` if *experiment* has something that is not known to go on after a fault."""
    plan = experiment.deployment
    refused: list[tuple[bool, str, str]] = [
        (plan.autoscaler is not None, "replicas that come and go", "no autoscaler"),
        (plan.handover is not None, "prefill and decode apart", "workers without a role"),
        (plan.cards is not None, "cards that several models share", "no cards"),
        (
            any(own.enters is not None for own in experiment.workload.classes.values()),
            "classes that enter single modules",
            "no key enters",
        ),
        (any(w.gpus is not None for w in plan.workers), "groups of devices", "no key gpus"),
        (bool(experiment.pipeline.branches), "branches", "a pipeline without branches"),
        (experiment.budget.used, "an SLO that is shared out among stages", "no budget"),
        (
            any(w.engine is not None and w.engine.pipeline_parallel is not None for w in plan.workers),
            "models in stages (pipeline_parallel)",
            "engines without stages",
        ),
    ]
    for there, what, right in refused:
        if there:
            raise Misfit(path, f"faults do not go together with {what}", f"{right}, or no faults")
    devices = [w.device for w in plan.workers if w.modules[0] in experiment.pipeline.llms]
    if len(set(devices)) < len(devices):
        raise Misfit(path, "faults do not go together with engines that share a device", "a device for each engine")


def _check_fault(path: tuple[str | int, ...], fault: FaultSpec) -> None:
    if (fault.device is None) == (fault.worker is None):
        raise Misfit(path, "it happens to a device or to a worker", "one of the keys device and worker")
    if fault.kind == "crash" and fault.worker is None:
        raise Misfit((*path, "device"), "a crash is that of a worker's process", "worker: ..., or kind: fail")
    must, may = FAULT_KEYS[fault.kind]
    for name in ("lasts", "until", "factor", "seconds", "restart"):
        key, there = "for" if name == "lasts" else name, getattr(fault, name) is not None
        if there and name not in (*must, *may):
            raise Misfit((*path, key), f"a fault of the kind {fault.kind} has no {key}", f"no key {key}")
        if not there and name in must:
            raise Misfit((*path, key), f"a fault of the kind {fault.kind} needs it", FAULT_EXAMPLES[name])
    if fault.lasts is not None and fault.until is not None:
        raise Misfit((*path, "until"), "it ends by for already", "one of the keys for and until")
    if fault.until is not None and fault.until <= fault.at:
        raise Misfit((*path, "until"), f"{fault.until:g} is not after at, {fault.at:g}", "at < until")
