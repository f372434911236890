"""What every part of an experiment file is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class Strict(BaseModel):
    """A part of an experiment file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)
