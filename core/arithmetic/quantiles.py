"""Quantiles of numbers that are in memory, to the bit as NumPy has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def between(below: float, above: float, part: float) -> float:
    """The value at *part* (0 to 1) of the way from *below* to *above*, to the bit as numpy's percentiles have it."""
    step = above - below
    return below + step * part if part < 0.5 else above - step * (1.0 - part)


def quantiles(values: np.ndarray, shares: Sequence[float]) -> list[float]:
    """What these *shares* of *values* (at least one, none of them NaN) lie below: what ``numpy.percentile``
    gives to the bit, which loads numpy's masked arrays to find it."""
    last = len(values) - 1
    places = [(int(last * share), last * share) for share in shares]
    ranked = np.partition(values, sorted({rank for place, _ in places for rank in (place, min(place + 1, last))}))
    return [
        between(float(ranked[place]), float(ranked[min(place + 1, last)]), exact - place) for place, exact in places
    ]


def median(values: np.ndarray) -> float:
    """The middle of *values*, or the mean of the two in the middle, to the bit as ``numpy.median`` has it."""
    last = len(values) - 1
    ranked = np.partition(values, sorted({last // 2, (last + 1) // 2}))
    return float((ranked[last // 2] + ranked[(last + 1) // 2]) / 2.0)
