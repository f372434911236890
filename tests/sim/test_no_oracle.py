"""Invariant 11: what has not arrived changes no decision. Worlds that differ only in their future have one past."""

from __future__ import annotations

import copy

from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Batch, Recorder, Request
from worlds import World, worlds


class Past(Recorder):
    """What ran and what ended before a time."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until
        self.seen: list[tuple] = []

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        if now < self.until:
            self.seen.append((request.id, request.outcome, now))

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        if batch.end < self.until:
            self.seen.append((batch.worker.name, batch.start, batch.end, [t.id for t in batch.tasks]))


@given(worlds(stops=False), st.data())
@settings(max_examples=150)
def test_the_future_changes_no_decision(world: World, data: st.DataObject) -> None:
    known = data.draw(st.integers(0, len(world.arrivals) - 1), label="requests that stay")
    other = copy.deepcopy(world)
    future = data.draw(
        st.lists(st.tuples(st.just(0.05), st.just(3.0), st.integers(1, 9)), max_size=5), label="future"
    )
    other.arrivals = [*world.arrivals[:known], *future]
    until = sum(gap for gap, *_ in world.arrivals[:known])  # nothing new may come before this
    # Iterations are compared one by one: how many are taken together may well depend on what comes.
    pasts = []
    for w in (world, other):
        past = Past(until)
        w.run(past, stepping=True)
        pasts.append(past.seen)
    assert pasts[0] == pasts[1]
