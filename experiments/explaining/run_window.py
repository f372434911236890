"""The batches of a run while some requests were there, read once from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..validation.comparison.run_files import batch_lines
from .causes import Ran
from .step_members import StepMembers
from .visits import Visit


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


def read(folder: Path, wanted: Iterable[Visit], requests: Iterable[Mapping[str, Any]]) -> RunWindow:
    """The window of the *wanted* visits; *requests* are the records of all requests of the run.

    Raises `BadInput` if the records of batches are not what they must be.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    for visit in wanted:
        for worker, came, until in visit.places():
            spans.setdefault(worker, []).append((came, until))
    engines: dict[str, StepMembers] = {}
    for record in requests:
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


def _ended(record: Mapping[str, Any]) -> float:
    """When a request that did not finish ended, or the last that is known of it."""
    said = record.get("ended")
    if said is not None:
        return float(said)
    known = [record["arrival"], *(stay[k] for stay in record["stages"] for k in ("queued", "started", "first_token"))]
    return float(max(t for t in known if t is not None))


def _iterations(
    record: Mapping[str, Any], members: tuple[int, ...], spans: Sequence[tuple[float, float]]
) -> Iterable[Ran]:
    """The iterations of a batch: several where a simulation took them as one event."""
    ends = record.get("ends") or [record["end"]]
    prefill = {piece[0]: (piece[1], piece[2]) for piece in record.get("prefill", ())}
    preempted = tuple(record.get("preempted", ()))
    start = record["start"]
    for end in ends:
        if any(end >= a and start <= b for a, b in spans):
            said = prefill, preempted, record.get("free")
            yield Ran(record["id"], start, end, members, record["iterations"], *said)
        start, preempted = end, ()
