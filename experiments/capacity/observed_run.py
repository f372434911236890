"""Runs that are watched for a capacity search: who kept which limit once the system had settled, and the backlog."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from servetwin.core import Outcome, Recorder, Request
from servetwin.core.llm import TokenTask
from servetwin.core.llm.slo import sent_at
from servetwin.core.slo import slack

from ..spec.experiment import Experiment
from ..sweeps.point import Row, beyond_measured
from .stability import SEGMENTS
from .targets import Criterion


class Watch(Recorder):
    """Keeps of each request, by its end: number, arrival, end, whether it met its SLO, and latencies in seconds
    (infinite for what did not finish; 0 between tokens where there is one)."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.met = array("q"), array("b")
        self.arrivals, self.ends = array("d"), array("d")
        self.latencies = {name: array("d") for name in ("e2el", "ttft", "tpot")}

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.ids.append(request.id)
        self.met.append(request.outcome is Outcome.MET)
        self.arrivals.append(request.arrival)
        self.ends.append(now)
        e2el = ttft = tpot = math.inf
        if request.finished is not None:
            e2el = request.finished - request.arrival
            for task in request.tasks:
                if isinstance(task, TokenTask) and task.first_token is not None and task.finished is not None:
                    gaps = task.generated - 1
                    ttft = task.first_token - sent_at(task)
                    tpot = (task.finished - task.first_token) / gaps if gaps else 0.0
        for name, value in (("e2el", e2el), ("ttft", ttft), ("tpot", tpot)):
            self.latencies[name].append(value)


@dataclass(frozen=True)
class Watched:
    """Runs an experiment and gives a row: the *criteria*, each as (requests that keep it, requests) or (mean,
    requests) of those that arrive after the first *warm_up* (a share), backlog and mean latency by segment, and what
    was cut, cut off, or beyond what was measured."""

    criteria: tuple[Criterion, ...]
    warm_up: float

    @property
    def tag(self) -> str:
        """What tells rows of different questions apart."""
        return f"watched:{self.warm_up}:{self.criteria}"

    def __call__(self, experiment: Experiment) -> Row:
        from ..assembly.build import build

        watch = Watch()
        build(experiment, watch).play()
        order = np.argsort(np.array(watch.ids))
        n = len(order)
        first = int(self.warm_up * n)
        arrivals = np.array(watch.arrivals)[order]
        row: Row = {"requests": n, "span": float(arrivals[-1] - arrivals[0])}
        columns = {name: np.array(values)[order][first:] * 1000.0 for name, values in watch.latencies.items()}
        met = np.array(watch.met)[order][first:]
        more = slack(np.array(watch.ends)[order][first:]) * 1000.0
        for criterion in self.criteria:
            row[criterion.name] = self._of(criterion, met, columns, more)
        row["backlog"] = _backlog(arrivals.tolist(), sorted(watch.ends))
        row["beyond"] = beyond_measured(watch.summary)
        cut = watch.summary.input.get("cut", {}).values()
        row["cut"] = [sum(found[what] for found in cut) for what in ("prompts", "outputs")]
        row["cut_off"] = watch.summary.cut_off
        row["latency"] = _by_segment(np.array(watch.latencies["e2el"])[order])
        return row

    def _of(
        self, criterion: Criterion, met: np.ndarray, columns: dict[str, np.ndarray], more: np.ndarray
    ) -> list[Any]:
        """*more* is the tolerance, in milliseconds: what takes exactly as long as it may is within the limit."""
        if criterion.metric is None:
            return [int(met.sum()), len(met)]
        values = columns[criterion.metric]
        if criterion.share is not None:
            return [int((values <= criterion.limit + more).sum()), len(values)]
        mean = float(values.mean())
        if criterion.limit < mean <= criterion.limit + float(more.mean()):
            mean = criterion.limit
        return [mean if math.isfinite(mean) else None, len(values)]


def _backlog(arrivals: Sequence[float], ends: Sequence[float]) -> list[int]:
    """Requests that are there when the last of each segment arrives."""
    n = len(arrivals)
    last = [max(1, (k + 1) * n // SEGMENTS) for k in range(SEGMENTS)]
    return [count - bisect_right(ends, arrivals[count - 1]) for count in last]


def _by_segment(latencies: np.ndarray) -> list[float | None]:
    """The mean latency of each segment, of what finished there."""
    means: list[float | None] = []
    for segment in np.array_split(latencies, SEGMENTS):
        known = segment[np.isfinite(segment)]
        means.append(float(known.mean()) if known.size else None)
    return means
