"""Values by batch size: exact where they were measured, straight lines between.

>>> unet = LatencyTable([1, 2, 4], [0.25, 0.5, 1.0], name="unet")
>>> unet(2), unet(3)
(0.5, 0.75)
>>> unet(5)  # doctest: +NORMALIZE_WHITESPACE
Traceback (most recent call last):
    ...
servetwin.profiles.tables.latency_table.OutOfRange: unet: no value for a batch of 5
    (right would be: 1 to 4, or hold: true)
>>> unet.holding()(5)
1.0
>>> unet.scaled(1.1).largest
4
"""

from __future__ import annotations

import hashlib
import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Self

from servetwin.core import BadInput


def interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The height at *x* of the line through the points (*xs*, *ys*), level beyond its ends; *xs* increase."""
    i = bisect_left(xs, x)
    if i == len(xs):
        return ys[-1]
    if i == 0 or xs[i] == x:
        return ys[i]
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    low, high = sorted((ys[i - 1], ys[i]))
    return min(max(ys[i - 1] + (ys[i] - ys[i - 1]) * share, low), high)


class OutOfRange(BadInput):
    """A batch size that nobody measured was asked for."""


class BatchTable:
    """A quantity by batch size. Immutable; equal tables are equal, hash alike and have the same `digest`.

    *sizes* are whole numbers from 1, increasing; *values* are finite. A measured value comes back verbatim, between
    two of them the value lies on the straight line. Below the smallest and above the largest size `OutOfRange` is
    raised or, with *hold*, the value at that end is given. *name* is for messages and counts for nothing else.
    """

    __slots__ = ("_dense", "hold", "largest", "name", "sizes", "smallest", "values")

    sizes: tuple[int, ...]
    values: tuple[float, ...]
    name: str
    hold: bool
    smallest: int
    largest: int
    _dense: list[float]

    def __init__(
        self, sizes: Sequence[int], values: Sequence[float], *, name: str = "table", hold: bool = False
    ) -> None:
        fault = self.fault(sizes, values)
        if fault:
            raise BadInput(fault, where=name)
        put = object.__setattr__
        put(self, "sizes", tuple(sizes))
        put(self, "values", tuple(float(v) for v in values))
        put(self, "name", name)
        put(self, "hold", hold)
        put(self, "smallest", self.sizes[0])
        put(self, "largest", self.sizes[-1])
        put(self, "_dense", self._between())

    @classmethod
    def fault(cls, sizes: Sequence[int], values: Sequence[float]) -> str | None:
        """What is wrong with these lists, if anything."""
        if not sizes:
            return "no batch sizes"
        if len(sizes) != len(values):
            return f"{len(sizes)} batch sizes but {len(values)} values"
        if sizes[0] < 1:
            return f"batch size {sizes[0]} is below 1"
        for a, b in itertools.pairwise(sizes):
            if a == b:
                return f"batch size {b} stands twice"
            if a > b:
                return f"batch sizes must increase, but {b} follows {a}"
        for n, value in zip(sizes, values, strict=True):
            if not math.isfinite(value):
                return f"the value for batch size {n} is {value}, not a finite number"
        return None

    def _between(self) -> list[float]:
        """The value for every size up to the largest; nan where there is none."""
        return [math.nan] * self.smallest + [
            interpolate(n, self.sizes, self.values) for n in range(self.smallest, self.largest + 1)
        ]

    def __call__(self, n: int) -> float:
        """The value for a batch of *n*."""
        if self.smallest <= n <= self.largest:
            return self._dense[n]
        if self.hold and n >= 1:
            return self.values[0] if n < self.smallest else self.values[-1]
        raise OutOfRange(
            f"no value for a batch of {n}", where=self.name, right=f"{self.smallest} to {self.largest}, or hold: true"
        )

    def upto(self, n: int) -> list[float]:
        """A fresh list of the values for batches of 1 to *n*, to be indexed by the batch size; index 0 holds nan.

        Raises `OutOfRange` where calling the table would.
        """
        if self.smallest == 1 and n <= self.largest:
            return self._dense[: n + 1]
        return [math.nan, *(self(i) for i in range(1, n + 1))]

    def scaled(self, factor: float) -> Self:
        """This table with every value times *factor*: a session in which the host ran slower or faster, say."""
        if factor == 1.0:
            return self
        return type(self)(
            self.sizes, [v * factor for v in self.values], name=f"{self.name} x {factor:g}", hold=self.hold
        )

    def holding(self, hold: bool = True) -> Self:
        """This table, but giving the end values out of range (or, with *hold* false, raising)."""
        return self if hold == self.hold else type(self)(self.sizes, self.values, name=self.name, hold=hold)

    @property
    def digest(self) -> str:
        """A hash of sizes, values and *hold*: the same in every process and on every machine."""
        return hashlib.sha256(repr((self.sizes, self.values, self.hold)).encode()).hexdigest()

    def __setattr__(self, key: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BatchTable):
            return NotImplemented
        return (type(self), self.sizes, self.values, self.hold) == (
            type(other),
            other.sizes,
            other.values,
            other.hold,
        )

    def __hash__(self) -> int:
        return hash((self.sizes, self.values, self.hold))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.sizes, self.values, self.name, self.hold))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self.sizes)} sizes from {self.smallest} to {self.largest}>"


class LatencyTable(BatchTable):
    """Measured seconds by batch size; all of them positive."""

    __slots__ = ()

    @classmethod
    def fault(cls, sizes: Sequence[int], values: Sequence[float]) -> str | None:
        fault = super().fault(sizes, values)
        if fault is None:
            for n, value in zip(sizes, values, strict=True):
                if value <= 0:
                    return f"the latency for batch size {n} is {value:g} s, not above 0"
        return fault


def _rebuild(
    kind: type[BatchTable], sizes: tuple[int, ...], values: tuple[float, ...], name: str, hold: bool
) -> BatchTable:
    return kind(sizes, values, name=name, hold=hold)
