"""What repeated seeds say: intervals on attainment and goodput, differences between policies, when to stop.

The requests of one run are not independent: in a queue, one late request makes the next one late. So intervals come
from the spread *between* seeds (Student's t), each seed a run of its own; only where the seeds agree too well to
tell (all of them at 100 %, say) does the count of requests set the least width (Wilson's score interval).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from servetwin.core import BadInput

#: Seeds before which an interval is not trusted to stop by: a small sample's spread is often too small.
LEAST_SEEDS = 5


@dataclass(frozen=True)
class Interval:
    """An estimate and the range that holds the truth with the confidence asked for."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def above(self, least: float) -> Interval:
        """The same of what cannot be less than *least*."""
        return Interval(self.mean, max(least, self.low), self.high, self.count)

    def spelled(self, scale: float = 1.0, digits: int = 2) -> str:
        """Such as ``93.10 (92.61 to 93.59)``."""
        mean, low, high = (f"{scale * x:.{digits}f}" for x in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


@cache
def _quantile_t(level: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + level / 2))


@cache
def _quantile_normal(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval on the mean of independent *values*; of one value, the whole line.

    >>> mean_interval([1.0, 2.0, 3.0]).spelled()
    '2.00 (-0.48 to 4.48)'
    """
    n = len(values)
    if n == 0:
        raise BadInput("no values to average", right="one seed or more")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = _quantile_t(level, n - 1) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def wilson(met: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval on a share, *met* of *total* independent requests.

    >>> wilson(10, 10).spelled(100, 1)
    '100.0 (72.2 to 100.0)'
    """
    if total < 1 or not 0 <= met <= total:
        raise BadInput(f"{met} of {total} requests is no share", right="0 <= met <= total, total >= 1")
    z = _quantile_normal(level)
    share = met / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), total)


def attainment_interval(met: Sequence[int], totals: Sequence[int], level: float = 0.95) -> Interval:
    """The interval on attainment from runs with several seeds: *met* of *totals* requests in each.

    Between seeds by Student's t, and never narrower than Wilson's interval on all requests together. Raises
    `BadInput` if no request is sent in one of them.
    """
    if not all(totals):
        what = f"no request is sent in {totals.count(0)} of {len(totals)} runs"
        raise BadInput(what, where="workload", right="a load that lasts longer, or a higher rate")
    least = wilson(sum(met), sum(totals), level)
    if len(met) == 1:
        return Interval(least.mean, 0.0, 1.0, 1)
    seeds = mean_interval([m / n for m, n in zip(met, totals, strict=True)], level)
    low, high = min(seeds.low, least.low), max(seeds.high, least.high)
    return Interval(seeds.mean, max(0.0, low), min(1.0, high), len(met))


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float],
    level: float = 0.95,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over seeds, for what is no mean (a percentile, a ratio, a capacity)."""
    import numpy as np

    data = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(data), (draws, len(data)))
    found = np.sort([statistic(row) for row in data[picks].tolist()])
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(statistic(list(values))), float(low), float(high), len(values))


def paired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """The interval on the mean of *second* minus *first*, seed by seed.

    With common random numbers both saw the same requests, and what the seeds have in common cancels.

    >>> paired([0.90, 0.80, 0.70], [0.92, 0.82, 0.72]).spelled(100)
    '2.00 (2.00 to 2.00)'
    """
    return mean_interval([b - a for a, b in zip(first, second, strict=True)], level)


def paired_attainment(
    first: Sequence[int], second: Sequence[int], totals: Sequence[int], level: float = 0.95
) -> Interval:
    """The interval on the mean of *second* minus *first*, requests met of *totals* under each seed, as shares.

    As in `paired`, and never narrower than what the count of requests allows: seeds that agree by chance, each with
    one request more, say nothing. At least as many requests as the sums differ by ended differently; if no others
    did, and each went one way or the other by itself, Wilson's interval on the share that went this way is the
    narrowest that there can be (McNemar's test goes by the same requests).

    >>> paired_attainment([59, 59], [60, 60], [60, 60]).spelled(100)
    '1.67 (-0.53 to 3.86)'
    >>> paired_attainment([540, 541], [570, 571], [600, 600]).spelled(100)
    '5.00 (4.40 to 5.60)'
    """
    seeds = paired(
        [a / n for a, n in zip(first, totals, strict=True)],
        [b / n for b, n in zip(second, totals, strict=True)],
        level,
    )
    differing = abs(sum(second) - sum(first))
    if not differing:
        return seeds
    half = 2.0 * differing / sum(totals) * (1.0 - wilson(differing, differing, level).low)
    return Interval(seeds.mean, min(seeds.low, seeds.mean - half), max(seeds.high, seeds.mean + half), seeds.count)


def parse_until(text: str) -> float:
    """``0.5pp`` (percentage points of attainment), as a share: the half-width at which to stop.

    >>> parse_until("0.5pp")
    0.005
    """
    number = text.strip().removesuffix("pp").strip()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not text.strip().endswith("pp") or not 0 < value < 50:
        raise BadInput(f"{text!r} is no width", where="--until", right="percentage points, as in --until 0.5pp")
    return value / 100


def narrow_enough(interval: Interval, until: float | None, least: int = LEAST_SEEDS) -> bool:
    """Whether no more seeds are needed for a half-width of *until*."""
    return until is None or (interval.count >= least and interval.half <= until)
