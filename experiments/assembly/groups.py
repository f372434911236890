"""Workers that serve a group of devices (``gpus``): what they and their policies are told of times by degree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from servetwin.core import BadInput, Policy, Shape, Stage, WorkerView
from servetwin.core.groups.group_worker import GroupWorker
from servetwin.core.serving.loop import ServingLoop
from servetwin.core.serving.shaped_worker import ShapedView

from ..registry import policy_registry
from ..spec.experiment import Experiment
from .pipeline import Estimate, estimates
from .shapes import estimates_by_shape, limits, shapes_of

if TYPE_CHECKING:
    from servetwin.profiles import Profile


def group_worker(
    experiment: Experiment,
    place: int,
    stage: Stage,
    profiles: Mapping[str, Profile],
    slo_factor: float | None,
) -> GroupWorker:
    """The worker at this *place* of the deployment. Raises `BadInput` if its profile knows of no groups, or its
    policy names no devices."""
    from servetwin.profiles.tables.costs import REGROUP

    spec, chosen = experiment.deployment.workers[place], experiment.policies[place]
    assert spec.gpus is not None
    assert spec.device is not None
    profile, where = profiles[spec.device], f"deployment.workers.{place}.gpus"
    degrees = [degree for degree in profile.degrees if degree <= spec.gpus]
    if len(degrees) < 2:
        what = f"{profile.name} does not know what a step takes on several devices at once"
        raise BadInput(what, where=where, right="a profile with degrees, or no key gpus")
    policy = cast("Policy", policy_registry.make(chosen.name, chosen.params))
    if not policy.names_devices:
        what = f"{chosen.name} does not say on which devices of a group a batch runs"
        raise BadInput(what, where="policy", right="fixed-degree, or a policy with names_devices = True")
    kinds = shapes_of(experiment)
    if len(kinds) > 1 and not policy.heeds_shapes:
        what = f"{chosen.name} knows nothing of shapes, and requests are of {len(kinds)}"
        raise BadInput(what, where="policy", right="fixed-degree, or a policy with heeds_shapes = True")
    told, most = _told(experiment, place, profiles, kinds, degrees)

    def estimate(module: str, batch: int, degree: int, shape: Shape | None) -> float:
        return told[degree][shape if shape is not None or None in told[degree] else kinds[0]](module, batch)

    more: dict[str, Any] = {"name": spec.name or "", "slo_factor": slo_factor}
    view: WorkerView
    if kinds:
        alone = {shape: own for shape, own in told[1].items() if shape is not None}
        view = ShapedView(stage, alone, {shape: most[shape] for shape in alone}, **more)
    else:
        view = WorkerView(stage, told[1][None], limit=most[None], **more)
    change = profile.costs.get(REGROUP(stage.loop)) if stage.loop else None
    paid = change is not None and experiment.time.costs
    return GroupWorker(
        stage,
        policy,
        view,
        size=spec.gpus,
        degrees=degrees,
        estimate=estimate,
        change=None if change is None else change.scalar() if paid else 0.0,
        device=spec.device,
    )


def _told(
    experiment: Experiment,
    place: int,
    profiles: Mapping[str, Profile],
    kinds: Sequence[Shape],
    degrees: Sequence[int],
) -> tuple[dict[int, dict[Shape | None, Estimate]], dict[Shape | None, int]]:
    """What the policy at that *place* is told of modules, by degree and shape, and the largest batch by shape that
    all degrees allow."""
    spec = experiment.deployment.workers[place]
    assert spec.device is not None
    assert spec.limit is not None
    told: dict[int, dict[Shape | None, Estimate]] = {}
    most: dict[Shape | None, int] = dict.fromkeys(kinds or (None,), spec.limit)
    for degree in degrees:
        on = {**profiles, spec.device: profiles[spec.device].on(degree)}
        if kinds:
            by_worker = estimates_by_shape(experiment, on)
            told[degree] = {shape: by_worker[shape][place] for shape in kinds}
            here = limits(experiment, spec, on, kinds)
            most = {shape: min(n, here[shape]) for shape, n in most.items() if shape is not None}
        else:
            told[degree] = {None: estimates(experiment, on)[place]}
    return told, most


def usage(loop: ServingLoop) -> dict[str, Any]:
    """What the devices of each group of *loop* did, by worker."""
    return {worker.name: worker.usage() for worker in loop.workers if isinstance(worker, GroupWorker)}
