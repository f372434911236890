"""What steps that compute prompts take, as a sum of parts, fitted to steps of all compositions.

A step takes what its pass takes, by how many tokens go through the weights (padded to the next graph, where it runs
as graphs), and what its attention does: by the pairs of tokens in it and the tiles that kernels compute, for those
who decode by their number, their contexts, and how long the longest chunk beside them is. How fast the device runs
depends on what it has just done: a share on top by the tokens computed per second before, which fades over the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from ..measuring.device_steps import Sample

Floats = Any

#: Lengths of chunks at which what decoding adds is told.
LENGTHS = (1, 16, 64, 128, 512, 2048, 8192)
#: Tokens of a pass between which it is straight, beyond the graphs.
PASSES = (*range(64, 2048, 64), *range(2048, 32769, 256))
#: Rows of kernels' tiles.
TILE = 128
#: At which shares of the densities what is added bends.
BENDS = tuple(np.linspace(0.02, 0.98, 7))
#: Weights of what is known beforehand: passes are nearly straight, and so is what decoding adds by length.
STRAIGHT, ALIKE = 1.0, 0.08
#: A residual that counts for little more than one of this size.
ROBUST = 0.03
#: At so many steps of one graph, what most of them say together is how the device runs that size, and not chance.
ENOUGH = 5
ROUNDS = 14

#: Terms of attention beside those by length.
TERMS = ("pairs", "squares", "tiles", "each", "both")


@dataclass
class PassModel:
    """*seconds* by *knots* of tokens, and of all terms in their order; *added* is what is added at *densities*, as a
    share, at the begin of a step. *memory* is how many seconds it fades in."""

    knots: Floats
    seconds: Floats
    terms: dict[str, float]
    per_sequence: Floats
    per_context: Floats
    densities: Floats
    added: Floats
    memory: float
    graphs: tuple[int, ...]

    def padded(self, tokens: int) -> int:
        """The tokens that go through the weights for so many."""
        return next((int(n) for n in self.graphs if n >= tokens), tokens)

    def a_pass(self, tokens: int) -> float:
        """Seconds of the pass alone."""
        return float(np.interp(self.padded(tokens), self.knots, self.seconds))

    def share(self, seconds: float, density: float) -> float:
        """How many times as long a step takes that takes so many *seconds* at the usual density."""
        more = float(np.interp(density, self.densities, self.added))
        return 1.0 + more * float(fading(seconds / self.memory))


def fading(x: Floats) -> Any:
    """The mean over a step of what fades from 1 in it, *x* times as long as it takes to fade to a third."""
    x = np.maximum(x, 1e-9)
    return -np.expm1(-x) / x


def fit(samples: Sequence[Sample], graphs: Sequence[int], memory: float) -> PassModel:
    """The model of those *samples* that compute prompts, from an engine with *graphs* of these sizes, in tokens."""
    used = [s for s in samples if s.prompt and s.alone]
    if not used:
        raise ValueError("no step that computes prompts ran by itself")
    knots = _knots(graphs, max(s.tokens for s in used))
    width = len(knots) + len(TERMS) + 2 * len(LENGTHS)
    known = np.array([_row(s, knots, graphs, width) for s in used])
    took = np.array([s.seconds for s in used])
    scale = np.median(took / known[:, : len(knots)].sum(axis=1))
    units = _units(knots, scale, known, width)
    known = known * units
    held = _held(knots, width, took, known, units)
    densities, added = _bends([s.density for s in used]), np.zeros(len(BENDS))
    shares = np.array([np.interp([s.density for s in used], densities, row) for row in np.eye(len(densities))]).T
    sizes, stairs = _by_graph(used, graphs), len(graphs) - 1
    over, weights, bent = np.ones(len(took)), np.ones(len(took)), np.ones(len(held))
    found = np.zeros(width)
    for _ in range(ROUNDS):
        by = weights / took
        rows = np.vstack([known * (over * by)[:, None], held * bent[:, None]])
        found = nnls(rows, np.append(took * by, np.zeros(len(held))), maxiter=100 * width)[0]
        base = np.maximum(known @ found, 1e-9)
        faded = shares * fading(base / memory)[:, None]
        added = np.linalg.lstsq(
            np.vstack([faded * weights[:, None], 0.3 * np.eye(len(densities))]),
            np.append((took / base - 1.0) * weights, np.zeros(len(densities))),
            rcond=None,
        )[0]
        added -= np.interp(np.median([s.density for s in used]), densities, added)
        over = 1.0 + faded @ added
        off = took / (base * over) - 1.0
        weights = _robust(off - _together(off, sizes))
        bent[: max(stairs, 0)] = _robust(held[: max(stairs, 0)] @ found)  # those of passes that are graphs
    found = found * units
    at = len(knots)
    terms = dict(zip(TERMS, found[at : at + len(TERMS)].tolist(), strict=True))
    rest = found[at + len(TERMS) :].reshape(2, len(LENGTHS))
    return PassModel(knots, found[:at], terms, rest[0], rest[1], densities, added, memory, tuple(graphs))


def _robust(off: Floats) -> Floats:
    """What residuals count, as shares: less the further they are *off*."""
    return 1.0 / np.sqrt(1.0 + (off / ROBUST) ** 2)


def _by_graph(samples: Sequence[Sample], graphs: Sequence[int]) -> list[Floats]:
    """Which of *samples* run as the same graph, for each with `ENOUGH` of them."""
    padded = np.array([next((n for n in graphs if n >= s.tokens), 0) for s in samples])
    found = [np.flatnonzero(padded == size) for size in graphs]
    return [places for places in found if len(places) >= ENOUGH]


def _together(off: Floats, sizes: Sequence[Floats]) -> Floats:
    """How far *off* three quarters of the steps of a size are on the same side; 0 where they are on both. Kernels
    are chosen by size, and one of them may suit a size badly: on an H200 the passes of a Llama-3.1-8B of 433 to 448
    tokens take a quarter longer than those of 432 and of 464."""
    shared = np.zeros(len(off))
    for places in sizes:
        low, high = np.quantile(off[places], (0.25, 0.75))
        shared[places] = max(low, 0.0) + min(high, 0.0)
    return shared


def _knots(graphs: Sequence[int], most: int) -> Floats:
    last = max(graphs, default=0)
    beyond = [n for n in PASSES if n > last + 32]
    end = next((i + 1 for i, n in enumerate(beyond) if n >= most), len(beyond))
    return np.array([*graphs, last + 1, *beyond[:end]], dtype=float)


def _row(sample: Sample, knots: Floats, graphs: Sequence[int], width: int) -> Floats:
    """How much of each unknown is in a step."""
    row = np.zeros(width)
    tokens = next((n for n in graphs if n >= sample.tokens), sample.tokens)
    i = min(max(int(np.searchsorted(knots, tokens)) - 1, 0), len(knots) - 2)
    share = (tokens - knots[i]) / (knots[i + 1] - knots[i])
    row[i], row[i + 1] = 1.0 - share, share
    at = len(knots)
    row[at] = sample.pairs
    row[at + 1] = 0.5 * sample.squares
    row[at + 2] = sum((c + n) * (-n % TILE) for n, c in sample.chunks)
    row[at + 3] = len(sample.chunks)
    row[at + 4] = sample.decode * sample.context
    at += len(TERMS)
    if sample.decode:
        where = math.log(max(n for n, _ in sample.chunks))
        of = np.array([np.interp(where, np.log(LENGTHS), line) for line in np.eye(len(LENGTHS))])
        row[at : at + len(LENGTHS)] = sample.decode * of
        row[at + len(LENGTHS) :] = sample.context * of
    return row


def _units(knots: Floats, scale: float, known: Floats, width: int) -> Floats:
    """Of the unknowns: such that all are of about the size of one."""
    units = np.ones(width)
    units[: len(knots)] = scale
    largest = known[:, len(knots) :].max(axis=0)
    units[len(knots) :] = np.where(largest > 0, scale / np.maximum(largest, 1.0), scale)
    return units


def _held(knots: Floats, width: int, took: Floats, known: Floats, units: Floats) -> Floats:
    """Rows that hold passes straight, where no step says otherwise, and what decoding adds alike by length."""
    rows = []
    count = len(knots)
    usual = np.maximum(np.interp(knots, *_typical(knots, known, took)), 1e-6)
    for i in range(1, count - 1):
        row = np.zeros(width)
        before, after = knots[i] - knots[i - 1], knots[i + 1] - knots[i]
        row[i - 1], row[i], row[i + 1] = -after / (before + after), 1.0, -before / (before + after)
        rows.append(STRAIGHT * row * units / usual[i])
    at = count + len(TERMS)
    for first, typical in zip((at, at + len(LENGTHS)), _decoding(knots, known, took, units), strict=True):
        for j in range(len(LENGTHS) - 1):
            row = np.zeros(width)
            row[first + j], row[first + j + 1] = 1.0, -1.0
            rows.append(ALIKE * row * units / typical)
    return np.array(rows)


def _decoding(knots: Floats, known: Floats, took: Floats, units: Floats) -> tuple[float, float]:
    """About what a sequence that decodes adds, and a token of its context, whatever is beside."""
    at = len(knots) + len(TERMS)
    each = (known[:, at : at + len(LENGTHS)] / units[at : at + len(LENGTHS)]).sum(axis=1)
    context = (known[:, at + len(LENGTHS) :] / units[at + len(LENGTHS) :]).sum(axis=1)
    merged = np.column_stack((known[:, :at], each / max(each.max(), 1.0), context / max(context.max(), 1.0)))
    found = nnls(merged / took[:, None], np.ones(len(took)), maxiter=100 * merged.shape[1])[0][-2:]
    sizes = found / (max(each.max(), 1.0), max(context.max(), 1.0))
    least = took.min() * 1e-3  # of what is hardly seen
    return max(sizes[0], least / 256), max(sizes[1], least / 1e5)


def _typical(knots: Floats, known: Floats, took: Floats) -> tuple[Floats, Floats]:
    """About what a step takes by the tokens of its pass."""
    shares = known[:, : len(knots)]
    tokens = (shares @ knots) / shares.sum(axis=1)
    order = np.argsort(tokens)
    return tokens[order], np.minimum.accumulate(took[order][::-1])[::-1]


def _bends(densities: Sequence[float]) -> Floats:
    found = np.quantile(np.array(densities), BENDS)
    return np.maximum.accumulate(found + np.arange(len(found)) * 1e-3 * max(found[-1], 1.0))
