"""Power of two choices: of *choices* workers drawn at random, the one with the fewest requests.

Nearly as good as looking at all, for the price of asking two; and it herds less where what is seen is stale. Source:
Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS 12, 2001), section 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.parameters import at_least
from servetwin.core.random_streams import stream
from servetwin.core.routing import Router, WorkerState


class PowerOfTwo(Router):
    """*choices* different workers are drawn from the experiment's seed; of equals the one that was drawn first."""

    draws = True

    def __init__(self, choices: int = 2) -> None:
        at_least(1, "power_of_two", choices=choices)
        self.choices = choices

    def start(self, workers: Sequence[WorkerState], seed: int) -> None:
        self.source = stream(seed, "router")

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        drawn = self.source.permutation(len(workers))[: self.choices]
        return min((workers[int(i)] for i in drawn), key=lambda worker: worker.here())
