"""A trace in use: read through once to check it, then replayed as often as wanted without being held in memory.

What files there are, and what their lines mean, is the business of `servetwin.experiments.traces`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from servetwin.core import BadInput

from .traces import Entry, entries


@dataclass(frozen=True)
class TraceFile:
    """A trace that was checked: *count* requests until *last* seconds, with work in *columns*."""

    path: Path
    form: str
    modules: tuple[str, ...]
    size: str | None
    count: int
    last: float
    columns: tuple[str, ...]
    digest: str

    @property
    def where(self) -> str:
        return str(self.path)

    def __iter__(self) -> Iterator[Entry]:
        return _chosen(self.path, self.modules, self.form, self.size)

    def arrivals_at(self, rate: float | None) -> Iterator[float]:
        """The arrivals, stretched or squeezed to *rate* requests per second over the whole trace."""
        scale = self.count / (rate * self.last) if rate is not None else 1.0
        return (entry.arrival * scale for entry in self)

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

    def work_of(self, module: str) -> Iterator[int]:
        """The iterations of *module*, request by request."""
        column = self.column_of(module)
        return (entry.work[column] for entry in self)


def read(path: Path, modules: list[str], *, form: str = "auto", size: str | None = None) -> TraceFile:
    """Read a trace through; *modules* are those whose iterations are wanted, *size* the image size to pick out.

    Raises `BadInput` naming the line that is wrong. A file is read once per process and version.
    """
    try:
        stat = path.stat()
        version = (stat.st_mtime_ns, stat.st_size)
    except OSError:
        version = (0, 0)
    return _read(path, tuple(modules), form, size, version)


@lru_cache(maxsize=16)
def _read(path: Path, modules: tuple[str, ...], form: str, size: str | None, _: tuple[int, int]) -> TraceFile:
    count, last = 0, 0.0
    columns: tuple[str, ...] | None = None
    sizes: Counter[str] = Counter()
    for entry in entries(path, modules, form):
        if columns is None:
            columns = tuple(entry.work)
        elif tuple(entry.work) != columns:
            raise BadInput(
                "the line holds other work than the first", where=f"{path}:{entry.line}", right=", ".join(columns)
            )
        if entry.size is not None:
            sizes[entry.size] += 1
        if size is None or entry.size == size:
            count, last = count + 1, entry.arrival
    _check_sizes(path, sizes, size)
    if not count:
        raise BadInput("the trace holds no request", where=str(path))
    if last <= 0.0:
        raise BadInput("all requests arrive at 0", where=str(path), right="times in seconds since the start")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return TraceFile(path, form, modules, size, count, last, columns or (), digest)


def _check_sizes(path: Path, sizes: Counter[str], size: str | None) -> None:
    """A profile is of one image size, so one must be picked where a trace has several."""
    held = ", ".join(f"{s} ({n})" for s, n in sizes.most_common(5))
    if size is not None and size not in sizes:
        raise BadInput(f"the trace holds no image of {size}", where=str(path), right=held or "no size")
    if size is None and len(sizes) > 1:
        raise BadInput("the trace holds images of several sizes", where=str(path), right=f"size: one of {held}")


def _chosen(path: Path, modules: tuple[str, ...], form: str, size: str | None) -> Iterator[Entry]:
    for entry in entries(path, modules, form):
        if size is None or entry.size == size:
            yield entry
