"""Randomness of durations, drawn from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf

import numpy as np

#: How many random numbers are fetched at a time.
CHUNK = 1024


def uniform(rng: np.random.Generator) -> Callable[[], float]:
    """Numbers from 0 to 1, one per call."""
    return _one_by_one(lambda: rng.random(CHUNK))


def _one_by_one(draw: Callable[[], np.ndarray]) -> Callable[[], float]:
    """What *draw* gives, a number per call."""

    def numbers() -> Iterator[float]:
        while True:
            yield from draw().tolist()

    return numbers().__next__  # nothing of ours is run but for every chunk


def exponential(draw: Callable[[], float]) -> Callable[[], float]:
    """Exponential numbers of mean 1, one per call, from numbers from 0 to 1."""
    return _one_by_one(lambda: -np.log1p([-draw() for _ in range(64)]))


def from_quantiles(rng: np.random.Generator, p: Sequence[float], values: Sequence[float]) -> Callable[[], float]:
    """Draws from the distribution with quantiles *values* at shares *p*, linear between, level beyond the ends."""
    return _one_by_one(lambda: np.interp(rng.random(CHUNK), p, values))


class SlowSpells:
    """A host that is slow for spells: a call tells the factor on host time at a time (times must not go back), which
    stays *until* then.

    Slow periods of *length* seconds on average (exponential) take up *share* of the time; in them host work takes
    *slow* times as long, between them *normal* times.
    """

    def __init__(self, rng: np.random.Generator, share: float, length: float, normal: float, slow: float) -> None:
        draw = uniform(rng)
        self._means = (length * (1.0 - share) / share, length)
        self._factors = (normal, slow)
        self._slow = draw() < share
        self._exponential = exponential(draw)
        self.until = self._exponential() * self._means[self._slow]

    def __call__(self, now: float) -> float:
        until = self.until
        if now >= until:
            slow, means, draw = self._slow, self._means, self._exponential
            while now >= until:
                slow = not slow
                until += draw() * means[slow]
            self.until, self._slow = until, slow
        return self._factors[self._slow]

    def last(self, now: float, work: float) -> float:
        """Seconds that *work* seconds of host work take if they begin *now*."""
        start = now
        while True:
            factor = self(now)
            end = now + work * factor
            if end <= self.until:
                return end - start
            work -= (self.until - now) / factor
            now = self.until


class Slowdown:
    """A host whose speed wanders: a call tells what its work takes over the mean at a time (times must not go back).

    *draw* gives a factor, which stays for *length* seconds on average (exponential).
    """

    def __init__(self, draw: Callable[[], float], lasting: Callable[[], float], length: float) -> None:
        self._draw, self._lasting, self._length = draw, lasting, length
        self._factor = draw()
        self._until = length * lasting()

    def __call__(self, now: float) -> float:
        if now >= self._until:
            self._factor = self._draw()
            while self._until <= now:
                self._until += self._length * self._lasting()
        return self._factor


class Stalls:
    """A host that stands still now and then: a call tells for how many seconds at a time (times must not go back).

    From one stall to the next passes what *gap* gives, a stall takes what *length* gives. Those with gaps of their
    own (*changing*) come only where the batch changes. Of those that have come since the last call only one is seen.
    """

    def __init__(
        self, gap: Callable[[], float], length: Callable[[], float], changing: Callable[[], float] | None = None
    ) -> None:
        self._gap = gap
        self._length = length
        self._changing = changing
        self.due = gap()
        self.due_changing = inf if changing is None else changing()

    def __call__(self, now: float, changes: bool = False) -> float:
        seen = now >= self.due
        while self.due <= now:
            self.due += self._gap()
        if now >= self.due_changing:
            assert self._changing is not None
            seen = seen or changes
            while self.due_changing <= now:
                self.due_changing += self._changing()
        return self._length() if seen else 0.0
