"""What an experiment file says of loads that change over time, and of classes that come each at times of its own.

See docs/guides/loads-over-time.md, and `servetwin.experiments.workload.schedules` for how arrivals are drawn.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .field_types import NotNegative, Positive, PositiveWait, Strict, Wait

#: A time in seconds, and the factor of the rate from then on.
Point = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
#: The largest factor of a rate: what is expected by a time then stays a number.
MOST = 1e6
Factor = Annotated[float, Field(ge=0, le=MOST)]


class Wave(Strict):
    """A factor ``1 + amplitude * sin(2 pi (t / period + phase))``: *period* in seconds, *phase* in periods."""

    period: PositiveWait
    amplitude: Annotated[float, Field(gt=0, le=1)]
    phase: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Spike(Strict):
    """From *at*, for *seconds*, requests come *factor* times as fast as they otherwise would; 0: none comes."""

    at: Wait
    seconds: PositiveWait
    factor: Factor


class Schedule(Strict):
    """Arrivals whose rate changes over time: *rate* requests per second where all factors are 1.

    *points* are pairs of a time and a factor, from 0 on: the factor holds until the next ("steps"), or changes evenly
    towards it ("ramps", *between*); the last one holds. *wave* and *spikes* are factors besides. *every*: points and
    spikes begin anew after so many seconds; the last point of ramps may be then. With *window* the factors are those
    of ``workload.trace``, in windows of so many seconds, the last of which ends with the trace, and *rate* is the
    mean over the trace (by default its own).

    *cv* is the coefficient of variation of the gaps in a time that goes as fast as the load: 1 gives a Poisson
    process whose rate changes, 0 requests at the times at which the expected number is 1, 2, ... What would come at
    *until* or later is not sent; ``workload.requests`` is then null.
    """

    process: Literal["schedule"]
    rate: Positive | None = None
    cv: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    points: Annotated[list[Point], Field(min_length=1)] | None = None
    between: Literal["steps", "ramps"] = "steps"
    wave: Wave | None = None
    spikes: list[Spike] = Field(default_factory=list)
    every: PositiveWait | None = None
    window: PositiveWait | None = None
    until: PositiveWait | None = None

    @property
    def ends(self) -> bool:
        """Whether it ends by itself: at a time, or with the trace that it follows."""
        return self.until is not None or (self.window is not None and self.every is None)


def _no_rate(value: Any) -> None:
    if value is not None:
        raise PydanticCustomError("no_rate", "none: each class has its own (workload.classes.NAME.arrivals.rate)")


class ByClass(Strict):
    """Each class comes at times of its own: those of its *arrivals*. All their rates are multiplied by *scale*."""

    process: Literal["by_class"]
    scale: Positive = 1.0
    rate: Annotated[None, BeforeValidator(_no_rate)] = None
