"""Prefix and load: what a worker's cache holds of the prompt, against how many more requests it has than others.

The score of a worker is the share of the prompt that its cache holds, less *beta* times its relative load: by how
much its requests exceed the mean of all, over that mean. Engines report what they hold; with ``stale`` those reports
are old. Source: load-aware routing of vLLM's production stack (docs, use cases, "Load Aware Routing"); llm-d's
scheduler weighs a prefix score and load scores likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.llm import prompt_of
from servetwin.core.parameters import at_least
from servetwin.core.routing import Router, WorkerState


class PrefixLoad(Router):
    """The worker with the highest score; of equals the one with the fewest requests, and those with equally many take
    turns. *beta* 0 heeds caches alone."""

    def __init__(self, beta: float = 0.5) -> None:
        at_least(0, "prefix_load", beta=beta)
        self.beta = beta
        self.next = 0  # the place of the worker whose turn it is among equals

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        prompt, _ = prompt_of(request, workers[0].stage)
        present = [worker.present for worker in workers]
        mean = sum(present) / len(workers)

        def score(place: int) -> tuple[float, int, int]:
            found = workers[place].found(request) / prompt if prompt else 0.0
            turn = (place - self.next) % len(workers)
            return found - self.beta * (present[place] - mean) / max(1.0, mean), -present[place], -turn

        chosen = max(range(len(workers)), key=score)
        self.next = (chosen + 1) % len(workers)
        return workers[chosen]
