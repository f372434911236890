"""Goodput in a window of time, worker by worker, as the NeuStream artifact's multi-agent experiments count it.

A token counts if it was on time (see `TokenDeadlines`) and came out within the window, which begins some seconds
after the first request reached the worker. So neither the first requests, which find empty queues, nor those after
the last arrival, which are served in peace, count.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from .metrics import TokenSummary
from .request import TokenTask
from .slo import TokenDeadlines


class WorkerTokens:
    """When the tokens of one worker that were on time came out (seconds), 8 bytes for each."""

    def __init__(self) -> None:
        self.first_arrival = float("inf")
        self.tokens, self.firsts, self.lasts = array("d"), array("d"), array("d")

    def add(self, task: TokenTask, slo: TokenDeadlines) -> None:
        """*task*, whose request has ended."""
        self.first_arrival = min(self.first_arrival, task.arrival)
        if task.first_token is None:
            return
        times = np.asarray(task.times())
        on_time = slo.in_time(task)
        self.tokens.frombytes(times[on_time].tobytes())
        if on_time[0]:
            self.firsts.append(float(times[0]))
        if task.finished is not None and on_time[-1]:
            self.lasts.append(float(times[-1]))

    def rates(self, skip: float, seconds: float) -> dict[str, float]:
        """Tokens on time, first tokens on time and last tokens on time per second of the window."""
        begin = self.first_arrival + skip

        def rate(times: array[float]) -> float:
            found = np.asarray(times)
            return float(np.count_nonzero((found >= begin) & (found <= begin + seconds))) / seconds

        return {
            "token_goodput": rate(self.tokens),
            "prefill_goodput": rate(self.firsts),
            "decode_goodput": rate(self.lasts),
        }


class WindowSummary(TokenSummary):
    """A `TokenSummary` that also counts in a window of *seconds*, *skip* seconds after a worker's first request."""

    def __init__(self, *arguments: Any, skip: float, seconds: float, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.skip, self.seconds = skip, seconds
        self.by_worker: dict[tuple[str, str], WorkerTokens] = {}  # (stage, worker)

    def ended(self, request: Any, now: float) -> None:
        super().ended(request, now)
        for task in request.tasks:
            if isinstance(task, TokenTask) and task.worker is not None:
                slo = self.stages[task.stage.name].slo
                if slo is not None:
                    key = (task.stage.name, task.worker.name)
                    self.by_worker.setdefault(key, WorkerTokens()).add(task, slo)

    def as_dict(self) -> dict[str, Any]:
        """As of `TokenSummary`, with ``window``: rates by stage, the workers of a stage added up, each in its own
        window."""
        out = super().as_dict()
        stages: dict[str, dict[str, float]] = {}
        for (stage, _), tokens in sorted(self.by_worker.items()):
            found = stages.setdefault(stage, {})
            for name, value in tokens.rates(self.skip, self.seconds).items():
                found[name] = found.get(name, 0.0) + value
        out["window"] = {"skip": self.skip, "seconds": self.seconds, "stages": stages}
        return out
