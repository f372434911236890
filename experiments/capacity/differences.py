"""How much more one policy holds than another: differences in capacity, taken seed by seed.

Two policies saw the same requests under the same seed, so what a seed has of luck moves both capacities alike. The
difference is that of the two places at which the means over the seeds cross the target. How sure it is, is told by
leaving out one seed at a time, the same of both (the jackknife: Miller, The jackknife - a review, Biometrika, 1974):
each time both crossings are found again, between the places that were sampled, and their difference is taken.

Seeds may agree by chance, and a difference of a request or two would pass for sure. So an interval is never narrower
than what the requests allow by which the two differ half way between the crossings (see
`servetwin.experiments.sweeps.statistics.paired_attainment`), nor than the steps between which the crossings lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..sweeps.statistics import Interval, mean_interval, wilson
from .root_search import Curve
from .targets import Sample, Target


@dataclass(frozen=True)
class Difference:
    """A capacity less that of the policy *versus*, in runs of *requests*: the *mean*, and its interval; None where it
    is not known, and *why* not."""

    versus: str
    mean: float | None
    low: float | None
    high: float | None
    requests: int
    why: str = ""


def difference(first: Curve, second: Curve, target: Target) -> Interval | None:
    """How much further *first* holds *target* than *second* does.

    None if one of them crosses it nowhere. Without an interval (the whole line) if there is one seed, or the two do
    not have the same number of them, or leaving out a seed leaves no crossing.
    """
    counts = {len(own) for curve in (first, second) for own in curve.samples.values()}
    whole, steps = zip(*(_crossing(curve, target) for curve in (first, second)), strict=True)
    mean = whole[0] - whole[1]
    if math.isnan(mean):
        return None
    n = max(counts)
    nothing = Interval(mean, -math.inf, math.inf, n)
    if counts != {n} or n == 1:
        return nothing
    without = [[_crossing(curve, target, k)[0] for k in range(n)] for curve in (first, second)]
    values = [n * mean - (n - 1) * (a - b) for a, b in zip(*without, strict=True)]
    if any(math.isnan(value) for value in values):
        return nothing
    spread = mean_interval(values, first.level).half
    half = max(spread, abs(mean) * _least(first, second, target, whole), *steps)
    return Interval(mean, mean - half, mean + half, n)


def _crossing(curve: Curve, target: Target, without: int | None = None) -> tuple[float, float]:
    """Where the mean over the seeds, but *without* one, no longer holds *target*, seen from the easy side: in a
    straight line over the logarithm, between the places sampled, which are so far apart. NaN if it does nowhere, or
    everywhere."""
    last, above = math.nan, math.nan
    for x in curve.from_easy():
        samples = [sample for k, sample in enumerate(curve.samples[x]) if k != without]
        margin = target.interval(samples, curve.level).mean
        if margin < 0.0:
            part = above / (above - margin)
            return last * (x / last) ** part, abs(x - last)
        last, above = x, margin
    return math.nan, math.nan


def _least(first: Curve, second: Curve, target: Target, ends: tuple[float, ...]) -> float:
    """The least half-width, as a part of the difference between the *ends* of *first* and *second*, that the requests
    allow which the two treat differently between them: 1, which tells nothing apart, if there are none."""
    place = math.sqrt(ends[0] * ends[1])
    met: list[int] = []
    for curve in (first, second):
        samples = curve.samples.get(place) or curve.sample([place])[0]
        worst = min(target.criteria, key=lambda c: c.interval(samples, curve.level).mean)
        if worst.share is None:
            return 0.0  # a mean of latencies: there is nothing to count
        met.append(sum(_kept(samples, worst.name)))
    more = met[0] - met[1]
    if more * (ends[0] - ends[1]) * first.quantity.harder <= 0:
        return 1.0
    return 2.0 * (1.0 - wilson(abs(more), abs(more), first.level).low)


def _kept(samples: Sequence[Sample], name: str) -> list[int]:
    """How many requests kept the criterion *name*, run by run."""
    return [int((sample[name] if not isinstance(sample, tuple) else sample)[0]) for sample in samples]
