"""What an experiment file says of replicas that come and go (docs/guides/autoscaling.md)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag
from servetwin.core.arithmetic import float_sum

from ...registry import autoscaler_registry
from .field_types import NotNegative, PositiveWait, Strict, Wait


class Loading(Strict):
    """Bytes over a bandwidth: *gb* (10^9 bytes) at *gb_per_s*."""

    gb: NotNegative
    gb_per_s: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]


def _kind_of_loading(value: Any) -> str:
    return "mapping" if isinstance(value, dict | Loading) else "seconds"


class StartSpec(Strict):
    """What the start of a replica takes: until its *machine* is there, its *weights* are loaded (seconds, or bytes
    over a bandwidth), and it is warm (*warm_up*), one after the other. *draw*: always that long, or "exponential"ly
    distributed about it, each start by itself. *source* says where the numbers come from."""

    machine: Wait = 0.0
    weights: Annotated[
        Annotated[Wait, Tag("seconds")] | Annotated[Loading, Tag("mapping")], Discriminator(_kind_of_loading)
    ] = 0.0
    warm_up: Wait = 0.0
    draw: Literal["constant", "exponential"] = "constant"
    source: Annotated[str, Field(min_length=1)]

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase."""
        loaded = self.weights
        weights = loaded.gb / loaded.gb_per_s if isinstance(loaded, Loading) else loaded
        return {"machine": self.machine, "weights": weights, "warm_up": self.warm_up}

    @property
    def seconds(self) -> float:
        """Seconds of all phases."""
        return float_sum(self.phases.values())


class Rules(Strict):
    """What is seen to whatever an autoscaler says."""

    least: Annotated[int, Field(ge=0, le=10**6)] = 1
    initial: Annotated[int, Field(ge=0, le=10**6)] | None = None
    every: PositiveWait | None = 10.0
    window: PositiveWait = 60.0
    stale: Wait = 0.0
    up_after: Wait = 0.0
    down_after: Wait = 0.0
    cooldown: Wait = 0.0
    start: StartSpec


class AutoscalerSpec(Rules):
    """An autoscaler by name, entry point, ``package.module:Class`` or file, and its parameters. There are *least* to
    ``deployment.replicas`` replicas; *initial* (by default *least*) are ready when the run begins.

    It is asked each *every* seconds, or (null) whenever a request comes or ends, or a replica is ready; it sees the
    last *window* seconds, and all of it *stale* seconds late. More replicas are started once as many have been wanted
    for *up_after* seconds on end, and fewer kept once no more have been wanted for *down_after*. For *cooldown*
    seconds after a change nothing is changed. *start* is what the start of a replica takes.
    """

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class _Kept(dict[str, type[BaseModel]]):
    """What is kept where another autoscaler is named: all but the parameters of the one before."""

    def get(self, name: str, default: Any = None) -> Any:
        return Rules


KEPT = _Kept()


def with_parameters(spec: AutoscalerSpec | None) -> AutoscalerSpec | None:
    """*spec* with the default parameters of the autoscaler filled in. Raises `BadInput`."""
    if spec is None:
        return None
    return spec.model_copy(update={"params": autoscaler_registry.complete(spec.name, spec.params)})
