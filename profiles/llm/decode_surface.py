"""What a measured surface of decode steps says everywhere: a rule for noise, disturbed samples and the ends of rows.

A decode step of more sequences, or of longer ones, takes no less time: it reads the same weights, and more keys and
values. What was measured falls here and there, for samples are few and a host stalls; and rows end where memory or
patience did, some at a single context. So a surface is read by one rule, the same for every profile; the file keeps
the numbers as they were measured.

1. A row whose seconds are the same at all its contexts was measured at the last of them only.
2. Of the values at one context those are left out, as few as may be (of equally many the slower ones), without which
   none falls below one of a smaller batch by more than the noise (`noise`). The line between the rows beside stands
   there, or where there is none on one side what the rest of the row says. What is left stays as it was measured.
3. A row that was measured at one context only takes the slopes of the rows beside, by tokens of context in all; where
   a row ends its last line goes on, and so it does beyond the last context; never down.
4. Where a row was not measured it is no less than that of a smaller batch with as much context each; beyond the
   contexts of all rows, and where an engine pads batches, no less by more than the noise (`Pieces.above`).

>>> found = rule((40, 130), ((0.010, 0.012), (0.011, 0.014), (0.0145, 0.0145)), (1, 2, 4))
>>> round(found.at(4, 130), 6), found.at(4, 400) > found.at(2, 400)  # not level: its one context was 130
(0.0145, True)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import NamedTuple

from servetwin.core.arithmetic import float_sum

#: So many times the usual deviation (scaled MAD) of a value from the line between those beside is noise; and the
#: share that it is at least and at most, for surfaces of few or of wild samples.
DEVIATIONS, LEAST, MOST = 5.0, 0.02, 0.05

Grid = list[list[float]]


class Pieces(NamedTuple):
    """Seconds of a decode step of one batch size by its total context x, in straight pieces.

    Piece i holds from ``starts[i]`` on, as ``constants[i] + slopes[i] * x``; *last* is the largest x.
    """

    starts: tuple[float, ...]
    constants: tuple[float, ...]
    slopes: tuple[float, ...]
    last: float

    def scaled(self, share: float, factor: float) -> Pieces:
        """At x *factor* times what stands at *share* times x."""
        starts = tuple(start / share for start in self.starts)
        slopes = tuple(factor * slope * share for slope in self.slopes)
        return Pieces(starts, tuple(factor * c for c in self.constants), slopes, self.last / share)

    def above(self, other: Pieces) -> Pieces:
        """The larger of the two at each x, up to our *last*.

        >>> Pieces((0.0,), (1.0,), (0.0,), 9.0).above(Pieces((0.0,), (0.0,), (0.5,), 9.0))
        Pieces(starts=(0.0, 2.0), constants=(1.0, 0.0), slopes=(0.0, 0.5), last=9.0)
        """
        found: list[tuple[float, float, float]] = []
        edges = sorted({*self.starts, *other.starts})
        for start, end in zip(edges, [*edges[1:], float("inf")], strict=True):
            lines = [
                (p.constants[i], p.slopes[i]) for p in (self, other) for i in [bisect_right(p.starts, start) - 1]
            ]
            (c, s), (d, t) = lines
            crossing = (c - d) / (t - s) if t != s else start
            for x in (start, crossing) if start < crossing < end else (start,):
                # Which one is the larger just after x: by height, and by slope where they meet.
                ours = (c + s * x, s) if x == start else (0.0, s)
                theirs = (d + t * x, t) if x == start else (0.0, t)
                line = lines[0] if ours >= theirs else lines[1]
                if not found or found[-1][1:] != line:
                    found.append((x, *line))
        starts, constants, slopes = zip(*found, strict=True)
        return Pieces(starts, constants, slopes, self.last)


@dataclass(frozen=True)
class Surface:
    """Seconds at *batch* sizes and *knots* (contexts per sequence, from 0 on), straight between, and *slopes* by
    batch size beyond the last knot. *left_out* are the measured cells that count for nothing: (batch, context,
    seconds measured, seconds by the rule). *noise* is the share that counts as such."""

    batch: tuple[int, ...]
    knots: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    slopes: tuple[float, ...]
    left_out: tuple[tuple[int, int, float, float], ...]
    noise: float

    def at(self, batch: int, each: float) -> float:
        """Seconds of a step of a *batch* that is one of ours, with so many tokens of context *each*."""
        i = self.batch.index(batch)
        row, last = self.seconds[i], self.knots[-1]
        if each >= last:
            return row[-1] + self.slopes[i] * (each - last)
        j = bisect_right(self.knots, each) - 1
        share = (each - self.knots[j]) / (self.knots[j + 1] - self.knots[j])
        return row[j] + (row[j + 1] - row[j]) * share


@lru_cache(maxsize=256)
def rule(contexts: tuple[int, ...], measured: tuple[tuple[float, ...], ...], batch: tuple[int, ...]) -> Surface:
    """The surface of *measured* seconds, a row per *batch* size, at *contexts* per sequence; rows may end early."""
    known: list[dict[int, float]] = [_measured_at(contexts, row) for row in measured]
    tolerance = noise(contexts, known, batch)
    left_out = _left_out(contexts, known, tolerance)
    for i, k in left_out:
        del known[i][k]
    beside = {(i, k): value for i, k in left_out if (value := _among(k, i, known, batch)) is not None}
    for (i, k), value in beside.items():
        known[i][k] = value
    for i, row in enumerate(known):
        if not row:  # nothing is left of it: what is nearest stands where it was measured
            k = max(k for j, k in left_out if j == i)
            row[k] = next(known[j][k] for j in sorted(range(len(known)), key=lambda j: abs(j - i)) if k in known[j])
    grid = _complete(contexts, known, batch)
    for above, below, has in zip(grid[1:], grid, known[1:], strict=False):
        for j, k in enumerate(contexts):
            if k not in has:
                above[j] = max(above[j], below[j])
    slopes, first = _ends(contexts, grid)
    if contexts[0] > 0:
        grid = [[start, *row] for start, row in zip(first, grid, strict=True)]
    told = tuple(
        (batch[i], k, measured[i][j], grid[i][j - len(contexts)])
        for i, k in sorted(left_out)
        for j in [contexts.index(k)]
    )
    knots = (*((0,) if contexts[0] > 0 else ()), *contexts)
    return Surface(batch, knots, tuple(map(tuple, grid)), tuple(slopes), told, tolerance)


def _measured_at(contexts: Sequence[int], row: Sequence[float]) -> dict[int, float]:
    """Seconds by context; of a row that is level to the last digit the last one only."""
    found = dict(zip(contexts, row, strict=False))
    if len(row) > 1 and len(set(row)) == 1:
        last = contexts[len(row) - 1]
        return {last: found[last]}
    return found


def noise(contexts: Sequence[int], known: Sequence[dict[int, float]], batch: Sequence[int]) -> float:
    """The share by which values differ from each other for nothing: `DEVIATIONS` times the scaled median absolute
    deviation of each from the straight line between the batch sizes beside, at the same context."""
    off = []
    for k in contexts:
        rows = [(batch[i], row[k]) for i, row in enumerate(known) if k in row]
        for (a, low), (b, middle), (c, high) in zip(rows, rows[1:], rows[2:], strict=False):
            off.append(abs(middle / (low + (high - low) * (b - a) / (c - a)) - 1.0))
    spread = 1.4826 * median(off) if off else 0.0
    return min(max(DEVIATIONS * spread, LEAST), MOST)


def _left_out(contexts: Sequence[int], known: Sequence[dict[int, float]], tolerance: float) -> list[tuple[int, int]]:
    """(row, context) of the cells that fall, or from which others do, by more than *tolerance*."""
    found = []
    for k in contexts:
        rows = [i for i, row in enumerate(known) if k in row]
        values = [known[i][k] for i in rows]
        kept = most_that_rise(values, tolerance)
        found += [(rows[i], k) for i in range(len(rows)) if i not in kept]
    return found


def most_that_rise(values: Sequence[float], tolerance: float) -> set[int]:
    """Which of *values*, as many as may be and of equally many those whose sum is least, have none among them that is
    below an earlier one by more than the share *tolerance*.

    >>> sorted(most_that_rise([1.0, 1.7, 1.1, 1.2, 1.15], 0.05))
    [0, 2, 3, 4]
    """
    # Of a set only its largest matters for what may follow: largest -> (how many, -sum, which).
    best: dict[float, tuple[int, float, tuple[int, ...]]] = {0.0: (0, 0.0, ())}
    for i, value in enumerate(values):
        for top, (count, total, kept) in list(best.items()):
            if value >= top * (1.0 - tolerance):
                now = (count + 1, total - value, (*kept, i))
                best[max(top, value)] = max(best.get(max(top, value), now), now)
    return set(max(best.values())[2])


def _among(k: int, i: int, known: Sequence[dict[int, float]], batch: Sequence[int]) -> float | None:
    """Seconds at context *k* for row *i*, on the line through the nearest rows on either side that have it; None if
    there are none on one."""
    below = next((j for j in range(i - 1, -1, -1) if k in known[j]), None)
    above = next((j for j in range(i + 1, len(known)) if k in known[j]), None)
    if below is None or above is None:
        return None
    share = (batch[i] - batch[below]) / (batch[above] - batch[below])
    return known[below][k] + (known[above][k] - known[below][k]) * share


def _complete(contexts: Sequence[int], known: Sequence[dict[int, float]], batch: Sequence[int]) -> Grid:
    """Each row at all *contexts*: straight between those that it has; beyond its last its last line goes on, and
    before its first its first one does. A row of one context has the slopes of the rows beside."""
    slopes = [_slopes(row, size) for row, size in zip(known, batch, strict=True)]
    grid = []
    for i, row in enumerate(known):
        has = sorted(row)
        if len(has) == 1:
            own = _beside(i, slopes, batch)
            grid.append([max(row[has[0]] + own * batch[i] * (k - has[0]), 0.0) for k in contexts])
        else:
            grid.append([max(_on_line(k, has, [row[x] for x in has]), 0.0) for k in contexts])
    return grid


def _slopes(row: dict[int, float], size: int) -> float | None:
    """Seconds for each further token of context in all, by least squares; None for a row of one context."""
    if len(row) < 2:
        return None
    x, y = float_sum(row) / len(row), float_sum(row.values()) / len(row)
    slope = float_sum((k - x) * (value - y) for k, value in row.items()) / float_sum((k - x) ** 2 for k in row)
    return max(slope / size, 0.0)


def _beside(i: int, slopes: Sequence[float | None], batch: Sequence[int]) -> float:
    """The slope of row *i* by those of the nearest rows on either side that have one, between them by batch size."""
    below = next((j for j in range(i - 1, -1, -1) if slopes[j] is not None), None)
    above = next((j for j in range(i + 1, len(slopes)) if slopes[j] is not None), None)
    low = slopes[below] if below is not None else None
    high = slopes[above] if above is not None else None
    if low is None or high is None:
        return low if low is not None else high if high is not None else 0.0
    assert below is not None
    assert above is not None
    return low + (high - low) * (batch[i] - batch[below]) / (batch[above] - batch[below])


def _on_line(x: float, xs: Sequence[int], ys: Sequence[float]) -> float:
    """The height at *x* of the lines through the points, which go on beyond their ends."""
    i = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    if x in xs:
        return ys[xs.index(int(x))]
    return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1])


def _ends(contexts: Sequence[int], grid: Grid) -> tuple[list[float], list[float]]:
    """Slopes beyond the last context, and seconds without context, by row."""
    if len(contexts) == 1:
        return [0.0] * len(grid), [row[0] for row in grid]
    first, last = contexts[1] - contexts[0], contexts[-1] - contexts[-2]
    slopes = [max((row[-1] - row[-2]) / last, 0.0) for row in grid]
    return slopes, [max(row[0] - (row[1] - row[0]) / first * contexts[0], 0.0) for row in grid]
