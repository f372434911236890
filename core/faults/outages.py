"""What is told of faults at the end of a run: which worker was down when, what was lost, who was sent again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from ..arithmetic import float_sum
from ..request import Task
from .schedule import Event


@dataclass
class Outage:
    """A *worker* is down from *at* to *until* (infinite: for ever), since *event*; of a pause that was noticed,
    *at* is when that began. It was *noticed* then (None: not yet); *lost* are the visits that were lost with it."""

    worker: str
    event: Event
    at: float
    until: float
    noticed: float | None = None
    lost: list[Task] = field(default_factory=list)
    lost_requests: int = 0
    #: Seconds of batches that were computing when it happened, and whose results are lost.
    lost_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """A line of ``faults.jsonl``."""
        return {
            "kind": self.event.kind,
            "what": self.event.what or self.worker,
            "worker": self.worker,
            "at": self.at,
            "until": self.until if self.until < inf else None,
            "noticed": self.noticed,
            "lost_requests": self.lost_requests,
            "lost_seconds": self.lost_seconds,
        }


def other_fault(event: Event, worker: str) -> dict[str, Any]:
    """A line of ``faults.jsonl`` for an *event* in which *worker* is not down."""
    said: dict[str, Any] = {
        "kind": event.kind,
        "what": event.what or worker,
        "worker": worker,
        "at": event.at,
        "until": event.until if event.until < inf else None,
    }
    if event.kind == "slow":
        said["factor"] = event.factor
    if event.kind == "late":
        said["seconds"] = event.seconds
    return said


def fault_while_down(event: Event, worker: str) -> dict[str, Any]:
    """A line of ``faults.jsonl`` for an *event* that befell *worker* while it was down. A pause of what is down is
    none; a failure may let it be back later."""
    said = other_fault(event, worker)
    return {**said, "until": event.at if event.kind == "pause" else said["until"], "while_down": True}


def down_between(outages: Iterable[Outage], since: float, until: float) -> float:
    """Seconds between these times in which a worker with these *outages*, in order, was down."""
    total, reached = 0.0, since
    for outage in outages:
        begin, end = max(outage.at, reached), min(outage.until, until)
        if end > begin:
            total += end - begin
            reached = end
    return total


@dataclass
class Counts:
    """What happened to requests. *retried* counts sendings that were not the first, *requests* those who had one."""

    lost: int = 0
    retried: int = 0
    requests: int = 0
    gave_up: int = 0
    out_of_memory: int = 0


def summary(outages: Mapping[str, list[Outage]], counts: Counts, since: float, until: float) -> dict[str, Any]:
    """What ``summary.json`` says under ``faults`` of a run between these times; *outages* are by worker.

    A worker's *availability* is the share of the time in which it was not down. *lost_device_seconds* are those that
    its batches had computed when they were cut off.
    """
    length = until - since
    workers: dict[str, Any] = {}
    for worker, own in outages.items():
        there = [outage for outage in own if outage.at <= until]
        down = down_between(there, since, until)
        workers[worker] = {
            "failures": len(there),
            "down_seconds": down,
            "availability": 1.0 - down / length if length > 0.0 else None,
        }
    all_of = [outage for own in outages.values() for outage in own if outage.at <= until]
    noticed = [outage.noticed - outage.at for outage in all_of if outage.noticed is not None]
    shares = [own["availability"] for own in workers.values() if own["availability"] is not None]
    return {
        "failures": len(all_of),
        "visits_lost": counts.lost,
        "visits_retried": counts.retried,
        "requests_retried": counts.requests,
        "gave_up": counts.gave_up,
        "out_of_memory": counts.out_of_memory,
        "lost_device_seconds": float_sum(outage.lost_seconds for outage in all_of),
        "mean_seconds_to_notice": float_sum(noticed) / len(noticed) if noticed else None,
        "mean_availability": float_sum(shares) / len(shares) if shares else None,
        "workers": workers,
    }
