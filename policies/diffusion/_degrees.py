"""On how many devices a request ends in time with the fewest device-seconds: what `deadline_degree` plans with."""

from __future__ import annotations

import math

#: Seconds by which sums of steps may miss the end of a round, or a deadline, by a last bit.
EPSILON = 1e-9


def cheapest(seconds: dict[int, float], steps: int, within: float) -> list[int] | None:
    """The degrees, at most two of *seconds* (of a step, by degree), on which *steps* of them end *within* so many
    seconds with the fewest device-seconds; None if they cannot.

    >>> cheapest({1: 1.0, 2: 0.6, 4: 0.4}, 10, 10.0)
    [1]
    >>> cheapest({1: 1.0, 2: 0.6, 4: 0.4}, 10, 8.0)
    [1, 2]
    >>> cheapest({1: 1.0, 2: 0.6, 4: 0.4}, 10, 3.0)
    """
    found: tuple[float, list[int]] | None = None
    for slow, own in seconds.items():
        for fast, other in seconds.items():
            if fast < slow:
                continue
            quick = 0
            if steps * own > within + EPSILON and own > other:
                quick = math.ceil((steps * own - within) / (own - other) - EPSILON)
            if quick > steps or quick * other + (steps - quick) * own > within + EPSILON:
                continue
            cost = quick * fast * other + (steps - quick) * slow * own
            used = [degree for degree, n in ((slow, steps - quick), (fast, quick)) if n]
            if found is None or cost < found[0] - EPSILON:
                found = (cost, used)
    return found[1] if found is not None else None
