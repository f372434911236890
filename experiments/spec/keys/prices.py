"""What an experiment file says of the price and the power of a device (docs/guides/cost.md)."""

from typing import Annotated

from pydantic import Field

from .field_types import Strict

Dollars = Annotated[float, Field(ge=0, le=1e6)]
Watts = Annotated[float, Field(ge=0, le=1e6)]


class Power(Strict):
    """What a device draws while it computes (*busy*) and while it does not (*idle*), in watts."""

    busy: Watts
    idle: Watts


class Price(Strict):
    """A device costs *per_hour* dollars as long as it is held, whether it computes or not: as a whole, so of a
    tensor-parallel group all its GPUs together. *power* is what it draws. *source* says where the numbers come from:
    a price list and its date, a contract, a meter."""

    per_hour: Dollars
    source: Annotated[str, Field(min_length=1)]
    power: Power | None = None
