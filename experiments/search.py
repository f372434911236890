"""Capacity: the largest rate, the smallest SLO factor or the fewest replicas at which a policy holds a target.

Attainment along the sought quantity is sampled with several seeds, the same at every place (common random numbers:
the requests of a seed only move closer together as the rate grows). Where the mean over seeds crosses the target is
the answer; where the interval on attainment lets go of the target are the ends of the answer's interval. All three
are found by bracketing and halving, after a look at the curve's shape: attainment that rises where it should fall
is noticed and said, and the answer is then the end of the first stretch that holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from servetwin.core import BadInput

from .statistics import Interval, attainment_interval, paired

#: For each of the places asked for: (met, requests) by seed.
Sampler = Callable[[Sequence[float]], list[list[tuple[int, int]]]]


#: How often the place is doubled or halved before a target counts as held everywhere, or nowhere.
TRIES = 12


@dataclass(frozen=True)
class Quantity:
    """What is sought. *harder* is +1 if more of it makes a target harder to hold, -1 if it makes it easier."""

    key: str
    harder: int
    whole: bool = False
    unit: str = ""


QUANTITIES = {
    "rate": Quantity("workload.arrivals.rate", +1, unit="requests/s"),
    "slo": Quantity("slo.factor", -1, unit="x solo latency"),
    "replicas": Quantity("deployment.replicas", -1, whole=True, unit="replicas"),
}


@dataclass
class Capacity:
    """What a search found: the last place tried that holds, and the range in which the true one lies."""

    target: float
    value: float
    low: float
    high: float
    tried: dict[float, Interval]
    notes: list[str] = field(default_factory=list)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


class Curve:
    """Attainment by place; each place is sampled once."""

    def __init__(self, sample: Sampler, quantity: Quantity, level: float) -> None:
        self.sample = sample
        self.quantity = quantity
        self.level = level
        self.shares: dict[float, list[float]] = {}
        self.found: dict[float, Interval] = {}

    def at(self, places: Sequence[float]) -> list[Interval]:
        """The attainment at *places*."""
        fresh = [x for x in dict.fromkeys(places) if x not in self.found]
        for x, counts in zip(fresh, self.sample(fresh) if fresh else [], strict=True):
            met, totals = [m for m, _ in counts], [n for _, n in counts]
            self.shares[x] = [m / n for m, n in counts]
            self.found[x] = attainment_interval(met, totals, self.level)
        return [self.found[x] for x in places]

    def from_easy(self) -> list[float]:
        """The places tried so far, the easiest first."""
        return sorted(self.found, key=lambda x: self.quantity.harder * x)


def search(
    sample: Sampler,
    quantity: Quantity,
    targets: Sequence[float],
    *,
    start: float,
    precision: float = 0.005,
    level: float = 0.95,
) -> list[Capacity]:
    """The capacity for each of *targets* (shares), to within a relative *precision* of the place (whole numbers are
    exact), looking around *start* first. Raises `BadInput` if a target is held everywhere, or nowhere.
    """
    for target in targets:
        if not 0.0 < target < 1.0:
            raise BadInput(f"{target:g} is no attainment to hold", where="--target", right="a share between 0 and 1")
    curve = Curve(sample, quantity, level)
    return [_one(curve, target, start, precision) for target in targets]


def _one(curve: Curve, target: float, start: float, precision: float) -> Capacity:
    easy, hard = _bracket(curve, target, start)
    curve.at(_between(curve.quantity, easy, hard))
    notes = _rises(curve, target)
    value, _ = _crossing(curve, target, precision, lambda i: i.mean)
    low, _ = _crossing(curve, target, precision, lambda i: i.low)
    might, fails = _crossing(curve, target, precision, lambda i: i.high)
    ends = sorted((low, might if curve.quantity.whole else fails))
    if any(math.isinf(e) for e in ends):
        notes.append("more seeds are needed to close the interval")
    return Capacity(target, value, ends[0], ends[1], {x: curve.found[x] for x in sorted(curve.found)}, notes)


def _step(quantity: Quantity, x: float, harder: bool) -> float:
    """The next place to try on the way out: twice or half as much."""
    up = harder == (quantity.harder > 0)
    if quantity.whole:
        return x * 2 if up else max(1, x // 2)
    return x * 2 if up else x / 2


def _bracket(curve: Curve, target: float, start: float) -> tuple[float, float]:
    """A place whose interval lies above the target, and one where it lies below."""
    quantity = curve.quantity
    easy = hard = start
    for _ in range(TRIES):
        if curve.at([easy])[0].low >= target:
            break
        following = _step(quantity, easy, harder=False)
        if following == easy:
            break
        easy = following
    else:
        best = max(i.mean for i in curve.found.values())
        raise BadInput(
            f"nothing holds {100 * target:g} %: the most is {100 * best:.1f} %, at {quantity.key} = {easy:g}",
            right="a lower target, or other settings",
        )
    for _ in range(TRIES):
        if curve.at([hard])[0].high < target:
            return easy, hard
        following = _step(quantity, hard, harder=True)
        if following == hard:
            return easy, hard
        hard = following
    raise BadInput(
        f"{100 * target:g} % is held everywhere, up to {quantity.key} = {hard:g}",
        right="a higher target, or other settings",
    )


def _between(quantity: Quantity, easy: float, hard: float) -> list[float]:
    """A few places between, evenly spaced by ratio, to see the curve's shape."""
    if quantity.whole:
        low, high = sorted((int(easy), int(hard)))
        return [float(x) for x in range(low, high + 1)] if high - low <= 8 else []
    ratio = hard / easy
    return [easy * ratio ** (k / 8) for k in range(1, 8)]


def _crossing(
    curve: Curve, target: float, precision: float, bound: Callable[[Interval], float]
) -> tuple[float, float]:
    """The last place at which *bound* of the interval still holds the target and the first at which it doesn't."""
    holds, fails = math.nan, math.nan
    for x in curve.from_easy():
        if bound(curve.found[x]) >= target:
            holds = x
        else:
            fails = x
            break
    if math.isnan(holds) or math.isnan(fails):
        far = math.inf * curve.quantity.harder
        nothing = 0.0 if curve.quantity.harder > 0 else math.inf
        if curve.quantity.whole and math.isnan(fails):
            fails = 1.0
        return (nothing if math.isnan(holds) else holds), (max(far, 0.0) if math.isnan(fails) else fails)
    while abs(fails - holds) > (1.0 if curve.quantity.whole else precision * min(holds, fails)):
        middle = float((holds + fails) // 2) if curve.quantity.whole else math.sqrt(holds * fails)
        if bound(curve.at([middle])[0]) >= target:
            holds = middle
        else:
            fails = middle
    return holds, fails


def _rises(curve: Curve, target: float) -> list[str]:
    """What is to be said where attainment is back above the target at a harder place, beyond what seeds explain."""
    places = curve.from_easy()
    for i, x in enumerate(places):
        if curve.found[x].mean >= target:
            continue
        for y in places[i + 1 :]:
            gain = paired(curve.shares[x], curve.shares[y], curve.level)
            if curve.found[y].mean >= target and gain.low > 0.0:
                what = f"attainment is not monotone: {100 * curve.found[x].mean:.1f} % at {x:g}"
                return [
                    f"{what}, but {100 * curve.found[y].mean:.1f} % at {y:g}; the first stretch that holds counts"
                ]
    return []
