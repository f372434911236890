"""What every part of an experiment file is made of."""

# No module with models has annotations from __future__: pydantic would compile the text of each at every start.

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: The longest wait, in seconds: months, and after thousands of them the clock still knows a step's time.
LONGEST_WAIT = 1e7
Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT)]
PositiveWait = Annotated[float, Field(gt=0, le=LONGEST_WAIT)]
#: The least and the largest weight of a request: service over weight stays a number.
WEIGHTS = (1e-9, 1e9)
Weight = Annotated[float, Field(ge=WEIGHTS[0], le=WEIGHTS[1])]
Count = Annotated[int, Field(ge=1, le=10**12)]


class Strict(BaseModel):
    """A part of an experiment file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)
