"""Whether the host of a run on vLLM was as fast as when its profile was measured.

Steps that decide a step ahead wait for their launch where the host is slow, so that a run on a slower host, or beside
other work on its cores, is slower than a simulation by the profile says. Nothing about the device tells that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..tables.cost import Cost
from ..tables.costs import BEGINS, BEGINS_EACH, LAUNCH, LAUNCH_EACH, LAUNCH_PIECES

#: Seconds from the end of a launch that the device waited for until its own end: a profile's launches have them.
TAIL = 4e-4
#: Steps of a kind at least, for it to be told.
ENOUGH = 20
#: What is still the same host.
ALIKE = 0.1
#: What a host takes to launch, by its name there, and by which factor of `over_profile` it gets longer.
OF_HOST = {
    "begins": BEGINS(),
    "begins_each": BEGINS(),
    "each": BEGINS(),
    "pieces": LAUNCH_PIECES(),
    "launch": LAUNCH(),
}
#: How steps are launched, in words, by the cost of it.
WORDS = {BEGINS(): "as one graph", LAUNCH_PIECES(): "piece by piece", LAUNCH(): "kernel by kernel"}


def over_profile(
    launches: Any, schedule: Sequence[float], costs: Mapping[str, Cost], graphs: int
) -> dict[str, float]:
    """How many times as long as by the *costs* of a profile, whose largest graph has *graphs* tokens, the host took
    to launch steps, by the name of the cost (`WORDS`).

    *launches* is an array of shape (steps, 4): tokens, sequences, seconds until launched and until its sampling was;
    *schedule* are the seconds that the scheduler took, median and mean. Kinds of fewer than `ENOUGH` steps are left
    out; nothing is told of a profile that knows no such costs.
    """
    if BEGINS() not in costs:
        return {}
    tokens, sequences, launched, sampled = np.asarray(launches, dtype=float).reshape(-1, 4).T
    median, mean = schedule

    def cost(name: str) -> float:
        return costs[name].scalar() if name in costs else 0.0

    alone = tokens == sequences
    factors: dict[str, float] = {}
    if (decoding := alone & (tokens <= graphs)).sum() >= ENOUGH:
        usual = cost(BEGINS()) + cost(BEGINS_EACH()) * float(np.median(sequences[decoding]))
        factors[BEGINS()] = float((np.median(launched[decoding]) + median) / usual)
    for name, some in ((LAUNCH_PIECES(), ~alone & (tokens <= graphs)), (LAUNCH(), tokens > graphs)):
        usual = cost(name) + cost(LAUNCH_EACH()) * float(sequences[some].mean()) if some.any() else 0.0
        if some.sum() >= ENOUGH and usual > 0.0:
            factors[name] = float((sampled[some].mean() + mean + TAIL) / usual)
    return factors


def lengthened(launches: Mapping[str, Any], factors: Mapping[str, float]) -> dict[str, Any]:
    """The seconds of *launches* (under the names of `servetwin.core.llm.serving.host.Host`) on a host that takes as
    many times as long as *factors* say, which are as of `over_profile`. What sequences cost that leave a batch or
    come back is in the factors, and stays as it is."""
    return {name: launches[name] * factors[cost] for name, cost in OF_HOST.items()}


def line(factors: Mapping[str, float], profile: str) -> str:
    """What is told of *factors*, as of `over_profile`, over *profile*."""
    told = ", ".join(f"{factor:.2f} times {WORDS[name]}" for name, factor in factors.items())
    text = f"launching a step took as long as in {profile}: {told}"
    if max(factors.values()) > 1.0 + ALIKE:
        return f"{text}; the host was slower, so a simulation by this profile says more than it could do"
    if min(factors.values()) < 1.0 - ALIKE:
        return f"{text}; the host was faster than then"
    return text
