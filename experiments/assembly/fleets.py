"""Replicas that come and go: the fleet of an experiment with an autoscaler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from servetwin.core import BadInput
from servetwin.core.fleets.fleet import Fleet, Rules
from servetwin.core.random_streams import stream

from ..registry import autoscaler_registry
from ..spec.experiment import Experiment
from ..spec.keys.autoscaler import AutoscalerSpec, StartSpec

if TYPE_CHECKING:
    from servetwin.core import Worker


def make_fleet(spec: AutoscalerSpec, workers: Sequence[Worker], replicas: int, seed: int) -> Fleet:
    """The fleet of *workers*, those of each of so many *replicas* together, as *spec* scales it."""
    size = len(workers) // replicas
    told = spec.model_dump(include={"least", "every", "window", "stale", "up_after", "down_after", "cooldown"})
    initial = spec.least if spec.initial is None else spec.initial
    rules = Rules(most=replicas, initial=initial, **told)
    scaler = autoscaler_registry.make(spec.name, spec.params)
    copies = [workers[place : place + size] for place in range(0, len(workers), size)]
    return Fleet(copies, scaler, rules, _starting(spec.start, seed))


def _starting(spec: StartSpec, seed: int) -> Callable[[int], float]:
    """Seconds that the next start of a replica takes; drawn ones come from a stream of each replica."""
    seconds = spec.seconds
    if spec.draw == "constant":
        return lambda _: seconds
    source = cache(lambda replica: stream(seed, f"starts/{replica}"))
    return lambda replica: seconds * source(replica).standard_exponential()


def refuse(experiment: Experiment, who: str, right: str) -> None:
    """Raise `BadInput` if replicas of *experiment* come and go, or devices fail, which *who* does not know."""
    if experiment.deployment.autoscaler is not None:
        what = f"{who} knows no replicas that come and go"
        raise BadInput(what, where="deployment.autoscaler", right=right)
    if experiment.deployment.faults is not None:
        what = f"{who} knows no devices that fail"
        raise BadInput(what, where="deployment.faults", right=right.replace("autoscaler", "faults"))
