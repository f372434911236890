"""Service level objectives: how long a request may take.

>>> solo = {"dit": 0.010, "vae": 0.020}
>>> round(FactorSLO(3.0, solo).seconds({"dit": 100}), 3)
3.06
>>> AbsoluteSLO(2.5).seconds({"dit": 100})
2.5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class SLO(Protocol):
    """Gives the seconds that a request with this work (iterations per loop module) may take, end to end."""

    factor: float | None

    def seconds(self, work: Mapping[str, int]) -> float: ...


@dataclass(frozen=True)
class FactorSLO:
    """A multiple of what the request takes alone on an idle device, as NeuStream defines it (section 6.1).

    *solo* holds each module's latency at batch 1 in seconds (per iteration for a loop module); *constant* is
    added once per request, before the factor.
    """

    factor: float
    solo: Mapping[str, float]
    constant: float = 0.0

    def seconds(self, work: Mapping[str, int]) -> float:
        return self.factor * (self.constant + sum(work.get(m, 1) * t for m, t in self.solo.items()))


@dataclass(frozen=True)
class AbsoluteSLO:
    """The same limit in seconds for every request."""

    limit: float
    factor: float | None = field(default=None, init=False)

    def seconds(self, work: Mapping[str, int]) -> float:
        return self.limit
