"""What steps take that only decode: by how many sequences, and how long they are on average.

Nobody's sequences are equally long. So the surface is fitted to steps of even and of uneven batches together: at
each measured size and context the seconds with which straight lines between come closest to all steps. Steps that
waited for the host count little (`servetwin.real.vllm.profiling.measuring.decode_points` tells why), and so do points
of few others and those that take longer than longer ones: there neighbours say more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from servetwin.profiles.llm.decode_surface import most_that_rise

from ..measuring.decode_points import FEW, NOISE, Point, points
from ..measuring.device_steps import Sample

Floats = Any

#: Weights of what is known beforehand: what a point took, or what those on both sides say of it, that lines go on by
#: context where no step was, and that they do so by size.
EVEN, BETWEEN, GOES_ON, BESIDE = 2.0, 0.3, 0.03, 0.03
#: At how many contexts a size was measured that gets a row of its own, at least.
ROW = 3
#: What a step that waited for the host counts beside one that did not, and a step of a point with few others.
LATE, DOUBTED = 0.2, 0.2
#: The share of the quickest size's median below which nothing is believed, however wild the steps are.
LEAST = 0.5
ROBUST = 0.02
ROUNDS = 8


def surface(
    samples: Sequence[Sample], contexts: Sequence[int]
) -> tuple[list[int], list[list[float]], list[tuple[int, int]]]:
    """Sizes, by size the seconds at each of *contexts* as far as it or a larger one was measured, and which points
    (size, context) have fewer than `FEW` undisturbed steps, of those *samples* that only decode. Raises `ValueError`
    if there are none."""
    found = points(samples, contexts)
    alone = {at for at, point in found.items() if point.steps or point.waited}
    if not alone:
        raise ValueError("no step of a batch that decodes ran by itself")
    few = {at for at in alone if found[at].steps < FEW}
    less = few | _falling(found)
    sizes, knots = _sizes(alone), np.array(contexts, dtype=float)
    used = [s for s in samples if not s.prompt and s.alone and 0 < s.decode <= sizes[-1]]
    rows = np.array([_row(s, sizes, knots) for s in used])
    took = np.array([s.seconds for s in used])
    trust = np.where([s.waited for s in used], LATE, 1.0)
    doubted = {id(s) for at in less for s in (*found[at].waited, *(s for spell in found[at].spells for s in spell))}
    trust *= np.where([id(s) in doubted for s in used], DOUBTED, 1.0)
    sure = {at: (found[at].each, found[at].seconds, EVEN) for at in alone - less}
    beside = {at: (float(at[1]), value, BETWEEN) for at in less if (value := _between_sure(at, found, sure))}
    known = [(at[0], *value) for at, value in sorted((sure | beside).items()) if at[0] in sizes]
    held, wanted = _held(known, sizes, knots, float(np.median(took)))
    weights, table = np.ones(len(took)), np.zeros(len(sizes) * len(knots))
    fixed = held.T @ held + np.eye(len(table)) * 1e-9 * float((held**2).sum(axis=0).max())
    for _ in range(ROUNDS):
        scaled = rows * (trust * weights / took)[:, None]
        normal = scaled.T @ scaled + fixed
        table = np.linalg.solve(normal, scaled.T @ (trust * weights) + held.T @ wanted)
        weights = 1.0 / np.sqrt(1.0 + ((took / np.maximum(rows @ table, 1e-9) - 1.0) / ROBUST) ** 2)
    least = LEAST * min(
        float(np.median([s.seconds for s in used if s.decode == n])) for n in {s.decode for s in used}
    )
    seconds = np.maximum(table.reshape(len(sizes), len(knots)), max(least, 1e-7))
    ends = [max(contexts.index(c) for n, c in alone if n >= size) + 1 for size in sizes]
    return sizes, [row[: ends[i]].tolist() for i, row in enumerate(seconds)], sorted(few)


def _between_sure(
    at: tuple[int, int], found: Mapping[tuple[int, int], Point], sure: Mapping[tuple[int, int], Any]
) -> float | None:
    """What stands at a point on the line between those beside it that are *sure*, by context or else by size; None if
    there are none on both sides."""
    for axis in (1, 0):
        line = sorted(other[axis] for other in sure if other[1 - axis] == at[1 - axis])
        below, above = [x for x in line if x < at[axis]], [x for x in line if x > at[axis]]
        if below and above:
            ends = [(at[0], x) if axis else (x, at[1]) for x in (below[-1], above[0])]
            return float(np.interp(at[axis], (below[-1], above[0]), [found[end].seconds for end in ends]))
    return None


def _falling(found: Mapping[tuple[int, int], Point]) -> set[tuple[int, int]]:
    """As few points as may be without which no batch takes less, by more than the noise, where it is longer."""
    out = set()
    for size in {n for n, _ in found}:
        row = [found[at] for at in sorted(found) if at[0] == size and found[at].steps]
        kept = most_that_rise([point.seconds for point in row], NOISE)
        out |= {(size, point.context) for i, point in enumerate(row) if i not in kept}
    return out


def _sizes(taken: set[tuple[int, int]]) -> list[int]:
    """Those that get a row: measured at the shortest context or at some others, and all that are larger still. The
    steps of other sizes count for the rows beside, as those of uneven batches do."""
    first = min(context for _, context in taken)
    rows = {n for n, context in taken if context == first or sum(size == n for size, _ in taken) >= ROW}
    return sorted(rows | {n for n, _ in taken if n > max(rows)})


def _row(sample: Sample, sizes: Sequence[int], knots: Floats) -> Floats:
    """How much of each cell is in a step."""
    return _cells(sample.decode, sample.context / sample.decode, sizes, knots)


def _cells(size: int, each: float, sizes: Sequence[int], knots: Floats) -> Floats:
    """How much of each cell is in a step of *size* sequences of *each* tokens."""
    row = np.zeros((len(sizes), len(knots)))
    for i, share in _between(size, np.array(sizes, dtype=float), False):
        for j, part in _between(each, knots, True):
            row[i, j] += share * part
    return row.ravel()


def _between(x: float, knots: Floats, on: bool) -> list[tuple[int, float]]:
    """Places of *x* among *knots*, with shares; beyond an end the end stands or, with *on*, the line goes on."""
    if len(knots) == 1:
        return [(0, 1.0)]
    i = int(np.clip(np.searchsorted(knots, x) - 1, 0, len(knots) - 2))
    share = (x - knots[i]) / (knots[i + 1] - knots[i])
    if not on:
        share = min(max(share, 0.0), 1.0)
    return [(i, 1.0 - share), (i + 1, share)]


def _held(
    known: Sequence[tuple[int, float, float, float]], sizes: Sequence[int], knots: Floats, usually: float
) -> tuple[Floats, Floats]:
    """Rows and what they should give, in shares: what *known* points (size, tokens of each, seconds, weight) take,
    and lines that go on by context and by size; a step takes *usually* so many seconds."""
    rows, wanted = [], []
    usual: dict[int, float] = {}
    for size, each, seconds, weight in known:
        rows.append(_cells(size, each, sizes, knots) * weight / seconds)
        wanted.append(weight)
        usual[size] = min(usual.get(size, seconds), seconds)
    shape = len(sizes), len(knots)
    straight = [(np.array(sizes, dtype=float), 0, BESIDE), (knots, 1, GOES_ON)]
    for places, axis, weight in straight:
        for k in range(1, len(places) - 1):
            before, after = places[k] - places[k - 1], places[k + 1] - places[k]
            bend = (-after / (before + after), 1.0, -before / (before + after))
            for other in range(shape[1 - axis]):
                row = np.zeros(shape)
                for at, share in zip((k - 1, k, k + 1), bend, strict=True):
                    row[(at, other) if axis == 0 else (other, at)] = share
                rows.append(row.ravel() * weight / usual.get(sizes[k if axis == 0 else other], usually))
                wanted.append(0.0)
    return np.array(rows), np.array(wanted)


def over_recent_load(samples: Sequence[Sample], usual: Floats, bends: int = 5) -> tuple[list[int], list[float]]:
    """What steps that only decode take over what is *usual* for each, by the density before them."""
    x = np.array([s.density for s in samples])
    y = np.array([s.seconds for s in samples]) / np.maximum(usual, 1e-7) - 1.0
    knots = np.unique(np.round(np.quantile(x, np.linspace(0.02, 0.98, bends)))).astype(int)
    knots = np.unique(np.maximum(knots, 1))
    shares = np.array([np.interp(x, knots, row) for row in np.eye(len(knots))]).T
    found, weights = np.zeros(len(knots)), np.ones(len(x))
    for _ in range(ROUNDS):
        held = 0.5 * np.eye(len(knots))
        found, *_ = np.linalg.lstsq(
            np.vstack([shares * weights[:, None], held]), np.append(y * weights, np.zeros(len(knots))), rcond=None
        )
        weights = 1.0 / np.sqrt(1.0 + ((y - shares @ found) / ROBUST) ** 2)
    return knots.tolist(), [1.0 + float(v) for v in found]
