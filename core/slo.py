"""Service level objectives: how long a request may take.

>>> solo = {"dit": 0.010, "vae": 0.020}
>>> round(FactorSLO(3.0, solo).seconds({"dit": 100}), 3)
3.06
>>> AbsoluteSLO(2.5).seconds({"dit": 100})
2.5

Whether something came in time is told with a tolerance of a nanosecond and a few units in the last place of the
clock: times are sums of many numbers, and what takes exactly as long as it may is in time, whatever its last bit.

>>> 0.1 + 0.2 <= 0.3, 0.1 + 0.2 <= latest(0.3), 0.300001 <= latest(0.3)
(False, True, False)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from .arithmetic import float_sum

if TYPE_CHECKING:
    import numpy as np

    from .request import Shape

#: Seconds by which an end may be past its deadline, or a latency above its limit, and still be in time.
TOLERANCE = 1e-9
#: What comes on top of that by how far the clock has gone: some units in its last place.
CLOCK = 1e-15

Times = TypeVar("Times", float, "np.ndarray")


def slack(at: Times) -> Times:
    """The tolerance, in seconds, for what is compared at times *at* (seconds since the run began)."""
    return TOLERANCE + CLOCK * at


def latest(due: Times) -> Times:
    """Up to when something is in time that is *due* then."""
    return due + (TOLERANCE + CLOCK * due)


class SLO(Protocol):
    """Gives the seconds that a request with this work (iterations per loop module), of the class of that name and of
    that *shape*, may take, end to end."""

    @property
    def factor(self) -> float | None: ...

    def seconds(self, work: Mapping[str, int], class_name: str = "", shape: Shape | None = None) -> float: ...


@dataclass(frozen=True)
class FactorSLO:
    """A multiple of what the request takes alone on an idle device, as NeuStream defines it (section 6.1).

    *solo* holds each module's latency at batch 1 in seconds (per iteration for a loop module); *constant* is
    added once per request, before the factor. *by_shape* has the latencies of requests of shapes of their own.
    """

    factor: float
    solo: Mapping[str, float]
    constant: float = 0.0
    by_shape: Mapping[Shape, Mapping[str, float]] = field(default_factory=dict)

    def seconds(self, work: Mapping[str, int], class_name: str = "", shape: Shape | None = None) -> float:
        solo = self.solo if shape is None else self.by_shape[shape]
        return self.factor * (self.constant + float_sum(work.get(m, 1) * t for m, t in solo.items()))


@dataclass(frozen=True)
class AbsoluteSLO:
    """The same limit in seconds for every request."""

    limit: float
    factor: float | None = field(default=None, init=False)

    def seconds(self, work: Mapping[str, int], class_name: str = "", shape: Shape | None = None) -> float:
        return self.limit


@dataclass(frozen=True)
class ClassSLO:
    """SLOs of single classes of requests; *usual* holds for all others."""

    usual: SLO
    by_class: Mapping[str, SLO]

    @property
    def factor(self) -> float | None:
        """The usual one."""
        return self.usual.factor

    def seconds(self, work: Mapping[str, int], class_name: str = "", shape: Shape | None = None) -> float:
        return self.by_class.get(class_name, self.usual).seconds(work, shape=shape)
