"""Whether a system keeps up with its load, told from its backlog, and how long it takes to settle.

A run is watched in `SEGMENTS` segments of equally many requests, by order of arrival. The *backlog* is the number of
requests that have arrived and not ended. Runs of one system that differ in their seed are independent, so growth is
judged between them (Student's t); of a single run, between its segments.

How long it takes to settle is told by MSER: of the first segments those are left out without which the mean latency
of the rest is known best (White, 1997: the least standard error), half of all segments at the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..sweeps.statistics import Interval, mean_interval

#: Into how many segments a run is cut.
SEGMENTS = 100
#: What arrives in the first fifth of a run is not counted: the system begins empty.
WARM_UP = 0.2
#: Of the requests that arrive, the share by which a backlog may grow and still count as flat, and from which on the
#: system is overloaded.
FLAT, OVERLOADED = 0.01, 0.05


@dataclass(frozen=True)
class Verdict:
    """What the backlog does ("flat", "growing", "overloaded" or "unclear"), the share of what arrives by which it
    grows, and the share of a run after which latencies have settled (None if half a run was not enough)."""

    backlog: str
    growth: Interval
    settled: float | None


def verdict(
    backlogs: Sequence[Sequence[float]], latencies: Sequence[Sequence[float | None]], requests: int
) -> Verdict:
    """Judge runs by their *backlogs* at the ends of their segments and by the mean *latencies* of these.

    Growth is from the first to the last 40 % of what follows the warm-up, as a share of the requests that arrived
    between their middles. "growing": its interval (95 %) lies above 0, and above `FLAT` in the mean; "overloaded": it
    lies above `OVERLOADED`; "flat": the interval lies below `OVERLOADED`; else it is "unclear".
    """
    curves = [np.asarray(b, dtype=float)[int(WARM_UP * len(b)) :] for b in backlogs]
    if len(curves) > 1:
        shares = [_growth(curve, requests / SEGMENTS) for curve in curves]
    else:
        ends = curves[0][:: max(1, len(curves[0]) // 8)]
        shares = (np.diff(ends) / (requests / SEGMENTS * max(1, len(curves[0]) // 8))).tolist()
    growth = mean_interval(shares) if len(shares) > 1 else Interval(shares[0], -1.0, 1.0, 1)
    if growth.low > OVERLOADED:
        word = "overloaded"
    elif growth.low > 0.0 and growth.mean > FLAT:
        word = "growing"
    else:
        word = "flat" if growth.high < OVERLOADED else "unclear"
    return Verdict(word, growth, settling(latencies))


def _growth(curve: np.ndarray, per_segment: float) -> float:
    count = max(1, int(0.4 * len(curve)))
    between = (len(curve) - count) * per_segment
    return float((curve[-count:].mean() - curve[:count].mean()) / between) if between else 0.0


def settling(latencies: Sequence[Sequence[float | None]]) -> float | None:
    """The share of a run after which the mean latency is steady (MSER over the mean of the runs)."""
    grid = np.array([[np.nan if x is None else x for x in run] for run in latencies], dtype=float)
    known = grid[:, ~np.isnan(grid).any(axis=0)]
    if known.shape[1] < 10:
        return None
    series = known.mean(axis=0)
    n = len(series)
    errors = [series[d:].var() / (n - d) for d in range(n // 2 + 1)]
    best = int(np.argmin(errors))
    return best / n if best < n // 2 else None
