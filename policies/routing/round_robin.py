"""Round robin: one worker after the other."""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.routing import Router, WorkerState


class RoundRobin(Router):
    """One worker after the other, for each stage by itself."""

    static = True

    def __init__(self) -> None:
        self.turns: dict[str, int] = {}

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        stage = workers[0].stage.name
        turn = self.turns.get(stage, 0)
        self.turns[stage] = turn + 1
        return workers[turn % len(workers)]
