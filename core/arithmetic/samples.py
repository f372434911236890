"""Numbers by the million of which mean, standard deviation and quantiles are told exactly, in little memory.

They stand in memory until somebody calls `Samples.put_away`: then they are sorted and written to a temporary file
(`Shelf`). `Distribution` reads what there is in order of size, a piece at a time, and finds to the bit what NumPy
finds in an array of all of them that was sorted: the sums of ``numpy.add.reduce``, which adds halves of halves, are
added up in the same order from pieces.
"""

from __future__ import annotations

import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from .quantiles import between

#: So many numbers are read, sorted or added up at a time.
PIECE = 1 << 16


class Shelf:
    """A temporary file of numbers, in ``tempfile.gettempdir()``; it is gone with this object, or with the process.

    Raises `OSError` that names that folder where there is no room.
    """

    def __init__(self, content: np.ndarray | None = None) -> None:
        self._file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it is closed when this object goes
        weakref.finalize(self, self._file.close)
        self._size = 0
        if content is not None:
            self.put(content)

    def put(self, content: np.ndarray) -> int:
        """Write *content*, floats, at the end; gives at which byte it begins."""
        begins, rest = self._size, content.data.cast("B")
        try:
            self._file.seek(begins)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, _place()) from None
        self._size += content.nbytes
        return begins

    def read(self, begins: int, many: int) -> np.ndarray:
        """So *many* numbers from byte *begins* on."""
        found = np.empty(many)
        rest = found.data.cast("B")
        self._file.seek(begins)
        while rest:
            read = self._file.readinto(rest)
            if not read:
                raise EOFError(f"{_place()} is shorter than what was written")
            rest = rest[read:]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Shelf, (self.read(0, self._size // 8),)


def _place() -> str:
    return f"a temporary file in {tempfile.gettempdir()} (TMPDIR says where)"


class Stretch(NamedTuple):
    """So *many* numbers in order of size, from byte *begins* of *shelf* on."""

    shelf: Shelf
    begins: int
    many: int

    def pieces(self, most: int) -> Iterator[np.ndarray]:
        for first in range(0, self.many, most):
            yield self.shelf.read(self.begins + 8 * first, min(most, self.many - first))


class Samples:
    """Numbers, none of them NaN. *recent* are those in memory, in the order in which they came: who adds single ones
    may append there. *stretches* are the others."""

    __slots__ = ("recent", "stretches")

    def __init__(self) -> None:
        self.recent = array("d")
        self.stretches: list[Stretch] = []

    def extend(self, values: np.ndarray) -> None:
        """Add *values*, floats."""
        self.recent.frombytes(values.tobytes())

    def put_away(self, shelf: Shelf) -> None:
        """Keep those in memory in *shelf* from now on."""
        if self.recent:
            values = np.sort(np.array(self.recent))
            self.stretches.append(Stretch(shelf, shelf.put(values), len(values)))
            del self.recent[:]

    def merge(self, other: Samples) -> None:
        """Add what *other* has."""
        self.recent.extend(other.recent)
        self.stretches += other.stretches

    def __len__(self) -> int:
        return len(self.recent) + sum([stretch.many for stretch in self.stretches])

    def __eq__(self, other: object) -> bool:
        return [*self] == [*other] if isinstance(other, Samples) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __iter__(self) -> Iterator[float]:
        """All of them; in the order in which they came if none was put away."""
        for stretch in self.stretches:
            for piece in stretch.pieces(PIECE):
                yield from piece.tolist()
        yield from self.recent

    def in_order(self) -> Iterator[np.ndarray]:
        """All of them in order of size, a piece at a time."""
        recent = np.sort(np.array(self.recent))
        if not self.stretches:
            return iter([recent])
        most = max(PIECE // 64, 8 * PIECE // len(self.stretches))
        return _merged([iter([recent]), *(stretch.pieces(most) for stretch in self.stretches)])


def _merged(runs: Iterable[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The numbers of *runs*, each in order of size, in order of size."""
    heads = [(head, run) for run in runs if (head := _next(run)) is not None]
    while heads:
        upto = min(float(head[-1]) for head, _ in heads)  # what is still to come of any is no less
        taken, left = [], []
        for head, run in heads:
            cut = int(head.searchsorted(upto, side="right"))
            taken.append(head[:cut])
            rest = head[cut:] if cut < len(head) else _next(run)
            if rest is not None:
                left.append((rest, run))
        heads = left
        yield np.sort(np.concatenate(taken), kind="stable")


def _next(run: Iterator[np.ndarray]) -> np.ndarray | None:
    """The next piece of *run* that is not empty, if there is one."""
    return next((piece for piece in run if len(piece)), None)


class Distribution:
    """What is told of *samples* (at least one), each times *scale*: *median*, and *quantiles* of the *shares*.

    To the bit what ``numpy.median``, ``numpy.percentile``, ``mean`` and ``std`` give of
    ``numpy.sort(samples) * scale``: sums do not hang on the order in which the numbers came.
    """

    def __init__(self, samples: Samples, shares: Sequence[float] = (), scale: float = 1.0) -> None:
        self._scale, self._count = scale, len(samples)
        sorted_once = None if samples.stretches else [*samples.in_order()]
        self._pieces = samples.in_order if sorted_once is None else lambda: iter(sorted_once)
        last = self._count - 1
        exact = [last * share for share in shares]
        ranks = [last // 2, (last + 1) // 2, *(rank for at in exact for rank in (int(at), min(int(at) + 1, last)))]
        found: dict[int, float] = {}

        def pick(values: np.ndarray, first: int) -> None:
            for rank in ranks:
                if first <= rank < first + len(values):
                    found[rank] = float(values[rank - first])

        self.mean = self._sum(pick) / self._count
        low, high, *around = [found[rank] for rank in ranks]
        self.median = (low + high) / 2.0
        self.quantiles = [
            between(below, above, at - int(at))
            for at, below, above in zip(exact, around[::2], around[1::2], strict=True)
        ]

    def std(self) -> float:
        """The standard deviation, of all (not of a sample)."""

        def square(values: np.ndarray, _: int) -> None:
            values -= self.mean
            values *= values

        return sqrt(self._sum(square) / self._count)

    def _sum(self, see: Callable[[np.ndarray, int], None]) -> float:
        """The sum of all, as ``numpy.add.reduce`` adds: that of one half and that of the other, and so on. *see* gets
        some of them at a time, and the place of the first, and may change them."""
        take, scale = _taking(self._pieces()), self._scale

        def added(first: int, many: int) -> float:
            if many <= PIECE:
                values = take(many) * scale
                see(values, first)
                return float(np.add.reduce(values))
            half = many // 2
            half -= half % 8
            return added(first, half) + added(first + half, many - half)

        return added(0, self._count)


def _taking(pieces: Iterator[np.ndarray]) -> Callable[[int], np.ndarray]:
    """What gives the next so many numbers of *pieces*."""
    rest = np.zeros(0)

    def take(many: int) -> np.ndarray:
        nonlocal rest
        if len(rest) < many:
            parts, missing = [rest], many - len(rest)
            while missing > 0:
                parts.append(next(pieces))
                missing -= len(parts[-1])
            rest = np.concatenate(parts)
        taken, rest = rest[:many], rest[many:]
        return taken

    return take
