"""What steps take that only decode: by how many sequences, and how long they are on average.

Nobody's sequences are equally long. So the surface is fitted to steps of even and of uneven batches together: at
each measured size and context the seconds with which straight lines between come closest to all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..measuring.device_steps import Sample

Floats = Any

#: Weights of what is known beforehand: what even batches took, and that lines go on where no step was.
EVEN, GOES_ON = 2.0, 0.3
ROBUST = 0.02
ROUNDS = 8


def surface(samples: Sequence[Sample], contexts: Sequence[int]) -> tuple[list[int], list[list[float]]]:
    """Sizes, and by size the seconds at each of *contexts* up to about where it was measured, of those *samples* that
    only decode. Raises `ValueError` if there are none."""
    used = [s for s in samples if not s.prompt and s.alone]
    even = [s for s in used if s.kind == "decode"]
    sizes = sorted({s.decode for s in even})
    if not sizes:
        raise ValueError("no step of a batch that decodes ran by itself")
    knots = np.array(contexts, dtype=float)
    used = [s for s in used if s.decode <= sizes[-1]]
    rows = np.array([_row(s, sizes, knots) for s in used])
    took = np.array([s.seconds for s in used])
    cells = len(sizes) * len(knots)
    held, wanted, reach = _held(even, sizes, knots, cells)
    weights, found = np.ones(len(took)), np.zeros(cells)
    fixed = held.T @ held + np.eye(cells) * 1e-9 * float((held**2).sum(axis=0).max())
    for _ in range(ROUNDS):
        scaled = rows * (weights / took)[:, None]
        normal = scaled.T @ scaled + fixed
        found = np.linalg.solve(normal, scaled.T @ weights + held.T @ wanted)
        weights = 1.0 / np.sqrt(1.0 + ((took / np.maximum(rows @ found, 1e-9) - 1.0) / ROBUST) ** 2)
    table = np.maximum(found.reshape(len(sizes), len(knots)), 1e-7)
    return sizes, [row[: reach[i]].tolist() for i, row in enumerate(table)]


def _row(sample: Sample, sizes: Sequence[int], knots: Floats) -> Floats:
    """How much of each cell is in a step."""
    row = np.zeros((len(sizes), len(knots)))
    for i, share in _between(sample.decode, np.array(sizes, dtype=float), False):
        for j, part in _between(sample.context / sample.decode, knots, True):
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
    even: Sequence[Sample], sizes: Sequence[int], knots: Floats, cells: int
) -> tuple[Floats, Floats, list[int]]:
    """Rows and what they should give, in shares: what even batches took in the median, lines that go on by size; and
    how many contexts each size reaches."""
    known: dict[tuple[int, int], list[float]] = {}
    for sample in even:
        each = sample.context / sample.decode
        known.setdefault((sizes.index(sample.decode), int(np.argmin(np.abs(np.log(knots / each))))), []).append(
            sample.seconds
        )
    rows, wanted = [], []
    typical = {cell: float(np.median(seconds)) for cell, seconds in known.items()}
    reach = [max((j for i, j in typical if i == at), default=0) + 1 for at in range(len(sizes))]
    for (i, j), seconds in typical.items():
        row = np.zeros(cells)
        row[i * len(knots) + j] = EVEN / seconds
        rows.append(row)
        wanted.append(EVEN)
    for i in range(len(sizes)):
        usual = min(seconds for (at, _), seconds in typical.items() if at == i)
        for j in range(1, len(knots) - 1):
            row = np.zeros(cells)
            before, after = knots[j] - knots[j - 1], knots[j + 1] - knots[j]
            at = i * len(knots) + j
            row[at - 1], row[at], row[at + 1] = -after / (before + after), 1.0, -before / (before + after)
            rows.append(row * GOES_ON * 0.1 / usual)
            wanted.append(0.0)
    return np.array(rows), np.array(wanted), reach


def over_recent_load(samples: Sequence[Sample], usual: Floats, bends: int = 5) -> tuple[list[int], list[float]]:
    """What steps that only decode take over what is *usual* for each, by the density before them."""
    x = np.array([s.density for s in samples])
    y = np.array([s.seconds for s in samples]) / usual - 1.0
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
