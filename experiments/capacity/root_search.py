"""Capacity: the largest rate, the smallest SLO factor or the fewest replicas at which a policy holds a target.

What is asked for is sampled along the sought quantity with several seeds, the same at every place (common random
numbers: the requests of a seed only move closer together as the rate grows). The answer is the end of the first
stretch that holds, seen from the easy side: where the mean over seeds crosses the target there. Where the interval
lets go of the target are the ends of the answer's interval.

Places are looked at on a grid that does not depend on where the search starts: half powers of two. From a place that
holds, `LOOK` of them towards the easy side must hold too; the first that does not, towards the hard side, ends the
stretch, and halving finds its end. So a stretch that fails is found if it is wider than a factor of 1.41, or lies
within the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..sweeps.statistics import Interval, paired
from .targets import Sample, Target, attainment

#: For each of the places asked for: what was found, by seed.
Sampler = Callable[[Sequence[float]], list[list[Sample]]]

#: How often the place is doubled or halved before a target counts as held everywhere, or nowhere.
TRIES = 12
#: How many places of the grid towards the easy side must hold too: six powers of two; of whole numbers, two.
LOOK, LOOK_WHOLE = 12, 2
#: How far from the answer its interval is looked for: a few requests are not enough to be sure of a target anywhere.
FARTHEST = 64.0


@dataclass(frozen=True)
class Quantity:
    """What is sought. *harder* is +1 if more of it makes a target harder to hold, -1 if it makes it easier."""

    key: str
    harder: int
    whole: bool = False
    unit: str = ""


QUANTITIES = {
    "rate": Quantity("workload.arrivals.rate", +1, unit="requests/s"),
    "slo": Quantity("slo.factor", -1, unit="times the latency alone"),
    "replicas": Quantity("deployment.replicas", -1, whole=True, unit="replicas"),
}


class HeldEverywhere(BadInput):
    """Nothing is too hard for the target, in runs of this length."""


@dataclass
class Capacity:
    """What a search found: the last place tried that holds, and the range in which the true one lies.

    *low* and *high* are None where no interval can be given: of a single seed, say. *fails* is the first place tried
    behind *value*, which does not hold.
    """

    target: Target
    value: float
    low: float | None
    high: float | None
    tried: dict[float, Interval]
    notes: list[str] = field(default_factory=list)
    fails: float = math.nan

    @property
    def open(self) -> bool:
        """Whether an end of the interval was not found: 0 or infinity stands in its place."""
        return any(end is not None and (math.isinf(end) or end == 0.0) for end in (self.low, self.high))

    def __contains__(self, value: float) -> bool:
        return self.low is not None and self.high is not None and self.low <= value <= self.high


class Curve:
    """What was sampled, by place; each place is sampled once. *glance* takes less trouble, to see the shape."""

    def __init__(self, sample: Sampler, quantity: Quantity, level: float, glance: Sampler | None = None) -> None:
        self.sample, self.glance = sample, glance or sample
        self.quantity = quantity
        self.level = level
        #: Hears between which places an end is sought, and at most how many more are tried to find all ends.
        self.hear: Callable[[float, float, int], None] = lambda *_: None
        self.samples: dict[float, list[Sample]] = {}
        self.glimpses: dict[float, list[Sample]] = {}

    def at(self, places: Sequence[float]) -> None:
        """Sample *places* in full."""
        fresh = [x for x in dict.fromkeys(places) if x not in self.samples]
        self.samples.update(zip(fresh, self.sample(fresh) if fresh else [], strict=True))

    def interval(self, x: float, target: Target) -> Interval:
        """How far *x* is above *target*, from below 0 (not held) up."""
        self.at([x])
        return target.interval(self.samples[x], self.level)

    def holds(self, x: float, target: Target) -> bool:
        """Whether *x* holds the target in the mean."""
        return self.interval(x, target).mean >= 0.0

    def seems(self, places: Sequence[float], target: Target) -> list[bool]:
        """The same of several places, at a glance."""
        fresh = [x for x in dict.fromkeys(places) if x not in self.samples and x not in self.glimpses]
        self.glimpses.update(zip(fresh, self.glance(fresh) if fresh else [], strict=True))
        return [target.interval(self.samples.get(x) or self.glimpses[x], self.level).mean >= 0.0 for x in places]

    def from_easy(self) -> list[float]:
        """The places sampled in full so far, the easiest first."""
        return sorted(self.samples, key=lambda x: self.quantity.harder * x)


def search(
    sample: Sampler,
    quantity: Quantity,
    targets: Sequence[Target | float],
    *,
    start: float,
    precision: float = 0.005,
    level: float = 0.95,
    glance: Sampler | None = None,
    near: bool = False,
    curve: Curve | None = None,
) -> list[Capacity]:
    """The capacity for each of *targets* (shares are attainments), to within a relative *precision* of the place
    (whole numbers are exact), looking around *start* first; with *near* only there. *curve* keeps what was sampled.
    Raises `BadInput` if a target is held everywhere, or nowhere.
    """
    asked = [attainment(t) if isinstance(t, float | int) else t for t in targets]
    curve = curve or Curve(sample, quantity, level, glance)
    return [_one(curve, target, start, precision, near) for target in asked]


def _one(curve: Curve, target: Target, start: float, precision: float, near: bool) -> Capacity:
    holds, fails = _around(curve, target, start) if near else _first_stretch(curve, target, start)
    curve.at([holds, fails])
    one_seed = len(curve.samples[holds]) == 1
    if not one_seed:
        _widen(curve, target, holds, fails)
    curve.at(_between(curve.quantity, holds, fails))
    notes = _rises(curve, target)
    # The ends of the interval may be found less sharply: they are taken on the outer side.
    ends_of: list[_End] = [(lambda i: i.low, 2 * precision), (lambda i: i.high, 2 * precision)]
    value, fails = _crossing(curve, target, (lambda i: i.mean, precision), [] if one_seed else ends_of)
    if not 0.0 < value < math.inf:
        raise _held_nowhere(curve, target, curve.from_easy()[0])
    tried = {x: curve.interval(x, target) for x in sorted(curve.samples)}
    if one_seed:
        return Capacity(target, value, None, None, tried, notes, fails)
    low, _ = _crossing(curve, target, ends_of[0], ends_of[1:])
    might, ends_at = _crossing(curve, target, ends_of[1])
    ends = sorted((low, might if curve.quantity.whole else ends_at))
    return Capacity(target, value, ends[0], ends[1], tried, notes, fails)


def _place(quantity: Quantity, index: int) -> float:
    """The place of this *index* in the grid; places get harder with it. Whole numbers end at 1."""
    k = index * quantity.harder
    return float(max(1, 2**k if k >= 0 else 1)) if quantity.whole else 2.0 ** (k / 2)


def _index(quantity: Quantity, x: float) -> int:
    steps = 1.0 if quantity.whole else 2.0
    return round(steps * math.log2(max(x, 1e-300))) * quantity.harder


def _first_stretch(curve: Curve, target: Target, start: float) -> tuple[float, float]:
    """The last place of the grid in the first stretch that holds *target*, and the first behind it that does not."""
    quantity = curve.quantity
    octave, look = (1, LOOK_WHOLE) if quantity.whole else (2, LOOK)
    at = begun = _index(quantity, start)
    while not curve.holds(_place(quantity, at), target):
        if abs(begun - at) >= TRIES * octave:
            raise _held_nowhere(curve, target, _place(quantity, at))
        at -= octave
    while begun - at <= 4 * TRIES * octave:
        easier = range(at - 1, at - look - 1, -1)
        seen = curve.seems([_place(quantity, k) for k in easier], target)
        # That a place fails is not believed at a glance.
        held = [s or curve.holds(_place(quantity, k), target) for k, s in zip(easier, seen, strict=True)]
        failed = held.index(False) if not all(held) else look
        beyond = [k for k, h in zip(easier[failed:], held[failed:], strict=True) if h]
        if not beyond:  # nothing fails; or what holds is an island, and nothing easier does
            break
        at = beyond[0]
    while True:
        harder = _place(quantity, at + 1)
        if harder == _place(quantity, at):  # one replica holds
            return harder, harder
        if not curve.holds(harder, target):
            _look_behind(curve, target, harder)
            return _place(quantity, at), harder
        at += 1
        if at - begun >= TRIES * octave:
            what = f"{target.name} is met everywhere, up to {quantity.key} = {harder:g}"
            raise HeldEverywhere(what, right="a higher target, other settings, or more requests")


def _look_behind(curve: Curve, target: Target, x: float) -> None:
    """Sample what seems to hold again a little behind *x*, so that it can be said."""
    quantity = curve.quantity
    if quantity.whole:
        places = [x // 2] if x >= 2.0 else []
    else:
        places = [x * 2 ** (quantity.harder * k / 4) for k in (1, 2, 3)]
    curve.at([x for x, seems in zip(places, curve.seems(places, target), strict=True) if seems])


def agrees(found: Capacity, curve: Curve, nearly: float = 0.02) -> bool:
    """Whether the answer by *curve* lies in the interval of *found*; without one, *nearly* (a share) at its value."""
    quantity, target = curve.quantity, found.target
    low, high = found.low, found.high
    if low is None or high is None:
        near = 0.0 if quantity.whole else nearly
        low, high = found.value / (1.0 + near), found.value * (1.0 + near)
    if quantity.whole:
        return curve.holds(high, target) and (low <= 1 or not curve.holds(low - 1, target))
    easy, hard = (low, high) if quantity.harder > 0 else (high, low)
    if not 0.0 < easy < math.inf or not 0.0 < hard < math.inf:
        return False
    return curve.holds(easy, target) and not curve.holds(hard, target)


def _held_nowhere(curve: Curve, target: Target, place: float) -> BadInput:
    best = max(_best(target, samples) for samples in curve.samples.values())
    most = f": the most is {100 * best:.1f} %" if best >= 0.0 else ""
    right = "a lower target, or other settings"
    return BadInput(f"{target.name} is met nowhere{most}, at {curve.quantity.key} = {place:g}", right=right)


def _best(target: Target, samples: Sequence[Sample]) -> float:
    """The share that *target* is about; -1 if it is about none, or several."""
    share = target.criteria[0].share
    if len(target.criteria) > 1 or share is None:
        return -1.0
    return float_sum(target.margins(samples)) / len(samples) + share


def _around(curve: Curve, target: Target, start: float) -> tuple[float, float]:
    """A place near *start* that holds, with none easier among those sampled that does not, and a harder one that does
    not hold."""
    quantity = curve.quantity
    holds = fails = start
    for k in range(TRIES):
        curve.at([holds])
        failing = [x for x in curve.from_easy() if quantity.harder * (x - holds) <= 0 and not curve.holds(x, target)]
        if not failing:
            break
        fails, holds = failing[0], _further(quantity, failing[0], 1.0 + 0.05 * 2**k, harder=False)
        if fails == holds:
            break
    for k in range(TRIES):
        if fails != holds and curve.interval(fails, target).mean < 0.0:
            break
        holds, fails = fails, _further(quantity, fails, 1.0 + 0.05 * 2**k, harder=True)
        if fails == holds:
            break
    return holds, fails


def _further(quantity: Quantity, x: float, ratio: float, *, harder: bool) -> float:
    up = harder == (quantity.harder > 0)
    if quantity.whole:
        return x + max(1.0, x // 4) if up else max(1.0, x - max(1.0, x // 4))
    return x * ratio if up else x / ratio


def _widen(curve: Curve, target: Target, easy: float, hard: float) -> None:
    """Sample outwards from *easy* and *hard* until the interval lies above the target here and below it there, or is
    `FARTHEST` away."""
    begun = easy, hard
    for k in range(TRIES):
        if curve.interval(easy, target).low >= 0.0 or _ratio(easy, begun[0]) > FARTHEST:
            break
        easy = _further(curve.quantity, easy, 1.05 + 0.05 * 2**k, harder=False)
    for k in range(TRIES):
        if curve.interval(hard, target).high < 0.0 or _ratio(hard, begun[1]) > FARTHEST:
            break
        hard = _further(curve.quantity, hard, 1.05 + 0.05 * 2**k, harder=True)


def _ratio(x: float, y: float) -> float:
    return max(x, y) / min(x, y)


def _between(quantity: Quantity, easy: float, hard: float) -> list[float]:
    """A few places between, evenly spaced by ratio, to see the curve's shape."""
    if quantity.whole:
        low, high = sorted((int(easy), int(hard)))
        return [float(x) for x in range(low, high + 1)] if high - low <= 8 else []
    ratio = hard / easy
    return [easy * ratio ** (k / 4) for k in range(1, 4)]


#: What of an interval is to hold a target, and how sharply the place where it no longer does is sought.
_End = tuple[Callable[[Interval], float], float]


def _crossing(curve: Curve, target: Target, end: _End, later: Sequence[_End] = ()) -> tuple[float, float]:
    """The last place at which the *end* of the interval still holds the target and the first at which it doesn't.
    *later* are the ends that are sought afterwards."""
    bound, precision = end
    holds, fails = _bracket(curve, target, bound)
    if math.isnan(holds) or math.isnan(fails):
        far = math.inf * curve.quantity.harder
        nothing = 0.0 if curve.quantity.harder > 0 else math.inf
        if curve.quantity.whole and math.isnan(fails):
            fails = 1.0
        return (nothing if math.isnan(holds) else holds), (max(far, 0.0) if math.isnan(fails) else fails)
    while left := most_tries(curve.quantity, holds, fails, precision):
        middle = float((holds + fails) // 2) if curve.quantity.whole else math.sqrt(holds * fails)
        others = (most_tries(curve.quantity, *_bracket(curve, target, b), sharp) for b, sharp in later)
        curve.hear(holds, fails, left + sum(others))
        if bound(curve.interval(middle, target)) >= 0.0:
            holds = middle
        else:
            fails = middle
    return holds, fails


def _bracket(curve: Curve, target: Target, bound: Callable[[Interval], float]) -> tuple[float, float]:
    """Of the places sampled so far the last at which *bound* holds the target, and the first at which it does not,
    seen from the easy side; NaN where there is none."""
    holds, fails = math.nan, math.nan
    for x in curve.from_easy():
        if bound(curve.interval(x, target)) >= 0.0:
            holds = x
        else:
            fails = x
            break
    return holds, fails


def most_tries(quantity: Quantity, holds: float, fails: float, precision: float) -> int:
    """How many places between *holds* and *fails*, each in the middle of what is left, are tried at the most until
    the two are as close as *precision* (a share; whole numbers: as can be). 0 if one of the two is not known.

    >>> most_tries(QUANTITIES["rate"], 4.0, 5.0, 0.005), most_tries(QUANTITIES["replicas"], 9, 3, 0.005)
    (6, 3)
    """
    if math.isnan(holds) or math.isnan(fails) or holds == fails:
        return 0
    if quantity.whole:
        return math.ceil(math.log2(abs(fails - holds)))
    if abs(fails - holds) <= precision * min(holds, fails):
        return 0
    return max(math.ceil(math.log2(math.log(_ratio(holds, fails)) / math.log1p(precision)) - 1e-9), 1)


def _rises(curve: Curve, target: Target) -> list[str]:
    """What is to be said where the target holds again at a harder place, beyond what seeds explain."""
    places = curve.from_easy()
    for i, x in enumerate(places):
        here = curve.interval(x, target)
        if here.mean >= 0.0:
            continue
        for y in places[i + 1 :]:
            first, second = (target.margins(curve.samples[z]) for z in (x, y))
            told = len(first) == 1 or paired(first, second, curve.level).low > 0.0
            if curve.holds(y, target) and told:
                what = f"not monotone: {target.name} is not met at {x:g}, but is again at {y:g}"
                return [f"{what}; what counts is the first stretch that meets it"]
    return []
