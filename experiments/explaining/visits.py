"""A request's way through the stages, from its arrival to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from servetwin.core import BadInput

#: (stage -> the stages that lead there), where the pipeline is known.
Inputs = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Visit:
    """A request at a stage: *came* to the worker's queue, was there until *until*. Times in seconds since the run
    began; *stay* is what the records say of it."""

    request: int
    stage: str
    worker: str
    came: float
    until: float
    stay: Mapping[str, Any]
    #: Where it was lost, and begun anew: when it was first sent; of one that was not sent again, when it was lost.
    lost_first: float = inf
    lost_last: float = inf

    @property
    def finished(self) -> bool:
        return self.stay["finished"] is not None

    @property
    def admitted(self) -> float | None:
        found: float | None = self.stay["admitted"]
        return found

    @property
    def started(self) -> float | None:
        found: float | None = self.stay["started"]
        return found

    @property
    def is_llm(self) -> bool:
        return "prompt" in self.stay

    @property
    def is_handed(self) -> bool:
        """Whether its prompt was computed by another worker, and has stood there."""
        return "handover" in self.stay

    @property
    def token_of_prefill(self) -> bool:
        """Whether the first token of one that was handed over came with its prefill."""
        first = self.stay["first_token"]
        return first is not None and first <= self.stay["handover"]["prefilled"]

    def places(self) -> list[tuple[str, float, float]]:
        """(worker, since when, until when) of each worker that it was at."""
        if not self.is_handed:
            return [(self.worker, self.came, self.until)]
        told = self.stay["handover"]
        since = told["prefilled"] if told["handed"] is None else told["handed"]
        return [(told["from"], self.came, told["prefilled"]), (self.worker, since, self.until)]


def end_of(record: Mapping[str, Any]) -> float:
    """When a request ended. Raises `BadInput` if the records do not say it, as older ones do not of what was dropped
    or failed."""
    end = record["finished"] if record["finished"] is not None else record.get("ended")
    if end is None:
        what = f"request {record['id']} was {record['outcome']}, and its record does not say when"
        raise BadInput(what, where="requests.jsonl", right="a run recorded anew: its records hold `ended`")
    return float(end)


def way_of(record: Mapping[str, Any], inputs: Inputs) -> list[Visit]:
    """The visits that led a request to its end, each to the next: where a pipeline forks, those that were waited for.

    Of one that was dropped or failed the last is the visit at which that happened.
    """
    end, stays = end_of(record), record["stages"]
    last = _last(record, stays)
    found: list[Mapping[str, Any]] = []
    while last is not None:
        found.append(last)
        last = _before(last, stays, found, inputs)
    return [_visit(record["id"], stay, end, record.get("attempts", ())) for stay in reversed(found)]


def _visit(number: int, stay: Mapping[str, Any], end: float, attempts: Sequence[Mapping[str, Any]]) -> Visit:
    until = stay["finished"] if stay["finished"] is not None else end
    came = min(stay["queued"], until)
    first = last = inf
    lost = [one for one in attempts if one["stage"] == stay["stage"]]
    if lost and "prompt" not in stay:  # a language model's visit goes on where it was
        first = min(one["queued"] for one in lost)
        if stay["finished"] is None and lost[-1]["lost"] >= came:
            last = lost[-1]["lost"]
    return Visit(number, stay["stage"], stay["worker"] or stay["stage"], came, until, stay, first, last)


def _last(record: Mapping[str, Any], stays: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    if record["finished"] is not None:
        return max(stays, key=lambda s: (s["finished"] is not None, s["finished"] or 0.0), default=None)
    reason = record["reason"] or ""
    if reason.startswith("not forwarded from "):
        stage = reason.removeprefix("not forwarded from ")
        done = [s for s in stays if s["stage"] == stage and s["finished"] is not None]
        if done:
            return max(done, key=lambda s: s["finished"])
    still = [s for s in stays if s["finished"] is None]
    there = [s for s in still if reason == f"dropped at {s['worker']}"]
    return max(there or still or stays, key=lambda s: s["queued"], default=None)


def _before(
    stay: Mapping[str, Any], stays: Sequence[Mapping[str, Any]], taken: Sequence[Mapping[str, Any]], inputs: Inputs
) -> Mapping[str, Any] | None:
    """The visit that *stay* waited for: the last that was over when it began, of a stage that leads there."""
    feeds = inputs.get(stay["stage"])
    over = [
        s
        for s in stays
        if s["finished"] is not None
        and s["finished"] <= stay["queued"]
        and not any(s is other for other in taken)
        and (feeds is None or s["stage"] in feeds)
    ]
    return max(over, key=lambda s: s["finished"], default=None)
