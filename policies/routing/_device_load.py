"""What a device has to do, as the routers that weigh devices count it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from servetwin.core import InvariantBroken, Request
from servetwin.core.arithmetic import float_sum
from servetwin.core.routing import Router, WorkerState

#: Weights that differ by less than this share are equal: the same jobs in another order may sum up to another last
#: bit.
TIE = 1e-9


class DeviceLoad(Router):
    """Goes by what a device has to do: the worker with the least weight; those that weigh the same take turns."""

    def start(self, workers: Sequence[WorkerState], seed: int) -> None:
        self.on: dict[str, list[WorkerState]] = {}
        for worker in workers:
            self.on.setdefault(worker.device, []).append(worker)
        self.next: dict[str, int] = {}  # by stage, the place of the worker whose turn it is among equals

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        weights = self.weights(request, workers, now)
        least = min(weights)
        stage, many = workers[0].stage.name, len(workers)
        first = self.next.get(stage, 0)
        equal = self.equal(weights, least)
        if not equal:
            raise InvariantBroken(f"the router cannot weigh the workers of {stage}: {weights}")
        place = next((place for place in equal if place >= first), equal[0])
        self.next[stage] = (place + 1) % many
        return workers[place]

    def weights(self, request: Request, workers: Sequence[WorkerState], now: float) -> list[Any]:
        """What speaks against each of *workers*: numbers, or tuples of numbers, what counts most first."""
        raise NotImplementedError

    def equal(self, weights: Sequence[Any], least: Any) -> list[int]:
        """The places of those of *weights* that are no more than *least*."""
        if isinstance(least, tuple):
            return [
                place
                for place, weight in enumerate(weights)
                if all(math.isclose(a, b, rel_tol=TIE) for a, b in zip(weight, least, strict=True))
            ]
        most = least * (1 + 2 * TIE)  # few are looked at closely
        return [
            place
            for place, weight in enumerate(weights)
            if weight <= most and math.isclose(weight, least, rel_tol=TIE)
        ]

    def jobs(self, request: Request, worker: WorkerState) -> Iterator[tuple[float, float]]:
        """(seconds alone, deadline) of each request on the worker's device, and of *request* if it went there."""
        for other in self.on[worker.device]:
            yield from other.jobs()
        yield worker.alone(request), request.deadline

    def stretch(self, worker: WorkerState, present: int) -> float:
        """How much longer a request takes than alone while *present* share the device; they are batched as far as the
        limit of its first loop (or of *worker*, if it has none) allows. A group of devices serves each on one, so
        that nobody takes longer until all have as many as they may."""
        main = next((w for w in self.on[worker.device] if w.stage.loop), worker)
        if main.kind in ("pool", "group"):
            return max(1.0, present / main.limit)
        if main.kind == "engine":
            return float(present)  # an LLM's step hardly depends on its batch: what counts is all there is to do
        stage = main.stage
        size = min(present, main.limit)
        modules = (stage.loop,) if stage.loop else stage.modules
        together, alone = (float_sum(main.estimate(m, n) for m in modules) for n in (size, 1))
        return together / alone * present / size
