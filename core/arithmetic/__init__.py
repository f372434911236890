"""Sums that come out alike on every Python, and what is told of numbers by the million.

From Python 3.12 on the built-in ``sum`` of floating-point numbers compensates what rounding loses, and so gives other
last bits than 3.11. A run is to have the same bytes everywhere, so floats are added here; mypy refuses the other, by
the plugin ``tests/float_sums.py``. `quantiles` are of numbers in memory, `samples` of more than are to be there.
Begin with `float_sum`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add


def float_sum(values: Iterable[float]) -> float:
    """The sum of *values*, from left to right, each step rounded: the bits of ``sum`` in Python 3.11. 0 of none."""
    return reduce(add, values, 0)
