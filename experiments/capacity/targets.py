"""What a capacity must hold: a share of requests that meet their SLO, or limits on latencies.

``p99_ttft_ms<=500`` means that the 99th percentile of the times to the first token is at most 500 ms, which is to say
that 99 % of the requests have their first token within 500 ms; so a percentile is a share too, and is known as well
as one. A request that was dropped or failed is within no limit. Limits joined by commas must hold together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from servetwin.core import BadInput

from ..sweeps.statistics import Interval, attainment_interval, mean_interval

#: Of one run, by the name of a criterion: (requests that keep it, requests), or (mean, requests) of a mean. A pair
#: alone is of the only criterion.
Sample = Mapping[str, Any] | tuple[int, int]

METRICS = ("ttft", "tpot", "e2el")
_LIMIT = re.compile(r"(mean|median|p(?P<p>\d{1,2}(?:\.\d+)?))_(?P<metric>[a-z0-9]+)_ms\s*<=\s*(?P<limit>[^\s]+)")
RIGHT = "p99_ttft_ms<=500, with mean, median or p50 to p99.9 of ttft, tpot or e2el"


@dataclass(frozen=True)
class Criterion:
    """*share* of the requests keep *metric* (milliseconds) within *limit*; without *share* its mean does.

    Without *metric* it is the share of requests that meet their SLO.
    """

    name: str
    share: float | None
    metric: str | None = None
    limit: float = math.inf

    def interval(self, samples: Sequence[Sample], level: float) -> Interval:
        """How far runs are above what is asked, from below 0 (not held) up: a share, or a part of the limit."""
        found = [sample[self.name] if isinstance(sample, Mapping) else sample for sample in samples]
        if self.share is not None:
            got = attainment_interval([int(met) for met, _ in found], [int(n) for _, n in found], level)
            return Interval(got.mean - self.share, got.low - self.share, got.high - self.share, got.count)
        got = mean_interval([mean if mean is not None else math.inf for mean, _ in found], level)
        if not math.isfinite(got.mean):
            return Interval(-math.inf, -math.inf, -math.inf, got.count)
        mean, low, high = (1.0 - x / self.limit for x in (got.mean, got.high, got.low))
        return Interval(mean, low, high, got.count)


@dataclass(frozen=True)
class Target:
    """All *criteria* hold; *name* is how it is shown."""

    name: str
    criteria: tuple[Criterion, ...]

    def interval(self, samples: Sequence[Sample], level: float) -> Interval:
        """That of the criterion that is worst, bound by bound."""
        found = [c.interval(samples, level) for c in self.criteria]
        return Interval(
            min(i.mean for i in found), min(i.low for i in found), min(i.high for i in found), found[0].count
        )

    def margins(self, samples: Sequence[Sample]) -> list[float]:
        """What `interval` is about, run by run."""
        return [self.interval([sample], 0.95).mean for sample in samples]


def attainment(share: float) -> Target:
    """That this share of the requests meet their SLO. Raises `BadInput` if it is none."""
    if not 0.0 < share < 1.0:
        raise BadInput(f"{share:g} is no attainment to hold", where="--target", right="a share between 0 and 1")
    return Target(f"{100 * share:g} %", (Criterion("attainment", share),))


def parse(text: str) -> Target:
    """``p99_ttft_ms<=500,mean_tpot_ms<=50`` as a target. Raises `BadInput`."""
    criteria = tuple(_criterion(part.strip(), text) for part in text.split(","))
    return Target(",".join(c.name for c in criteria), criteria)


def _criterion(part: str, text: str) -> Criterion:
    found = _LIMIT.fullmatch(part)
    if found is None or found["metric"] not in METRICS:
        raise BadInput(f"{text!r} is no limit", where="--target-metric", right=RIGHT)
    try:
        limit = float(found["limit"])
    except ValueError:
        limit = math.nan
    if not 0.0 < limit < math.inf:
        raise BadInput(f"{found['limit']!r} is no limit in milliseconds", where="--target-metric", right=RIGHT)
    share: float | None = None if part.startswith("mean") else 0.5
    if found["p"] is not None:
        share = float(found["p"]) / 100
        if not 0.0 < share < 1.0:
            raise BadInput(f"{text!r} names no percentile", where="--target-metric", right=RIGHT)
    return Criterion(part.replace(" ", ""), share, found["metric"], limit)
