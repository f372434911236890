"""How long the calls of a tool take in simulation, and the threads that make them.

A call's time is drawn for its request and visit, from the experiment's seed: whatever the policy and the order in
which calls begin, the same request takes the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from servetwin.core import BadInput, Batch, Request
from servetwin.core.random_streams import stream

from .time.calendar import Calendar, Timer

#: Requests whose times are drawn in one go, and how many such blocks are kept.
BLOCK = 1024
KEPT = 64

Kind = Literal["constant", "exponential", "lognormal", "list"]


class CallTimes:
    """Seconds of the calls of the tool *name*: constant, or drawn with this *mean* and coefficient of variation *cv*.

    *values* are the times of request 0, 1, ... for the kind "list", which begins again after the last.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        *,
        mean: float = 0.0,
        cv: float = 1.0,
        values: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        if kind == "list" and not values:
            raise BadInput("there are no times in the list", where=name, right="seconds of one call at least")
        self.name, self.kind, self.cv, self.seed = name, kind, cv, seed
        self.values = list(values)
        self.mean = float(np.mean(self.values)) if kind == "list" else mean
        self._drawn: dict[tuple[int, int], list[float]] = {}

    def seconds(self, request: Request, visit: int = 0) -> float:
        """What the call of *request* takes at its *visit* (0: the first)."""
        if self.kind == "constant":
            return self.mean
        if self.kind == "list":
            return self.values[request.id % len(self.values)]
        block, row = divmod(request.id, BLOCK)
        times = self._drawn.get((block, visit))
        if times is None:
            if len(self._drawn) >= KEPT:
                del self._drawn[next(iter(self._drawn))]  # should it be wanted again, the same numbers come
            times = self._drawn[block, visit] = self._draw(block, visit)
        return times[row]

    def _draw(self, block: int, visit: int) -> list[float]:
        source = stream(self.seed, f"calls of {self.name}/{visit}/{block}")
        if self.kind == "exponential":
            return [float(x) for x in source.exponential(self.mean, BLOCK)]
        variance = math.log1p(self.cv**2)
        normal = source.normal(math.log(self.mean) - variance / 2, math.sqrt(variance), BLOCK)
        return [float(x) for x in np.exp(normal)]


class PoolLane:
    """Runs the calls of a pool, each on its own: threads do not slow each other down."""

    def __init__(self, calendar: Calendar, times: CallTimes) -> None:
        self.calendar = calendar
        self.times = times

    def run(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        """Make the one call of *batch*."""
        (task,) = batch.tasks
        visit = sum(t.stage is task.stage for t in task.request.tasks) - 1 if task.stage.again else 0
        seconds = self.times.seconds(task.request, visit)
        Timer(self.calendar, self.calendar.now + seconds, partial(done, batch))
