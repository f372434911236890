"""Runs as one trace file for ui.perfetto.dev or chrome://tracing, in Chrome's trace-event format.

A run is a process, and its clock begins at 0, so that two runs of one experiment, a real and a simulated one say, lie
one above the other. What is called the same has the same colour in both, as viewers choose colours by name. In it:

* a thread per worker, with a slice per iteration (or whole batch) that tells its size and requests; one for each
  thread of a pool and each device of a group;
* an asynchronous slice per request from arrival to end, by outcome, with its waiting and its service at each stage;
* an arrow from the batch with which a request left a stage to the first one at the next;
* a counter per worker of requests that wait and that are served;
* a counter per engine of the tokens in its KV cache, and of the share of the cache that they are;
* a counter per device of the share of time in which it computes.

What the counters say follows from the records by `servetwin.experiments.reporting.timeline`. Records do not hold when
a request was dropped or failed: its slice ends at the last time stamp known when it ended, which says so.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from servetwin.core import BadInput

from ..reporting.timeline import Gathered, Level, Timeline, batch_size, devices_of, requests_with_ends
from ..sweeps import tables
from ..validation.comparison.compare_runs import is_run
from ..validation.comparison.run_files import batch_lines, read_json

Event = dict[str, Any]

#: Thread of events that belong to a run as a whole.
RUN = 0
#: More requests, and more arrows, than a run has: what is known by a number has one of its own in all the file.
MANY = 10**9
#: The parts of a run over each of which the share of time in which a device computes is told.
INTERVALS = 500


def write(folders: Sequence[Path], out: Path) -> int:
    """Write the runs in *folders* to *out* (.json, or .json.gz); gives the number of events. Runs that were cut off
    are welcome. Raises `BadInput`.
    """
    tables.check_target(out, (".json", ".gz"), "trace file")
    for folder in folders:
        if not is_run(folder):
            raise BadInput("not a run folder: it has no meta.json", where=str(folder), right="what `run --out` wrote")
    count = 0

    def fill(path: Path) -> None:
        nonlocal count
        with _opened(path, packed=out.suffix == ".gz") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [')
            for pid, folder in enumerate(folders, 1):
                for event in events(folder, pid):
                    file.write((",\n" if count else "\n") + json.dumps(event, separators=(",", ":")))
                    count += 1
            file.write("\n]}\n")

    tables.write_whole(out, fill)
    return count


def _opened(path: Path, *, packed: bool) -> IO[str]:
    if packed:
        return io.TextIOWrapper(gzip.GzipFile(path, "wb", mtime=0), encoding="utf-8")
    return path.open("w", encoding="utf-8")


def events(folder: Path, pid: int) -> Iterator[Event]:
    """The events of one run, as process *pid*."""
    run = _Run(pid, read_json(folder / "meta.json", "not a run folder: it has no meta.json"), folder.name)
    yield from run.slices(folder)
    yield from run.requests(folder)
    yield from run.counters()
    yield from run.names()


@dataclass
class _Run:
    """One run on its way into a trace. Times are whole nanoseconds until they are written."""

    pid: int
    meta: dict[str, Any]
    folder: str
    threads: dict[str, int] = field(default_factory=dict)
    #: (request, worker) -> where to hook an arrow, as (time, thread): in its first slice there, and in its last
    hooks: dict[tuple[int, str], tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    gathered: Gathered = field(default_factory=Gathered)
    arrows: int = 0

    def event(self, ph: str, name: str, at: int, tid: int = RUN, **more: Any) -> Event:
        return {"ph": ph, "name": name, "pid": self.pid, "tid": tid, "ts": at / 1000, **more}

    def thread(self, worker: str) -> int:
        return self.threads.setdefault(worker, len(self.threads) + 1)

    def slices(self, folder: Path) -> Iterator[Event]:
        """What each worker ran."""
        for record in batch_lines(folder):
            worker, requests = record["worker"], record["requests"]
            size = batch_size(record)
            self.gathered.batch(record)
            args = {"batch": record["id"], "size": size, "requests": requests, "modules": record["modules"]}
            args |= {k: record[k] for k in ("iterations", "prefill", "decode", "context", "preempted") if k in record}
            ends = [_ns(t) for t in record.get("ends") or [record["end"]]]
            starts = [_ns(record["start"]), *ends[:-1]]
            tracks = self.tracks(record)
            for tid, start, end in [(tid, *span) for tid in tracks for span in zip(starts, ends, strict=True)]:
                yield self.event(
                    "X", f"batch of {size}", start, tid, cat="batch", dur=(end - start) / 1000, args=args
                )
            tid = tracks[0]
            for request in requests:
                first, _ = self.hooks.get((request, worker), ((starts[0], tid), (0, 0)))
                self.hooks[request, worker] = (first, (starts[-1], tid))

    def tracks(self, record: dict[str, Any]) -> list[int]:
        """The threads that the batch of *record* is on. Calls of a pool, and batches of a group, overlap."""
        worker = record["worker"]
        places = [record["thread"]] if "thread" in record else record.get("devices", ())
        return [self.thread(f"{worker} #{place}") for place in places] or [self.thread(worker)]

    def requests(self, folder: Path) -> Iterator[Event]:
        """What became of each request."""
        for record, end in requests_with_ends(folder):
            stays = record["stages"]
            self.gathered.request(record, end)
            yield from self._request(record, _ns(end))
            for before, after in pairwise(stays):
                yield from self._arrow(record["id"], before["worker"], after["worker"])

    def _request(self, record: dict[str, Any], end: int) -> Iterator[Event]:
        number, outcome = record["id"], record["outcome"] or "live"
        begin = _ns(record["arrival"])
        about = {
            "request": number,
            "work": record["work"],
            "deadline": record["deadline"],
            "reason": record["reason"],
        }
        if record["finished"] is None:
            about["end"] = "not recorded; not before this"
        common = {"cat": "request", "id": self.pid * MANY + number}
        yield self.event("b", f"requests {outcome}", begin, **common, args=about)
        for stay in sorted(record["stages"], key=lambda s: s["queued"]):
            queued = _ns(stay["queued"])
            started = _ns(stay["started"]) if stay["started"] is not None else end
            finished = _ns(stay["finished"]) if stay["finished"] is not None else end
            spans = [("waits for", queued, started)]
            if stay["started"] is not None:
                spans.append(("in", started, finished))
            if _alone(stay, record["stages"]):  # nested slices must not overlap; branches side by side would
                for what, a, b in spans:
                    yield self.event("b", f"{what} {stay['stage']}", a, **common)
                    yield self.event("e", f"{what} {stay['stage']}", b, **common)
        yield self.event("e", f"requests {outcome}", max(end, begin), **common)

    def _arrow(self, request: int, before: str | None, after: str | None) -> Iterator[Event]:
        a, b = self.hooks.get((request, before or "")), self.hooks.get((request, after or ""))
        if a is None or b is None or a[1][0] > b[0][0]:
            return
        self.arrows += 1
        common: dict[str, Any] = {"cat": "transfer", "id": self.pid * MANY + self.arrows}
        yield self.event("s", "transfer", *a[1], **common)
        yield self.event("f", "transfer", *b[0], bp="e", **common)

    def counters(self) -> Iterator[Event]:
        """How many requests wait and are served and how full KV caches are, whenever that changes; how busy devices
        are, over each of `INTERVALS` parts of the run."""
        timeline = self.gathered.timeline(self.meta)
        for worker, waiting in timeline.waiting.items():
            served = timeline.served[worker]
            # Both change at times of their own, which are the same: each stay is in both.
            for when, a, b in zip(waiting.times, waiting.values, served.at(waiting.times), strict=True):
                args = {"waiting": round(a), "served": round(b)}
                yield self.event("C", f"requests at {worker}", _ns(when), args=args)
        for worker, held in timeline.kv.items():
            yield from self._kv(worker, held, timeline)
        edges = timeline.edges(INTERVALS)
        for device, busy in timeline.busy.items():
            shares = [round(100 * share, 2) for share in busy.means(edges).clip(0, 1)]
            for when, share in zip(edges, [*shares, 0.0], strict=True):
                yield self.event("C", f"{device} busy", _ns(when), args={"%": share})

    def _kv(self, worker: str, held: Level, timeline: Timeline) -> Iterator[Event]:
        for when, value in zip(held.times, held.values, strict=True):
            tokens = max(round(value), 0)
            yield self.event("C", f"KV cache of {worker}", _ns(when), args={"tokens": tokens})
            if worker in timeline.capacity:
                share = {"%": round(100 * tokens / timeline.capacity[worker], 2)}
                yield self.event("C", f"KV cache use of {worker}", _ns(when), args=share)

    def names(self) -> Iterator[Event]:
        """What the process and its threads are called."""
        experiment = self.meta.get("experiment", {})
        policy = experiment.get("policy", {}).get("name", "?")
        title = f"{self.folder}: {experiment.get('name', '?')}, {policy}, {self.meta.get('kind', '?')}"
        yield self.event("M", "process_name", 0, args={"name": title})
        yield self.event("M", "process_sort_index", 0, args={"sort_index": self.pid})
        devices = devices_of(self.meta)
        for worker, tid in self.threads.items():
            name = f"{worker} on {devices[worker]}" if worker in devices else worker
            yield self.event("M", "thread_name", 0, tid, args={"name": name})
            yield self.event("M", "thread_sort_index", 0, tid, args={"sort_index": tid})


def _alone(stay: dict[str, Any], stays: Sequence[dict[str, Any]]) -> bool:
    """Whether the request was nowhere else meanwhile."""
    end = stay["finished"]
    return not any(
        other is not stay
        and other["queued"] < (end if end is not None else float("inf"))
        and (other["finished"] is None or other["finished"] > stay["queued"])
        for other in stays
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
