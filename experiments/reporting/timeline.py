"""A run over time, computed from its records: queues, batch sizes, KV cache use, and how busy devices are.

Records hold what began and ended when; how much of something there was at a time follows from that here, and nowhere
else. Trace files and reports read it from here. Times are seconds on the run's clock.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from servetwin.core import BadInput

from ..validation.comparison.run_files import batch_lines, read_json, request_lines

if TYPE_CHECKING:
    from ..spec.experiment import Experiment, WorkerSpec

Array = np.ndarray


@dataclass(frozen=True)
class Level:
    """A quantity that holds *values* [i] from *times* [i] on, and 0 before the first; times ascend, each once."""

    times: Array
    values: Array

    @property
    def peak(self) -> float:
        return float(self.values.max()) if self.values.size else 0.0

    def at(self, when: Array) -> Array:
        """The values at the times *when*."""
        if not self.times.size:
            return np.zeros(len(when))
        index = np.searchsorted(self.times, when, side="right") - 1
        return np.where(index >= 0, self.values[np.maximum(index, 0)], 0.0)

    def means(self, edges: Array) -> Array:
        """The mean over time in each of the bins between *edges*, of which there is one fewer than edges."""
        if not self.times.size:
            return np.zeros(len(edges) - 1)
        widths = np.diff(self.times)
        area = np.concatenate([[0.0], np.cumsum(self.values[:-1] * widths)])
        index = np.searchsorted(self.times, edges, side="right") - 1
        inside = np.maximum(index, 0)
        until = np.where(index >= 0, area[inside] + self.values[inside] * (edges - self.times[inside]), 0.0)
        return np.diff(until) / np.diff(edges)


def level_of(times: Array, changes: Array) -> Level:
    """The level that *changes* add up to, each at one of the *times*, in any order."""
    if not len(times):
        return Level(np.zeros(0), np.zeros(0))
    distinct, inverse = np.unique(np.asarray(times, dtype=float), return_inverse=True)
    summed = np.bincount(inverse, weights=np.asarray(changes, dtype=float), minlength=len(distinct))
    return Level(distinct, np.cumsum(summed))


@dataclass(frozen=True)
class Batches:
    """The batches of a worker, one entry per iteration, in the order in which they ended; sizes in requests."""

    starts: Array
    ends: Array
    sizes: Array

    def mean_sizes(self, edges: Array) -> Array:
        """The mean size in each of the bins between *edges*, weighted by the time that a batch takes; NaN in those
        in which none runs."""
        busy = level_of(np.concatenate([self.starts, self.ends]), np.repeat([1.0, -1.0], len(self.starts)))
        both = np.concatenate([self.sizes, -self.sizes]).astype(float)
        total = level_of(np.concatenate([self.starts, self.ends]), both)
        shares = busy.means(edges)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(shares > 1e-12, total.means(edges) / shares, np.nan)


@dataclass(frozen=True)
class Timeline:
    """A run over time, by worker: requests that wait and that are served, batches, KV cache use in tokens, and how
    many tokens the cache has room for where that is known; by device, whether it computes (0 or 1; of a
    model in stages, the share of them that do). It begins at 0,
    the first request comes at *first*.

    *held* are requests in no worker's queue: until a replica is ready, or in the central queues of routers.
    *kv* counts the tokens whose keys and values are held, without rounding up to blocks. *untold* says, by worker,
    why there is none.
    """

    end: float
    waiting: dict[str, Level]
    served: dict[str, Level]
    batches: dict[str, Batches]
    kv: dict[str, Level]
    capacity: dict[str, int]
    busy: dict[str, Level]
    untold: dict[str, str]
    first: float = 0.0
    held: Level = field(default_factory=lambda: level_of(np.zeros(0), np.zeros(0)))

    def edges(self, bins: int) -> Array:
        """The edges of *bins* equal bins over all of the run."""
        return np.linspace(0.0, max(self.end, 1e-9), bins + 1)

    def mean(self, level: Level) -> float:
        """The mean of *level* over the `duration` of the run: from the first arrival to the last end."""
        first = min(self.first, self.end)
        return float(level.means(np.array([first, max(self.end, first + 1e-9)]))[0])


def read(folder: Path) -> Timeline:
    """The timeline of the run in *folder*. Raises `BadInput`."""
    gathered = Gathered()
    for record in batch_lines(folder):
        gathered.batch(record)
    for record, end in requests_with_ends(folder):
        gathered.request(record, end)
    return gathered.timeline(read_json(folder / "meta.json", "not a run folder: it has no meta.json"))


def requests_with_ends(folder: Path) -> Iterator[tuple[dict[str, Any], float]]:
    """The records of the requests of the run in *folder*, each with when it ended. Raises `BadInput`."""
    return with_ends(request_lines(folder))


def with_ends(records: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """*records* of the requests of a run, in the order in which they ended, each with when it ended. Where an
    older run does not say when a request was dropped or failed, that is the last time known when it ended."""
    latest = 0.0
    for record in records:
        known = [stay[key] for stay in record["stages"] for key in ("queued", "started", "finished")]
        latest = max([latest, record["arrival"], record["finished"] or 0.0, *(t for t in known if t is not None)])
        latest = max(latest, record.get("ended", 0.0))
        yield record, record["finished"] if record["finished"] is not None else latest


@dataclass
class _Engine:
    """What the KV cache use of an engine follows from."""

    #: The ends of steps that decode.
    decodes: array = field(default_factory=lambda: array("d"))
    #: By request: (when, tokens held after it), and whether it lost them all (tokens 0) then.
    marks: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    #: Of stays that are over: (id, tokens held at last or None where that is not known, when it came, when it left).
    left: list[tuple[int, int | None, float, float]] = field(default_factory=list)


@dataclass
class Gathered:
    """A timeline on its way: give it the records of all batches, then those of all requests."""

    _batches: dict[str, tuple[array, array, array]] = field(default_factory=dict)
    _changes: dict[str, tuple[array, array, array]] = field(default_factory=dict)
    _engines: dict[str, _Engine] = field(default_factory=dict)
    #: By worker whose model stands on several devices: when each began and ended a step, and how many they are.
    _stages: dict[str, tuple[array, int]] = field(default_factory=dict)
    #: When requests belonged to no worker: begins and ends, before the first stage and between stages.
    _before: array = field(default_factory=lambda: array("d"))
    _between: array = field(default_factory=lambda: array("d"))
    _end: float = 0.0
    _first: float = math.inf

    def batch(self, record: Mapping[str, Any]) -> None:
        """Take up a line of ``batches.jsonl``."""
        starts, ends, sizes = self._batches.setdefault(record["worker"], (array("d"), array("d"), array("d")))
        last = record.get("ends") or [record["end"]]
        starts.extend([record["start"], *last[:-1]])
        ends.extend(last)
        sizes.extend([batch_size(record)] * len(last))
        self._end = max(self._end, last[-1])
        if "stages" in record:
            spans, _ = self._stages.setdefault(record["worker"], (array("d"), len(record["stages"])))
            for span in record["stages"]:
                spans.extend(span)
        if "prefill" in record:
            engine = self._engines.setdefault(record["worker"], _Engine())
            for request in record.get("preempted", ()):
                engine.marks.setdefault(request, []).append((record["start"], 0))
            for request, tokens, before in record["prefill"]:
                engine.marks.setdefault(request, []).append((last[0], before + tokens))
            if record["decode"]:
                engine.decodes.extend(last)

    def request(self, record: Mapping[str, Any], end: float) -> None:
        """Take up a line of ``requests.jsonl``; it ended at *end* at the latest."""
        self._end = max(self._end, end)
        arrival = record["arrival"]
        self._first = min(self._first, arrival)
        left = arrival
        for stay in sorted(record["stages"], key=itemgetter("queued")) or [{"queued": end, "finished": None}]:
            if stay["queued"] > left:
                (self._before if left == arrival else self._between).extend((left, stay["queued"]))
            left = max(left, end if stay["finished"] is None else stay["finished"])
        for stay in [part for whole in record["stages"] for part in _by_worker(whole, end)]:
            worker = stay["worker"] or stay["stage"]
            queued = stay["queued"]
            started = stay["started"] if stay["started"] is not None else end
            finished = stay["finished"] if stay["finished"] is not None else end
            times, waiting, served = self._changes.setdefault(worker, (array("d"), array("d"), array("d")))
            times.extend((queued, started))
            waiting.extend((1.0, -1.0))
            served.extend((0.0, 0.0))
            if stay["started"] is not None:
                times.extend((started, finished))
                waiting.extend((0.0, 0.0))
                served.extend((1.0, -1.0))
            if worker in self._engines and "prompt" in stay:
                generated = stay.get("generated", 0)
                # The last token that came out is nobody's context: its keys and values are not computed.
                held = stay["prompt"] + generated - 1 if generated else None
                engine = self._engines[worker]
                if "context" in stay:
                    engine.marks.setdefault(record["id"], []).insert(0, (started, stay["context"]))
                engine.left.append((record["id"], held, queued, stay.get("kept", finished)))

    def timeline(self, meta: Mapping[str, Any]) -> Timeline:
        """What the records amount to; *meta* is the run's, and says on which device a worker runs."""
        devices = devices_of(meta)
        capacity, swapping = _engines(meta)
        batches = {w: Batches(*(np.frombuffer(a) for a in kept)) for w, kept in self._batches.items()}
        levels = {w: [np.frombuffer(a) for a in kept] for w, kept in self._changes.items()}
        kv, untold = {}, {}
        for worker, engine in self._engines.items():
            if worker in swapping and any(tokens == 0 for marks in engine.marks.values() for _, tokens in marks):
                untold[worker] = "requests were moved to the host, and records do not say when they came back"
            else:
                kv[worker] = _kv(engine)
        spans: dict[str, list[Batches]] = {}
        for worker, own in batches.items():
            if worker in devices:
                spans.setdefault(devices[worker], []).append(own)
        busy = {device: _busy(own) for device, own in spans.items()}
        for worker, (times, count) in self._stages.items():
            if worker in devices:  # which it shares with no other
                changes = np.tile([1.0 / count, -1.0 / count], len(times) // 2)
                busy[devices[worker]] = level_of(np.frombuffer(times), changes)
        return Timeline(
            self._end,
            {w: level_of(times, waiting) for w, (times, waiting, _) in levels.items()},
            {w: level_of(times, served) for w, (times, _, served) in levels.items()},
            batches,
            kv,
            {w: tokens for w, tokens in capacity.items() if w in kv},
            busy,
            untold,
            self._first if math.isfinite(self._first) else 0.0,
            self._held(meta),
        )

    def _held(self, meta: Mapping[str, Any]) -> Level:
        """Requests that belong to no worker because none is ready, or until a router binds them. In other runs they
        are on their way, and so they are between stages where replicas come and go."""
        central = _central(meta)
        plan = meta.get("experiment", {}).get("deployment", {})
        scaled = bool(plan.get("autoscaler") or plan.get("faults"))
        times = np.array(
            (self._before if central or scaled else array("d")) + (self._between if central else array("d"))
        )
        return level_of(times, np.tile([1.0, -1.0], len(times) // 2))


def _by_worker(stay: dict[str, Any], end: float) -> Iterator[dict[str, Any]]:
    """*stay*, or what it was at each worker where its prompt was handed over: the KV is kept where it was prefilled
    until it has come to the worker that decodes, whom it waits for as long."""
    told = stay.get("handover")
    if told is None:
        yield stay
        return
    prefilled, handed = told["prefilled"], told["handed"]
    left = handed if handed is not None else stay["finished"] if stay["finished"] is not None else end
    yield {**stay, "worker": told["from"], "finished": prefilled, "generated": 1, "kept": left}
    if stay["worker"] == told["from"]:
        return  # nobody had been found who decodes
    came = {"context": stay["prompt"]} if handed is not None else {}
    yield {**stay, "queued": prefilled, "started": handed, **came}


def batch_size(record: Mapping[str, Any]) -> int:
    """How many requests a batch, or a step of an engine, has."""
    return max(len(record["requests"]), record.get("decode", 0) + len(record.get("prefill", ())))


def _busy(batches: list[Batches]) -> Level:
    """1 while any of *batches* runs, else 0."""
    starts, ends = (np.concatenate([getattr(own, name) for own in batches]) for name in ("starts", "ends"))
    running = level_of(np.concatenate([starts, ends]), np.repeat([1.0, -1.0], len(starts)))
    return Level(running.times, (running.values > 0.5).astype(float))


def _kv(engine: _Engine) -> Level:
    """The tokens that an engine holds keys and values of.

    A prompt's are there when its prefill, or a chunk of it, has ended. From then on a request holds one token more
    with each decode step that it takes part in, up to what it had when it left or was preempted. Who takes part in a
    step is not recorded; where a request sat some of them out, its growth is spread evenly over them all.
    """
    ends = np.sort(np.frombuffer(engine.decodes)) if engine.decodes else np.zeros(0)
    rates = np.zeros(len(ends) + 1)
    changes: list[tuple[float, float]] = []
    for request, last, came, gone in engine.left:
        marks = [m for m in engine.marks.get(request, ()) if came <= m[0] <= gone]
        held = 0.0
        for i, (when, tokens) in enumerate(marks):
            if tokens:
                changes.append((when, tokens - held))
                held = float(tokens)
            # What it has grown to when its memory is lost, which what is computed anew tells, or when it leaves.
            following = marks[i + 1] if i + 1 < len(marks) else (gone, 0)
            if not tokens or following[1]:
                continue
            first, stop = np.searchsorted(ends, (when, following[0]), side="right")
            known = _recomputed(marks[i + 2 :]) if i + 1 < len(marks) else last
            grown = float(min(stop - first, known - held)) if known is not None else float(stop - first)
            if stop > first and grown > 0:
                rates[first] += grown / (stop - first)
                rates[stop] -= grown / (stop - first)
                held += grown
            changes.append((following[0], -held))
            held = 0.0
    times = np.concatenate([ends, [when for when, _ in changes]])
    return level_of(times, np.concatenate([np.cumsum(rates)[:-1], [change for _, change in changes]]))


def _recomputed(marks: list[tuple[float, int]]) -> int | None:
    """Tokens that a request held when it was preempted, by the *marks* that follow: all that is computed anew but the
    last, which had come out and was no context yet. None if nothing was."""
    tokens = None
    for _, held in marks:
        if not held:
            break
        tokens = held
    return tokens - 1 if tokens is not None else None


def devices_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """The device of each worker that has one; empty for a run of another version of ServeTwin."""
    return {_name(worker): worker.device for worker, _ in _workers(meta) if worker.device is not None}


def _central(meta: Mapping[str, Any]) -> bool:
    """Whether a router of the run keeps requests in a central queue; one that is not here any more does not count."""
    from servetwin.core.routing import Router

    from ..registry import router_registry

    names = {spec.name for _, experiment in _workers(meta) for spec in experiment.deployment.routings.values()}
    for name in names:
        try:
            kind = router_registry.code_of(name).policy
        except BadInput:
            continue
        if kind.route is Router.route or kind.bind is not Router.bind:
            return True
    return False


def _engines(meta: Mapping[str, Any]) -> tuple[dict[str, int], set[str]]:
    """How many tokens the KV cache of an engine has room for, where its profile is here; and which engines swap."""
    from servetwin.profiles import load

    from ..assembly.llm_workers import settings_of

    capacity: dict[str, int] = {}
    swapping: set[str] = set()
    for worker, experiment in _workers(meta):
        if worker.device is not None and any(experiment.pipeline.modules[m].llm for m in worker.modules):
            try:
                limits = settings_of(worker, load(experiment.deployment.devices[worker.device])).limits
            except BadInput:
                continue  # its profile is not here
            capacity[_name(worker)] = limits.blocks * limits.block_size
            if limits.preemption == "swap":
                swapping.add(_name(worker))
    return capacity, swapping


def _workers(meta: Mapping[str, Any]) -> Iterator[tuple[WorkerSpec, Experiment]]:
    """The workers of a run, and the experiment that they are of, replicas written out."""
    from pydantic import ValidationError

    from ..assembly.replicas import expanded
    from ..spec.experiment import Experiment

    try:
        experiment = expanded(Experiment.model_validate(meta.get("experiment", {})))
    except ValidationError:
        return  # made by another version
    for worker in experiment.deployment.workers:
        yield worker, experiment


def _name(worker: WorkerSpec) -> str:
    return worker.name or "+".join(worker.modules)
