"""Round robin: one worker after the other."""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request, Worker


class RoundRobin:
    """One worker after the other, for each stage by itself."""

    def __init__(self, workers: Sequence[Worker] = ()) -> None:
        self.turns: dict[str, int] = {}

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        stage = workers[0].stage.name
        turn = self.turns.get(stage, 0)
        self.turns[stage] = turn + 1
        return workers[turn % len(workers)]
