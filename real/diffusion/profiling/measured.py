"""What a profiler has measured so far, and how much of it is done."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: Hears (what is measured next, measurements done, how many there will be in all).
Progress = Callable[[str, int, int], None]


class Count:
    """How many measurements are done, of those that *expected* has by term; a term may take fewer."""

    def __init__(self, expected: Mapping[str, int], progress: Progress | None) -> None:
        self.expected, self.progress = dict(expected), progress
        self.term, self.before, self.own = "", 0, 0

    def begin(self, term: str) -> None:
        """All terms before *term* are over."""
        names = [*self.expected]
        self.term, self.own = term, 0
        self.before = sum(self.expected[name] for name in names[: names.index(term)])
        self._tell()

    def one(self) -> None:
        """A measurement of the term is over."""
        self.own = min(self.own + 1, self.expected.get(self.term, 0))
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.term, self.before + self.own, sum(self.expected.values()))


@dataclass
class Measured:
    """What was measured so far; times in seconds, by batch size where they are mappings."""

    iteration: dict[int, list[float]] = field(default_factory=dict)  # of the loop, launch to heard
    plain: dict[int, list[float]] = field(default_factory=dict)  # the same where nothing else happens
    visits: dict[int, list[float]] = field(default_factory=dict)  # the same, spread over the time of measuring
    pauses: dict[int, list[float]] = field(default_factory=dict)  # the gaps between those
    gap: dict[int, list[float]] = field(default_factory=dict)  # from there to the next launch
    stages: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # stages without a loop
    modules: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # single modules without a loop
    together: dict[int, float] = field(default_factory=dict)  # first iteration of n that join at once, extra
    joins: list[float] = field(default_factory=list)
    starting: list[float] = field(default_factory=list)  # joins that end an idle period
    leaving: list[float] = field(default_factory=list)  # in the iteration
    leaves: list[float] = field(default_factory=list)  # between it and the next
    #: What is measured of so many that join, or leave, at once: the iteration's extra time, or the gap's.
    crowds: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    policies: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    deciding: dict[str, float] = field(default_factory=dict)  # policy -> seconds per request left waiting
    whole: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # (steps, batch) -> of whole batches
    between: dict[int, list[float]] = field(default_factory=dict)  # after a whole batch of so many, until the next
    #: (stage, others that are busy) -> batches of the one that leads and of the next -> rate
    rates: dict[tuple[str, ...], dict[tuple[int, int], float]] = field(default_factory=dict)
    client: list[float] = field(default_factory=list)
    cold: dict[float, float] = field(default_factory=dict)

    def period(self, n: int) -> float:
        """Mean time of an iteration, start to start."""
        return statistics.fmean(self.iteration[n]) + statistics.fmean(self.gap[n])

    def planned(self, n: int) -> float:
        """Median of the same: what schedulers plan with."""
        return statistics.median(self.iteration[n]) + statistics.fmean(self.gap[n])
