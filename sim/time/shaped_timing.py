"""How long batches take of a worker whose requests are of several shapes: each shape has a timing of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from servetwin.core import Batch, InvariantBroken, Shape, WorkerView

from .timing import Demand, Timing

#: What of a timing is the worker's, whatever it computes: its noise, and the slow periods of its host.
SHARED = ("draw", "spread", "slow_spells")


@dataclass
class ShapedTiming:
    """Goes by the timing of the shape that a batch is of. Noise is drawn for all of them from one stream."""

    by_shape: Mapping[Shape, Timing]
    draw: Callable[[], float] | None = field(init=False)
    view: WorkerView | None = field(default=None, init=False)
    _now: Timing = field(init=False)  # of the batch in hand, or the last one

    def __post_init__(self) -> None:
        self._now, *others = self.by_shape.values()
        self.draw = self._now.draw
        for other in others:
            _share(self._now, other)

    @property
    def settled(self) -> bool:
        return self._now.settled

    def demand(self, batch: Batch, idle: float, now: float) -> Demand:
        shapes = {task.request.shape for task in batch.tasks}
        if len(shapes) > 1:
            raise InvariantBroken(f"{batch} holds requests of several shapes: {' and '.join(map(str, shapes))}")
        shape = batch.tasks[0].request.shape
        assert shape is not None
        self._now = self.by_shape[shape]
        return self._now.demand(batch, idle, now)

    def plain(self, size: int, now: float, leaves: int = 0) -> Demand:
        return self._now.plain(size, now, leaves)

    def step(self, size: int, now: float) -> Demand:
        return self._now.step(size, now)

    def steady_until(self) -> float:
        return self._now.steady_until()

    def pause(self, batch: Batch) -> float:
        return self._now.pause(batch)

    def hand_over(self, batch: Batch) -> float:
        return self._now.hand_over(batch)


def _share(first: Any, other: Any) -> None:
    """Let *other* draw from what *first* draws from."""
    for name in SHARED:
        if getattr(other, name, None) is not None:
            setattr(other, name, getattr(first, name))
    if hasattr(other, "steps"):  # of whole requests
        _share(first.steps, other.steps)
