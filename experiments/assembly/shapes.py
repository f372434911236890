"""The shapes of an experiment's requests, and workers that serve them: what they are told, and how many go
together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from servetwin.core import BadInput, Policy, Shape, Stage, Worker
from servetwin.core.serving.acting_worker import ActingShapedWorker
from servetwin.core.serving.shape_turns import ShapeTurns
from servetwin.core.serving.shaped_worker import Estimate, ShapedView, ShapedWorker, SlotMemory

from ..registry import policy_registry
from ..spec.experiment import Experiment, PolicySpec, WorkerSpec
from ..spec.shapes import TraceShape, shapes_in
from ..workload.requests import read_trace
from .pipeline import estimates, seconds_alone

if TYPE_CHECKING:
    from servetwin.profiles import Kind, Profile

Profiles = Mapping[str, "Profile"]


def shapes_of(experiment: Experiment) -> list[Shape]:
    """The shapes that requests of *experiment* may have; none if all are as the profile was measured."""
    load = experiment.workload
    if not load.shaped:
        return []
    draws = [load.shape, *(own.shape for own in load.classes.values())]
    if load.classes and all(own.shape is not None for own in load.classes.values()):
        draws = draws[1:]  # nobody takes the usual one
    found = [shape for draw in draws for shape in shapes_in(draw)]
    if any(isinstance(draw, TraceShape) for draw in draws):
        trace = read_trace(experiment)
        assert trace is not None
        found += trace.overview.shapes
        if len({shape.guidance is None for shape in found}) > 1:
            what = "some requests say their guidance, and others do not, so none of these share a batch"
            raise BadInput(what, where=f"{trace.where}: guidance", right="a value in each line, or no such column")
    return list(dict.fromkeys(found))


def refuse_groups(experiment: Experiment, who: str) -> None:
    """Raise `BadInput` if a worker serves a group of devices, of which *who* knows nothing."""
    for i, spec in enumerate(experiment.deployment.workers):
        if spec.gpus is not None:
            what = f"groups of devices are simulated only: {who} knows nothing of them"
            raise BadInput(what, where=f"deployment.workers.{i}.gpus", right="servetwin run, in simulation")


def refuse(experiment: Experiment, who: str) -> None:
    """Raise `BadInput` if requests have shapes, policies may do something with steps, or devices come in groups, of
    which *who* knows nothing."""
    refuse_groups(experiment, who)
    for name, module in experiment.pipeline.modules.items():
        if module.actions is not None:
            what, right = f"{who} knows nothing of steps that are left out", "an experiment without actions"
            raise BadInput(what, where=f"pipeline.modules.{name}.actions", right=right)
    if experiment.workload.shaped:
        right = "an experiment whose requests are all as its profiles were measured"
        raise BadInput(f"{who} knows nothing of shapes of requests", where="workload.shape", right=right)


def check_sizes(shapes: Sequence[Shape], profiles: Profiles) -> None:
    """Raise `BadInput` for the first of *shapes* of a size that the model of a profile cannot make, if it is one that
    comes along."""
    from servetwin.real.diffusion.model_registry import KINDS

    names = {profile.data.model for profile in profiles.values()}
    for kind in KINDS.values():
        if kind.title.split(",")[0] in names:
            for shape in shapes:
                kind.check_size(shape)


def at(profiles: Profiles, shape: Shape) -> dict[str, Profile]:
    """*profiles* for requests of that *shape*. Raises `BadInput` where one does not know it."""
    return {device: profile.at(shape) for device, profile in profiles.items()}


def alone_by_shape(experiment: Experiment, profiles: Profiles, kind: Kind) -> dict[Shape, dict[str, float]]:
    """Seconds of each module for a request of each shape alone."""
    return {s: seconds_alone(experiment, at(profiles, s), kind) for s in shapes_of(experiment)}


def estimates_by_shape(experiment: Experiment, profiles: Profiles) -> dict[Shape, dict[int, Estimate]]:
    """What the policy of each worker is told of modules, by shape and by the worker's place in the deployment."""
    return {s: estimates(experiment, at(profiles, s)) for s in shapes_of(experiment)}


def limits(experiment: Experiment, spec: WorkerSpec, profiles: Profiles, shapes: Sequence[Shape]) -> dict[Shape, int]:
    """The largest batch of each of *shapes* that the worker of *spec* runs: its own limit, or what was measured of
    the shape if that is less and sizes beyond a table are not held."""
    assert spec.limit is not None
    assert spec.device is not None
    kinds: tuple[Kind, ...] = (experiment.deployment.estimates, "scheduler")
    found = {}
    for shape in shapes:
        most = spec.limit
        if not experiment.time.hold:
            profile = profiles[spec.device].at(shape)
            most = min(most, *(profile.table(module, *kinds).largest for module in spec.modules))
        found[shape] = most
    return found


def allotted(
    spec: WorkerSpec, sharing: int, profiles: Profiles, most: Mapping[Shape, int]
) -> tuple[dict[Shape, int], SlotMemory | None]:
    """The largest batches of each shape, *most* at most, for which the device's memory has room, and what is left for
    slots; no memory if the profile says nothing of it. Each of the *sharing* workers of a device has an equal part of
    what the weights leave, and what its largest batch takes is set aside.

    Raises `BadInput` if a single request of some shape does not fit.
    """
    profile = profiles[spec.device or ""]
    known = {shape: memory for shape in most if (memory := profile.memory_of(shape)) is not None}
    data = profile.data
    if not known or data.shapes is None or data.shapes.weights_gib is None or data.device.memory_gib is None:
        return dict(most), None
    room = (data.device.memory_gib - data.shapes.weights_gib) / sharing
    found = {shape: min(n, known[shape].peak.largest) for shape, n in most.items()}

    def spared() -> float:
        return room - max(known[shape].peak(n) for shape, n in found.items())

    for shape, memory in known.items():
        while found[shape] and memory.peak(found[shape]) + found[shape] * memory.slot > room:
            found[shape] -= 1
        if not found[shape]:
            need = memory.peak(1) + memory.slot
            what = f"a request of {shape} takes {need:.3g} GiB, and {room:.3g} GiB are left of {spec.device}"
            raise BadInput(what, where=f"{profile.name}: shapes", right="a smaller shape, or fewer workers there")
    while tight := [shape for shape, n in found.items() if n * known[shape].slot > spared()]:
        largest = max(found, key=lambda shape: known[shape].peak(found[shape]))
        less = next((shape for shape in (*tight, largest) if found[shape] > 1), None)
        if less is None:
            what = f"beside a batch of {largest} there is no room on {spec.device} for a request of {tight[0]}"
            raise BadInput(what, where=f"{profile.name}: shapes", right="smaller shapes, or fewer workers there")
        found[less] -= 1
    return found, SlotMemory(spared(), {shape: memory.slot for shape, memory in known.items()})


def told(workers: Sequence[Worker]) -> dict[str, dict[str, Any]]:
    """Of each worker, the largest batch of each shape, and the GiB that there are for requests, where memory is
    known."""
    return {
        worker.name: {
            "limits": {str(shape): most for shape, most in worker.view.limits.items()},
            **({"gib": worker.memory.gib} if worker.memory is not None else {}),
        }
        for worker in workers
        if isinstance(worker, ShapedWorker)
    }


def make_policy(chosen: PolicySpec, shapes: Sequence[Shape]) -> Policy:
    """The policy of a worker whose requests are of these *shapes*: of one that does not heed them, an object for
    each."""

    def made() -> Policy:
        return cast("Policy", policy_registry.make(chosen.name, chosen.params))

    alone = made()
    return alone if len(shapes) == 1 or alone.heeds_shapes else ShapeTurns(made, shapes)


def shaped_worker(
    experiment: Experiment,
    place: int,
    stage: Stage,
    profiles: Profiles,
    told: Mapping[Shape, Mapping[int, Estimate]],
    slo_factor: float | None,
) -> ShapedWorker:
    """The worker at this *place* of the deployment."""
    spec, shapes = experiment.deployment.workers[place], list(told)
    policy = make_policy(experiment.policies[place], shapes)
    of_shape = {shape: by_worker[place] for shape, by_worker in told.items()}
    sharing = sum(w.device == spec.device for w in experiment.deployment.workers)
    most, memory = allotted(spec, sharing, profiles, limits(experiment, spec, profiles, shapes))
    view = ShapedView(stage, of_shape, most, name=spec.name or "", slo_factor=slo_factor)
    kind = ShapedWorker if stage.actions is None else ActingShapedWorker
    return kind(stage, policy, view, device=spec.device or "", intake=spec.intake, memory=memory)
