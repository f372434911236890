"""One replica of a fleet: whether it serves, since when it is held and paid for, and how long it computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..serving.worker import Handle, Worker

State = Literal["off", "starting", "ready", "draining"]


class Replica:
    """The *workers* that start and stop together. It is held from the beginning of its start until it has stopped."""

    def __init__(self, number: int, workers: Sequence[Worker]) -> None:
        self.number = number
        self.workers = list(workers)
        self.state: State = "off"
        self.since = 0.0  #: when it came to be in this state
        self.timer: Handle | None = None  #: of its start
        self.held: list[tuple[float, float | None]] = []  #: from when to when, None: still
        self.spans: list[tuple[float, float]] = []  # in which it computed, in order

    def turn(self, state: State, now: float) -> None:
        """From *now* on it is in that *state*."""
        if self.state == "off":
            self.held.append((now, None))
        if state == "off":
            self.held[-1] = (self.held[-1][0], now)
            self.spans.clear()
        self.state, self.since = state, now

    @property
    def present(self) -> int:
        """How many requests are here, or on the wire."""
        return sum(len(w.view.waiting) + len(w.inbox) + len(w.coming) + len(w.view.running) for w in self.workers)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to do."""
        return not self.present and all(w.view.in_flight is None and not w.view.backlog for w in self.workers)

    def computed(self, start: float, end: float) -> None:
        """One of its workers computed from *start* to *end*; those of one worker are told in the order of their
        ends."""
        spans = self.spans
        while spans and spans[-1][1] >= start:
            start = min(start, spans.pop()[0])
        spans.append((start, end))

    def busy(self, since: float, now: float) -> float:
        """Seconds since then in which it computed; what lies before is forgotten."""
        spans = self.spans
        while spans and spans[0][1] <= since:
            del spans[0]
        total = sum(end - max(start, since) for start, end in spans)
        begun = [w.view.in_flight.start for w in self.workers if w.view.in_flight is not None]
        if begun:
            last = spans[-1][1] if spans else since
            total += now - max(min(begun), last, since)
        return total

    def held_between(self, since: float, until: float) -> list[tuple[float, float]]:
        """The times between those in which it was held."""
        spans = [(max(a, since), min(until if b is None else b, until)) for a, b in self.held]
        return [(a, b) for a, b in spans if b > a]
