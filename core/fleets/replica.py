"""One replica of a fleet: whether it serves, since when it is held and paid for, and how long it computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..policy import Batch
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
        #: By device, in order: when it computed. (Threads of pools are no devices.)
        self.spans: dict[tuple[str, int], list[tuple[float, float]]] = {
            (worker.device, number): []
            for worker in workers
            if worker.kind != "pool"
            for number in range(worker.device_count)
        }

    def turn(self, state: State, now: float) -> None:
        """From *now* on it is in that *state*."""
        if self.state == "off":
            self.held.append((now, None))
        if state == "off":
            self.held[-1] = (self.held[-1][0], now)
            for spans in self.spans.values():
                spans.clear()
        self.state, self.since = state, now

    @property
    def present(self) -> int:
        """How many requests are here, or on the wire."""
        return sum(len(w.view.waiting) + len(w.inbox) + len(w.coming) + len(w.view.running) for w in self.workers)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to do."""
        return not self.present and all(not w.batches_under_way and not w.view.backlog for w in self.workers)

    def computed(self, batch: Batch) -> None:
        """*batch* of one of its workers is over; those of one worker are told in the order of their ends."""
        for number, start, end in batch.computing(batch.end):
            spans = self.spans[batch.worker.device, number]
            while spans and spans[-1][1] >= start:
                start, end = min(start, spans[-1][0]), max(end, spans.pop()[1])
            spans.append((start, end))

    def busy(self, since: float, now: float) -> float:
        """Seconds since then in which it computed, on average over its devices; what lies before is forgotten."""
        if not self.spans:
            return 0.0
        going: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for batch in [batch for worker in self.workers for batch in worker.batches_under_way]:
            for number, start, end in batch.computing(now):
                going.setdefault((batch.worker.device, number), []).append((start, end))
        total = 0.0
        for device, spans in self.spans.items():
            while spans and spans[0][1] <= since:
                del spans[0]
            reached = since
            for start, end in sorted([*spans, *going.get(device, ())]):
                total += max(0.0, end - max(start, reached))
                reached = max(reached, end)
        return total / len(self.spans)

    def held_between(self, since: float, until: float) -> list[tuple[float, float]]:
        """The times between those in which it was held."""
        spans = [(max(a, since), min(until if b is None else b, until)) for a, b in self.held]
        return [(a, b) for a, b in spans if b > a]
