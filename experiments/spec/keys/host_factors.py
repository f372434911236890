"""What an experiment file says of the host of its engines: how many times as slow it is as when it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag
from servetwin.core.arithmetic import float_sum
from servetwin.profiles.tables.costs import BEGINS, LAUNCH, LAUNCH_PIECES

from .field_types import Strict

Factor = Annotated[float, Field(ge=0.05, le=100.0, allow_inf_nan=False)]


class HostFactors(Strict):
    """How many times as long as in the profile launching a step takes: as one CUDA *graph*, as graphs piece by piece
    (*pieces*), and kernel by kernel (*kernels*). So ``real.json`` of a run on vLLM tells its own host, by the names
    of the costs."""

    graph: Factor = 1.0
    pieces: Factor = 1.0
    kernels: Factor = 1.0

    def by_cost(self) -> dict[str, float]:
        """By the name of the cost, as `servetwin.profiles.llm.launch_times.over_profile` gives them."""
        return {BEGINS(): self.graph, LAUNCH_PIECES(): self.pieces, LAUNCH(): self.kernels}


def _kind(value: Any) -> str:
    return "mapping" if isinstance(value, dict | HostFactors) else "number"


#: One number for all launches, or one for each way of launching.
Host = Annotated[Annotated[Factor, Tag("number")] | Annotated[HostFactors, Tag("mapping")], Discriminator(_kind)]


def factors_of(host: float | HostFactors) -> dict[str, float]:
    """What *host* says, by the name of the cost."""
    return (host if isinstance(host, HostFactors) else HostFactors(graph=host, pieces=host, kernels=host)).by_cost()


def of_run(told: Mapping[str, float]) -> HostFactors:
    """The host of a run that *told* it by the names of the costs; what it launched too rarely to tell is taken to be
    as slow as its steps that only decode, or else as the mean of the others."""
    others = float_sum(told.values()) / len(told)
    usual = told.get(BEGINS(), others)
    return HostFactors(graph=usual, pieces=told.get(LAUNCH_PIECES(), usual), kernels=told.get(LAUNCH(), usual))
