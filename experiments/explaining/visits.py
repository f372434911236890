"""A request's way through the stages, from its arrival to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    #: At a language model: whether its engine lost it then, at *until*; whether the visit after it goes on with it.
    lost: bool = False
    goes_on: bool = False
    #: Tokens that it had got when it came, from visits that were lost.
    had: int = 0
    #: Why nothing is known of it; None if something is.
    unknown: str | None = None

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
        return "prompt" in self.stay or "generated" in self.stay

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

    Of one that was dropped or failed the last is the visit at which that happened. At language models each visit that
    was lost with its engine is one of its own.
    """
    end, stays = end_of(record), stays_of(record)
    last = _last(record, stays)
    found: list[Mapping[str, Any]] = []
    while last is not None:
        found.append(last)
        last = _before(last, stays, found, inputs)
    return [visit for stay in reversed(found) for visit in visits_of(record, stay, end)]


def stays_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a record says of each stage: its *stages*, and the last of its *attempts* at a stage to which it was to be
    sent again, and never was."""
    found: list[Mapping[str, Any]] = [*record["stages"]]
    here = {stay["stage"] for stay in found}
    last = {one["stage"]: one for one in record.get("attempts", ()) if one["stage"] not in here}
    return found + [{"admitted": None, "last_token": None, **one, "finished": None} for one in last.values()]


def visits_of(record: Mapping[str, Any], stay: Mapping[str, Any], end: float) -> list[Visit]:
    """The visits that *stay* of a request's *record* stands for, which ended then: one, and at a language model those
    before it that were lost with their engines."""
    number, worker = record["id"], stay["worker"] or stay["stage"]
    until = stay["finished"] if stay["finished"] is not None else end
    came = min(stay["queued"], until)
    lost = [one for one in record.get("attempts", ()) if one["stage"] == stay["stage"]]
    if not lost:
        return [Visit(number, stay["stage"], worker, came, until, stay)]
    if "generated" in stay:
        return _of_engines(number, stay, until, lost)
    last = lost[-1]["lost"] if stay["finished"] is None and lost[-1]["lost"] >= came else inf
    return [Visit(number, stay["stage"], worker, came, until, stay, min(one["queued"] for one in lost), last)]


def _of_engines(number: int, stay: Mapping[str, Any], until: float, lost: Sequence[Mapping[str, Any]]) -> list[Visit]:
    """The visits of a request to engines, of which those of *lost* were lost. *stay* is as if it were the first of
    them, but for the worker and for what the request had got at the end."""
    stage, had, unknown = stay["stage"], 0, None
    since: float | None = stay["queued"]
    found: list[Visit] = []
    for one in lost:
        worker, end, admitted = one["worker"] or stage, one["lost"], one.get("admitted", stay["admitted"])
        sent = end if since is None else since
        came = end if admitted is None or admitted >= end else sent  # one that was not taken in was as good as lost
        said = {**stay, **one, "admitted": _taken_in(came, admitted), "finished": None}
        lack = None if "prompt" in said else "its record does not say how long its prompt was"
        visit = Visit(number, stage, worker, came, end, said, sent, lost=True, goes_on=True, had=had, unknown=lack)
        found.append(visit)
        had, since = one["generated"], one.get("again")
        if "again" not in one:
            unknown = f"its record does not say when it was sent again after {worker} had lost it at {end:.3f} s"
            break
    if since is None and unknown is None:  # it was given up, or was on its way
        return [*found[:-1], replace(found[-1], goes_on=False)]
    came = found[-1].until if since is None else min(since, until)
    said = {**stay, "admitted": _taken_in(came, stay["admitted"])}
    return [*found, Visit(number, stage, stay["worker"] or stage, came, until, said, had=had, unknown=unknown)]


def _taken_in(came: float, admitted: float | None) -> float | None:
    """When a worker to whose queue a request *came* took it in. What follows a visit that was lost says of the first
    of them when it was *admitted*; its own time is not known then, and counts as when it came."""
    return admitted if admitted is None else max(came, admitted)


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
