"""A trace in use: read through once to check it, then replayed as often as wanted without being held in memory.

What files there are, and what their lines mean, is the business of `servetwin.experiments.workload.traces`. Which
of the requests are replayed (a size, a stretch of time, one of several windows, the first so many) is settled here,
and with it what the rate means: that of the requests which are replayed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from servetwin.core import BadInput, Shape
from servetwin.core.llm import PromptContent
from servetwin.core.random_streams import permuted

from ..provenance.file_digests import Stamp, stamp
from .traces import Entry, columns_of, entries, unknown_columns

#: Seconds between requests, in the mean of so many at least, from which on times may be milliseconds, and are taken
#: for that.
FEW, FAR, FARTHEST = 5, 10.0, 1000.0

#: The tokens of a block that each of Mooncake's ``hash_ids`` stands for (its repository's README, "Trace").
HASHED = 512


@dataclass(frozen=True)
class Choice:
    """Which requests of a file are meant: those of images of *size*, and of these those from *start* to before *end*
    (seconds since the file's first request, by its own clock). *shaped*: each is to have a shape, with this size
    ("": none) where it says none."""

    path: Path
    modules: tuple[str, ...] = ()
    form: str = "auto"
    size: str | None = None
    start: float | None = None
    end: float | None = None
    shaped: str | None = None

    def __iter__(self) -> Iterator[Entry]:
        start, end = self.start or 0.0, self.end
        for entry in entries(self.path, self.modules, self.form, size=self.shaped or None):
            if end is not None and entry.arrival >= end:
                return
            if entry.arrival >= start and (self.size is None or entry.size == self.size):
                yield entry


@dataclass(frozen=True)
class Overview:
    """What reading a file through told: *count* requests were chosen, of *held* in it, beside *failed* lines of
    requests that had failed; *until* is when the last in the file came. *terms* is what some of the chosen say of
    themselves beside their work, *size* that of their images (None: it does not say, or they are of several),
    *shapes* all that there are, if each is to say it."""

    count: int
    held: int
    failed: int
    until: float
    columns: tuple[str, ...]
    digest: str
    terms: tuple[str, ...] = ()
    size: str | None = None
    shapes: tuple[Shape, ...] = ()
    follows: int = 0  #: requests that say how long after an answer they are sent, and not when


@dataclass(frozen=True)
class TraceFile:
    """A trace that was checked: *count* requests, the first of them *skip* places after the first chosen one.

    *first* and *last* are when they came, in seconds since the file's first request; they are replayed from 0 on.
    *columns* says what is known of them.
    """

    choice: Choice
    overview: Overview
    skip: int
    count: int
    first: float
    last: float

    @property
    def path(self) -> Path:
        return self.choice.path

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.overview.columns

    @property
    def digest(self) -> str:
        return self.overview.digest

    @property
    def span(self) -> float:
        """Seconds from the first request that is replayed to the last."""
        return self.last - self.first

    def __iter__(self) -> Iterator[Entry]:
        return islice(self.choice, self.skip, self.skip + self.count)

    def arrivals_at(self, rate: float | None) -> Iterator[float]:
        """The arrivals in seconds since the first that is replayed, stretched or squeezed to *rate*.

        The rate of n requests is n - 1 gaps over the time from the first to the last. Raises `BadInput` where that is
        not defined: for a single request, and if all arrive at once.
        """
        scale, first = self.scale(rate), self.first
        return ((entry.arrival - first) * scale for entry in self)

    def scale(self, rate: float | None) -> float:
        """What times are multiplied by to come at *rate*. Raises `BadInput` where there is no rate."""
        if rate is None:
            return 1.0
        if self.span <= 0.0:
            what = "all requests arrive at once" if self.count > 1 else "one request is replayed"
            raise BadInput(f"{what}, so there is no rate to stretch to", where=self.where, right="no rate")
        return (self.count - 1) / (rate * self.span)

    def column_of(self, module: str) -> str:
        """The column that says how many iterations of *module* to run: by its name, or steps, or the tokens made."""
        for name in (module, "steps", "output_tokens"):
            if name in self.columns:
                return name
        right = f"a column {module!r} or 'steps' or 'tokens'"
        raise BadInput(
            f"the trace does not say how many iterations of {module} to run", where=self.where, right=right
        )

    def tokens(self, column: str) -> Iterator[int]:
        """The *column* ("input_tokens" or "output_tokens"), request by request; a prompt has a token at least.

        Raises `BadInput` if the trace does not have it.
        """
        if column not in self.columns:
            right = "a column 'input_tokens'" if column == "input_tokens" else "a column 'tokens'"
            raise BadInput(f"the trace does not say the {column.replace('_', ' ')}", where=self.where, right=right)
        return (max(1, entry.work[column]) for entry in self)

    def contents(self) -> Iterator[PromptContent]:
        """What the prompt of each request holds, by the hashes of its blocks. Raises `BadInput` where the trace does
        not say it, or where there are not as many hashes as the prompt has blocks."""
        for entry in self:
            prompt, where = entry.work["input_tokens"], f"{self.where}:{entry.line}: hash_ids"
            if entry.hashes is None:
                right = "hash_ids, as in Mooncake's traces; or prefix: {draw: shared, ...}"
                raise BadInput("the trace does not say what prompts begin with", where=where, right=right)
            blocks = -(-prompt // HASHED)
            if len(entry.hashes) != blocks:
                what = f"{len(entry.hashes)} hashes of {HASHED} tokens each for a prompt of {prompt} tokens"
                raise BadInput(what, where=where, right=f"{blocks} of them")
            yield PromptContent(entry.hashes, HASHED)

    def shapes(self) -> Iterator[Shape]:
        """The shape of each request, of a trace that was read for that."""
        return (entry.shape for entry in self if entry.shape is not None)

    def turns(self) -> Iterator[Entry]:
        """The requests, of which each but the first of a session says how long after the answer before it is sent.
        Raises `BadInput` at one that does not."""
        begun: set[str] = set()
        for entry in self:
            name = entry.turn.session
            if name is not None and name in begun and entry.turn.delay is None:
                what = f"a turn of session {name!r} does not say how long after the answer before it is sent"
                right = "a delay; or to leave workload.sessions out, where all come at times of their own"
                raise BadInput(what, where=f"{self.where}:{entry.line}: delay", right=right)
            if name is None or (name not in begun and entry.turn.follows):
                what = "it belongs to no session" if name is None else f"session {name!r} begins with a delay"
                raise BadInput(what, where=f"{self.where}:{entry.line}", right="a session, and a time for its first")
            begun.add(name)
            yield entry

    def terms(self) -> Iterator[Mapping[str, Any]]:
        """What requests say of themselves beside their work, one by one (`servetwin.experiments.workload.traces`)."""
        return (entry.said for entry in self)

    def named(self, modules: tuple[str, ...]) -> tuple[str, ...]:
        """Those of *modules* that the file has a column for, whether it is read or not."""
        first = _first_line(self.path, stamp(self.path))
        return tuple(m for m in modules if m in first)

    def unknown(self) -> tuple[str, ...]:
        """Its columns that are never read, but where one has the name of a loop module."""
        return _unknown(self.path, stamp(self.path), self.choice.form)

    def work_of(self, module: str) -> Iterator[int]:
        """The iterations of *module*, request by request."""
        column = self.column_of(module)
        return (entry.work[column] for entry in self)

    def empty_prompts(self) -> int:
        """How many of the replayed requests have a prompt of no token, which counts as one."""
        return _empty_prompts(self)

    def probably_milliseconds(self) -> str | None:
        """What is to be said of requests so far apart that their times, which name no unit, may be milliseconds.

        Raises `BadInput` if they are farther apart than that: nobody serves a request every quarter of an hour.
        """
        gap = self.overview.until / max(1, self.overview.held - 1)
        if self.overview.held < FEW or gap < FAR or "arrival" not in _first_line(self.path, stamp(self.path)):
            return None
        what = f"its requests come {gap:.4g} s apart in the mean"
        if gap >= FARTHEST:
            right = "to call the column arrival_ms; or arrival_s, if seconds they are"
            raise BadInput(f"{what}: these are probably milliseconds", where=f"{self.where}: arrival", right=right)
        return f"{what}; if its times are milliseconds, call the column arrival_ms"

    def about(self) -> dict[str, int | float]:
        """What is replayed, and what is left out: for ``meta.json``."""
        return {
            "requests": self.count,
            "requests_in_file": self.overview.held,
            "failed_left_out": self.overview.failed,
            "first": self.first,
            "last": self.last,
        }


def read(
    path: Path,
    modules: list[str],
    *,
    form: str = "auto",
    size: str | None = None,
    start: float | None = None,
    end: float | None = None,
    windows: int | None = None,
    seed: int = 0,
    requests: int | None = None,
    shaped: str | None = None,
) -> TraceFile:
    """Read a trace through, and choose what is replayed of it.

    *modules* are those whose iterations are wanted, *size* the image size to pick out, *start* and *end* seconds of
    the trace's own time. With *windows* what there is between is cut into that many windows of equally many requests;
    *seed* draws one, and seeds that follow each other draw different ones as long as there are any. Of what is left
    the first *requests* are taken. *shaped*: images may be of several sizes, and each request must say which, or
    takes this one ("": none). Raises `BadInput` naming the line that is wrong, or what there is not enough of. A file
    is read once per process and version.
    """
    version = stamp(path)
    choice = Choice(path, tuple(modules), form, size, start, end, shaped)
    overview = _overview(choice, version)
    count, skip = overview.count, 0
    if windows is not None:
        count //= windows
        if not count:
            what = f"{overview.count} requests make no {windows} windows"
            raise BadInput(what, where=str(path), right="fewer windows")
        skip = count * permuted(seed, windows, "windows")
    if requests is not None and requests > count:
        holds = f"each of {windows} windows of the trace holds {count}" if windows else f"the trace holds {count}"
        if start is not None or end is not None:
            holds += " between start and end"
        what = f"{requests} requests are wanted, but {holds}"
        raise BadInput(what, where=str(path), right=f"workload.requests: {count} at most")
    return _selection(choice, version, skip, requests or count)


@lru_cache(maxsize=16)
def _overview(choice: Choice, _: Stamp | None) -> Overview:
    path, size = choice.path, choice.size
    start, end = choice.start or 0.0, float("inf") if choice.end is None else choice.end
    count, held, until = 0, 0, 0.0
    columns: tuple[str, ...] | None = None
    sizes: Counter[str] = Counter()
    failed: list[int] = []
    terms: dict[str, None] = {}
    shapes: dict[Shape, None] = {}
    follows = 0
    for entry in entries(path, choice.modules, choice.form, failed.append, choice.shaped or None):
        if columns is None:
            columns = tuple(entry.work)
        elif tuple(entry.work) != columns:
            raise BadInput(
                "the line holds other work than the first", where=f"{path}:{entry.line}", right=", ".join(columns)
            )
        if entry.size is not None:
            sizes[entry.size] += 1
        held, until = held + 1, entry.arrival
        if start <= entry.arrival < end and (size is None or entry.size == size):
            count += 1
            follows += entry.turn.follows
            terms |= dict.fromkeys(entry.said)
            if choice.shaped is not None:
                if entry.shape is None:
                    right = "size (512x512), or height and width; or workload.shape: {draw: trace, size: ...}"
                    raise BadInput("it does not say of which size it is", where=f"{path}:{entry.line}", right=right)
                shapes[entry.shape] = None
    _check_sizes(path, sizes, size, choice.shaped is not None)
    if not held:
        what = "the trace holds no request" + (f" but {len(failed)} that had failed" if failed else "")
        raise BadInput(what, where=str(path))
    if not count:
        what = f"no request comes from {start:g} s to {end:g} s"
        raise BadInput(what, where=str(path), right=f"start and end within 0 and {until:g} s")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    of_size = (next(iter(sizes)) if len(sizes) == 1 else None) if size is None else size
    said = tuple(terms), of_size, tuple(shapes), follows
    return Overview(count, held, len(failed), until, columns or (), digest, *said)


@lru_cache(maxsize=256)
def _selection(choice: Choice, version: Stamp | None, skip: int, count: int) -> TraceFile:
    part = TraceFile(choice, _overview(choice, version), skip, count, 0.0, 0.0)
    first = last = None
    for entry in part:
        first = entry.arrival if first is None else first
        last = entry.arrival
    assert first is not None
    assert last is not None
    return replace(part, first=first, last=last)


@lru_cache(maxsize=16)
def _first_line(path: Path, _: Stamp | None) -> tuple[str, ...]:
    return columns_of(path)


@lru_cache(maxsize=16)
def _unknown(path: Path, _: Stamp | None, form: str) -> tuple[str, ...]:
    return unknown_columns(path, form)


@lru_cache(maxsize=256)
def _empty_prompts(trace: TraceFile) -> int:
    return sum(entry.work.get("input_tokens", 1) == 0 for entry in trace)


def _check_sizes(path: Path, sizes: Counter[str], size: str | None, shaped: bool) -> None:
    """Without shapes all requests are of one size, so one must be picked where a trace has several."""
    held = ", ".join(f"{s} ({n})" for s, n in sizes.most_common(5))
    if size is not None and size not in sizes:
        raise BadInput(f"the trace holds no image of {size}", where=str(path), right=held or "no size")
    if size is None and len(sizes) > 1 and not shaped:
        right = f"workload.shape: {{draw: trace}}, or size: one of {held}"
        raise BadInput("the trace holds images of several sizes", where=str(path), right=right)
