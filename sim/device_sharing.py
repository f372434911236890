"""Workers on one device whose overlap nobody measured: refused, or they share the device in time.

No second worker gets a device for nothing: what workers compute on it in any interval is at most as long as the
interval, unless a profile says how fast they get on beside each other. A pair that was not measured is refused;
where the experiment asks for it (``time.unmeasured: shared``), each of those that are busy gets an equal part of the
device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from servetwin.core import BadInput, Stage, Worker
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.pool import Pool
from servetwin.profiles import Profile
from servetwin.profiles.tables.costs import BESIDE, RATE_BESIDE

from .batch_lane import Rates
from .llm.shared_lane import KINDS, RateTable

#: Two engines of which nothing was measured: each at half its speed while the other computes.
HALF = RateTable((1,), (1,), ((0.5,),))

Pair = tuple[Worker, Worker]


def head(stage: Stage) -> str:
    """The module by whose name a stage's costs go."""
    return stage.loop or stage.modules[0]


def unmeasured(workers: Sequence[Worker], profiles: Mapping[str, Profile]) -> list[Pair]:
    """The pairs of *workers* that compute on one device, and its profile (by device) does not say how fast both get
    on while both are busy."""
    there = [w for w in workers if not isinstance(w, Pool)]
    pairs = [(a, b) for a, b in itertools.combinations(there, 2) if a.device == b.device]
    return [(a, b) for a, b in pairs if not set(_wanted(a, b, profiles)) <= set(profiles[a.device].costs)]


def _wanted(a: Worker, b: Worker, profiles: Mapping[str, Profile]) -> Iterator[str]:
    """The costs that say it of *a* and *b*."""
    if isinstance(a, TokenWorker) and isinstance(b, TokenWorker):
        costs = profiles[a.device].costs
        for own, other in itertools.product(KINDS, KINDS):
            found = RATE_BESIDE.sizes(costs, own, other)
            yield found[min(found)] if found else RATE_BESIDE(own, other, "...")
        return
    for one, beside in ((a, b), (b, a)):
        yield BESIDE(head(one.stage), [head(beside.stage)])


def refuse(pairs: Sequence[Pair], profiles: Mapping[str, Profile]) -> None:
    """Raise `BadInput` if there are any."""
    for a, b in pairs:
        profile = profiles[a.device]
        costs = ", ".join(dict.fromkeys(name for name in _wanted(a, b, profiles) if name not in profile.costs))
        what = f"{a.name}, {b.name} share a device, and {profile.name} does not say what they cost each other"
        right = (
            "a device for each, a profile that says it, or time.unmeasured: shared (each gets its part of the time)"
        )
        raise BadInput(f"{what} ({costs})", where="deployment.workers", right=right)


def shares(pairs: Sequence[Pair]) -> dict[tuple[str, ...], Rates]:
    """At which rates such workers get on while some of those that they share with are busy (`SimExecutor`)."""
    others: dict[str, list[str]] = {}
    for a, b in pairs:
        if not isinstance(a, TokenWorker):
            others.setdefault(a.name, []).append(b.name)
            others.setdefault(b.name, []).append(a.name)
    return {
        (name, *some): (1.0, 1.0 / (1 + many))
        for name, beside in others.items()
        for many in range(1, len(beside) + 1)
        for some in itertools.combinations(beside, many)
    }


def told(pairs: Sequence[Pair]) -> list[str]:
    """What a report says of them."""
    return [
        f"{a.name} and {b.name} share {a.device} in time: what they cost each other was not measured"
        for a, b in pairs
    ]
