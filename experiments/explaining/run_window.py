"""The batches of a run while some requests were there, read once from its records; and, where models share a card,
what the card did meanwhile: other models' batches, and weights that came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..assembly.replicas import expanded
from ..spec.experiment import Experiment
from ..validation.comparison.run_files import batch_lines, swap_lines
from .causes import Cause, Part, Ran
from .step_members import StepMembers
from .visits import Visit, stays_of, visits_of


@dataclass
class RunWindow:
    """What workers ran, in order of time, as far as it overlaps the visits that were asked for.

    *pools* are the workers that run several calls at once, *groups* those with several devices. *silent*
    ones have visits and no batches at all. *unsure* says, by engine, of how many of its steps (and of how many in
    all) it is not known who decodes. *counted* is how many batches, iterations and steps each worker of the run had
    in all, *last* when the last of them ended.
    """

    ran: dict[str, list[Ran]] = field(default_factory=dict)
    pools: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    unsure: dict[str, tuple[int, int]] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)
    last: dict[str, float] = field(default_factory=dict)


def read(
    folder: Path,
    wanted: Iterable[Visit],
    requests: Iterable[Mapping[str, Any]],
    beside: Callable[[str], Iterable[str]] | None = None,
) -> RunWindow:
    """The window of the *wanted* visits; *requests* are the records of all requests of the run. What workers *beside*
    a visited one ran meanwhile is in it, too.

    Raises `BadInput` if the records of batches are not what they must be.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    for visit in wanted:
        for worker, came, until in visit.places():
            for named in (worker, *(beside(worker) if beside is not None else ())):
                spans.setdefault(named, []).append((came, until))
    engines: dict[str, StepMembers] = {}
    for record in requests:
        if "attempts" in record:
            _visited(record, spans, engines)
            continue
        for stay in record["stages"]:
            if "prompt" not in stay:
                continue
            ended, told = _ended(record) if stay["finished"] is None else None, stay.get("handover")
            if told is not None and told["from"] in spans:
                there = {**stay, "worker": told["from"], "generated": 1}
                engines.setdefault(told["from"], StepMembers()).visit(record["id"], there, None)
            if stay["worker"] in spans:
                engines.setdefault(stay["worker"], StepMembers()).visit(record["id"], stay, ended)
    found = RunWindow()
    heard: set[str] = set()
    for record in batch_lines(folder):
        worker = record["worker"]
        found.counted[worker] += len(record.get("ends") or (0,))
        found.last[worker] = max(record["end"], found.last.get(worker, record["end"]))
        if worker not in spans:
            continue
        heard.add(worker)
        engine = engines.get(worker)
        step = engine is not None and "prefill" in record
        members = engine.members(record) if engine is not None and step else tuple(record["requests"])
        if "thread" in record:
            found.pools.add(worker)
        if "devices" in record:
            found.groups.add(worker)
        if any(record["end"] >= a and record["start"] <= b for a, b in spans[worker]):
            found.ran.setdefault(worker, []).extend(_iterations(record, members, spans[worker]))
    for ran in found.ran.values():
        ran.sort(key=lambda r: (r.start, r.end))
    found.silent = spans.keys() - heard
    found.unsure = {w: (e.unsure, e.steps) for w, e in engines.items() if e.unsure}
    return found


def _visited(
    record: Mapping[str, Any], spans: Mapping[str, Sequence[tuple[float, float]]], engines: dict[str, StepMembers]
) -> None:
    """Tell *engines* of the visits of a request that was lost with some, as far as they are among *spans*."""
    ended = record["finished"] if record["finished"] is not None else _ended(record)
    for stay in stays_of(record):
        for visit in visits_of(record, stay, ended) if "generated" in stay else ():
            if visit.worker in spans and visit.unknown is None:
                said = {**visit.stay, "worker": visit.worker, "queued": visit.came}
                until = None if visit.finished else visit.until
                engines.setdefault(visit.worker, StepMembers()).visit(record["id"], said, until, visit.had)


def _ended(record: Mapping[str, Any]) -> float:
    """When a request that did not finish ended, or the last that is known of it."""
    said = record.get("ended")
    if said is not None:
        return float(said)
    known = [
        record["arrival"],
        *(stay.get(k) for stay in record["stages"] for k in ("queued", "started", "first_token")),
    ]
    return float(max(t for t in known if t is not None))


def _iterations(
    record: Mapping[str, Any], members: tuple[int, ...], spans: Sequence[tuple[float, float]]
) -> Iterable[Ran]:
    """The iterations of a batch: several where a simulation took them as one event. A step of an engine that was cut
    off is one more."""
    ends = record.get("ends") or [record["end"]]
    cut = "lost" in record and "prefill" in record
    if cut and "ends" in record:
        cut = ends[-1] < record["end"]
        ends = [*ends, record["end"]] if cut else ends
    prefill = {piece[0]: (piece[1], piece[2]) for piece in record.get("prefill", ())}
    preempted = tuple(record.get("preempted", ()))
    start = record["start"]
    for end in ends:
        if any(end >= a and start <= b for a, b in spans):
            said = prefill, preempted, record.get("free"), cut and end == record["end"]
            yield Ran(record["id"], start, end, members, record["iterations"], *said)
        start, preempted = end, ()


# -- models that share a card ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """From *start* to *end* a card was another's: *ran* is the batch of *worker*, or None while weights came."""

    start: float
    end: float
    worker: str | None = None
    ran: Ran | None = None


@dataclass(frozen=True)
class Cards:
    """Which *workers* are models of which card, and when weights came to each (*swaps*), in order of time."""

    workers: Mapping[str, str]
    swaps: Mapping[str, Sequence[Taken]]

    def beside(self, worker: str) -> list[str]:
        """The other workers on the card of *worker*."""
        card = self.workers.get(worker)
        return [other for other, own in self.workers.items() if own == card and other != worker]

    def taken(self, worker: str, window: RunWindow) -> list[Taken]:
        """When the card of *worker* was another's, as far as *window* goes, in order of time."""
        if worker not in self.workers:
            return []
        found = [*self.swaps.get(self.workers[worker], ())]
        for other in self.beside(worker):
            found += [Taken(ran.start, ran.end, other, ran) for ran in window.ran.get(other, ())]
        return sorted(found, key=lambda taken: (taken.start, taken.end))


def cards_of(folder: Path, meta: Mapping[str, Any]) -> Cards:
    """Those of the run in *folder*. Raises `BadInput` if its records of swaps are not what they must be."""
    named = ((meta.get("experiment") or {}).get("deployment") or {}).get("cards")
    if not named:
        return Cards({}, {})
    swaps: dict[str, list[Taken]] = {}
    for swap in swap_lines(folder):
        swaps.setdefault(swap["card"], []).append(Taken(swap["start"], swap["end"]))
    try:
        plan = expanded(Experiment.model_validate(meta["experiment"])).deployment
    except ValidationError:  # made by another version
        return Cards({}, {})
    of_card = {device: card for card, said in (plan.cards or {}).items() for device in said.devices}
    devices = {worker.name or "+".join(worker.modules): worker.device or "" for worker in plan.workers}
    return Cards({name: of_card[device] for name, device in devices.items() if device in of_card}, swaps)


def split(parts: Iterable[Part], taken: Sequence[Taken]) -> Iterator[Part]:
    """*parts*, those in which the worker ran nothing cut into what its card did meanwhile."""
    for part in parts:
        if part.cause not in (Cause.HELD, Cause.HOST):
            yield part
            continue
        now = part.start
        for one in taken:
            if one.end <= now or one.start >= part.end:
                continue
            if one.start > now:
                yield replace(part, start=now, end=one.start)
                now = one.start
            end = min(one.end, part.end)
            cause = Cause.WEIGHTS if one.ran is None else Cause.OTHER_MODEL
            yield replace(part, cause=cause, start=now, end=end, ran=one.ran, worker=one.worker)
            now = end
        if now < part.end:
            yield replace(part, start=now)
