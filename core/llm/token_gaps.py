"""Gaps between tokens, by the million: mean and spread exactly, the middle and the tail of them all."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import sqrt

import numpy as np

from ..arithmetic.quantiles import between, median, quantiles
from ..errors import BadInput

#: So many are added up at a time: they stay in the processor's cache, and no library starts threads for so few.
_PORTION = 8192
#: The shares of gaps that are told beside the median.
_TAILS = (0.9, 0.99)


def as_array(times: Sequence[float] | None) -> np.ndarray:
    """*times* of tokens as an array; without a copy where that can be. Raises `BadInput` if nobody kept them
    (`servetwin.core.Recorder.wants_token_times`)."""
    if times is None:
        raise BadInput("the times of single tokens were not kept", right="a recorder with wants_token_times")
    return np.frombuffer(times) if isinstance(times, array) else np.asarray(times)


class Gaps:
    """Gaps between tokens in seconds: all of them up to *most*, beyond that counts in bins 0.1 % wide (so memory
    stays flat).

    Sums are of gaps rounded to units of 2**-30 s, which add up without error: mean and standard deviation do not
    depend on the order in which gaps come, nor on whether equal ones come one by one or counted.
    """

    SHORTEST, RATIO, BINS = 1e-6, 1.001, 25_000

    def __init__(self, most: int = 1 << 20) -> None:
        self.most = most
        self.kept = array("d")  # each once
        self.counted: list[tuple[np.ndarray, np.ndarray]] = []  # gaps, and how often there was each
        self.held = 0  # how many both of them stand for
        self.count = 0  # of those in the sums
        self.total = self.squares = 0  # in units, and in units squared
        self.bins: np.ndarray | None = None

    def add(self, times: Sequence[float] | None) -> None:
        """The gaps between *times*. Raises `BadInput` if there are none, since nobody kept them."""
        at = as_array(times)
        self.kept.frombytes((at[1:] - at[:-1]).tobytes())
        self.held += len(at) - 1
        if self.held > self.most:
            self._fold()

    def add_counted(self, gaps: np.ndarray, counts: np.ndarray) -> None:
        """Each of *gaps* as often as *counts* says, once at least."""
        self.counted.append((gaps, counts))
        self.held += int(counts.sum())
        if self.held > self.most:
            self._fold()

    def _counted(self) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """What is held, with its counts; None: each once."""
        parts: list[tuple[np.ndarray, np.ndarray | None]] = [*self.counted]
        return [(np.array(self.kept), None), *parts] if self.kept else parts

    def merge(self, other: Gaps) -> None:
        """Count the gaps of *other* as well; what is told is what one of all of them tells."""
        self.kept.extend(other.kept)
        self.counted += other.counted
        self.held += other.held
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        if other.bins is not None:
            self.bins = other.bins if self.bins is None else self.bins + other.bins
        if self.held > self.most or (self.bins is not None and self.held):
            self._fold()

    def _fold(self) -> None:
        for gaps, counts in self._counted():
            at = np.log(np.maximum(gaps, self.SHORTEST) / self.SHORTEST) / np.log(self.RATIO)
            found = np.bincount(np.minimum(at.astype(int), self.BINS - 1), counts, self.BINS).astype(int)
            self.bins = found if self.bins is None else self.bins + found
        self.sum_up()

    def sum_up(self) -> None:
        """Add what is held to the sums, and hold it no more."""
        for gaps, counts in self._counted():
            for i in range(0, len(gaps), _PORTION):
                units = np.rint(gaps[i : i + _PORTION] * 2.0**30)
                # Squares of halves of the digits are whole numbers below 2**53, and so are their sums: no rounding.
                high = np.floor(units * 2.0**-15)
                low = units - high * 2.0**15
                if counts is None:
                    first, many_high, many_low = units.sum(), high, low
                else:
                    times = counts[i : i + _PORTION].astype(float)
                    first, many_high, many_low = times @ units, times * high, times * low
                self.total += int(first)
                self.squares += int(many_high @ high) << 30
                self.squares += (int(many_high @ low) << 16) + int(many_low @ low)
        self.count += self.held
        self.held = 0
        self.kept, self.counted = array("d"), []

    def statistics(self) -> tuple[float, ...] | None:
        """Mean, standard deviation, median, 90th and 99th percentile in seconds; None without a gap."""
        if not self.count + self.held:
            return None
        if self.bins is None:
            middle, *tails = self._middle_and_tails()
            exact = Gaps()
            exact.kept, exact.counted, exact.held = self.kept, self.counted, self.held
            exact.sum_up()
        else:
            if self.held:
                self._fold()
            middle, *tails = (self._share(share) for share in (0.5, *_TAILS))
            exact = self
        total, count = exact.total, exact.count
        mean = total / (count << 30)
        return mean, sqrt((count * exact.squares - total * total) / (count * count << 60)), middle, *tails

    def _middle_and_tails(self) -> tuple[float, ...]:
        """Median, 90th and 99th percentile of all, as numpy's ``median`` and ``percentile`` would give them."""
        if not self.counted:
            gaps = np.array(self.kept)
            return median(gaps), *quantiles(gaps, _TAILS)
        parts = self._counted()
        gaps = np.concatenate([gaps for gaps, _ in parts])
        counts = np.concatenate([np.ones(len(g), dtype=int) if counts is None else counts for g, counts in parts])
        order = np.argsort(gaps)
        gaps, upto = gaps[order], np.cumsum(counts[order])

        def ranked(place: int) -> float:
            return float(gaps[np.searchsorted(upto, place, side="right")])

        count = self.held
        middle = (ranked((count - 1) // 2) + ranked(count // 2)) / 2.0

        def at(share: float) -> float:
            exact = (count - 1) * share
            place = int(exact)
            return between(ranked(place), ranked(min(place + 1, count - 1)), exact - place)

        return middle, *map(at, _TAILS)

    def _share(self, share: float) -> float:
        assert self.bins is not None
        at = int(np.searchsorted(np.cumsum(self.bins), share * self.count))
        return float(self.SHORTEST * self.RATIO ** (at + 0.5))
