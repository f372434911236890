"""What the steps of an engine take at least, as planes that lie nowhere above the step times it runs by.

A step that gives a token each to B sequences with C tokens of context in all takes at least a + b B + c C for each of
the planes, and at least *token* seconds for each token that it computes, of prompts and of those who decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits
from servetwin.profiles import OutOfRange, TokenTable

#: Where planes are made to lie close: shares of the sequences, and of the KV memory, that an engine takes at most.
SHARES = (0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class StepBounds:
    """*planes* are (seconds, seconds per sequence, seconds per token of context), none negative but the first.
    *token* is seconds per token computed; *adds*: whether prompts take that on top of the decodes beside them.
    *fastest* and *longest* are the seconds of a step, whatever it does."""

    planes: tuple[tuple[float, float, float], ...]
    token: float
    adds: bool
    fastest: float
    longest: float


def step_bounds(table: TokenTable, limits: EngineLimits, factors: tuple[float, float] = (1.0, 1.0)) -> StepBounds:
    """Of an engine with these *limits*; *factors* are the least that noise, or what was computed before, may put on
    steps that only decode and on those that prefill. Raises `BadInput` for tables that say that no such step can be
    computed."""
    corners = _corners(table, limits)
    planes = _planes(corners)
    mixed = table.model.mixed
    adds = mixed.rule != "one_pass"
    decode, prefill = factors
    beside = min(decode, prefill) * (min(1.0, mixed.factor) if adds else 1.0)
    tokens = np.arange(1, min(table.largest_prefill, limits.max_batched_tokens) + 1)
    least = np.array([_least_prefill(table, int(n)) for n in tokens])
    token = float((least / tokens).min()) * prefill * min(1.0, mixed.factor)
    if not adds:  # decodes are tokens of the one pass, too
        token = min(token, float((corners[:, 2] / corners[:, 0]).min()) * decode)
    if mixed.beside is not None or table.model.prefill.over_context is not None:
        token = 0.0  # such tables may fall: nothing is known of what a token takes at least
    shortest = min(float(corners[:, 2].min()) * beside, float(least.min()) * min(prefill, beside))
    longest = float(least.max()) + float(corners[:, 2].max())
    least_planes = tuple((a * beside, b * beside, c * beside) for a, b, c in planes)
    return StepBounds(least_planes, token, adds, shortest, longest)


def _corners(table: TokenTable, limits: EngineLimits) -> NDArray[np.float64]:
    """(sequences, context, seconds) at both ends of each straight piece of the decode times, from the least context
    that so many sequences have to the most that memory holds."""
    room = limits.blocks * limits.block_size
    found: list[tuple[float, float, float]] = []
    most = limits.max_sequences if table.hold else min(limits.max_sequences, table.largest_batch)
    for batch in range(1, most + 1):
        at = float(batch)
        try:
            while at <= room:
                constant, slope, until = table.straight(batch, at)
                end = min(until, float(room))
                found += [(batch, at, constant + slope * at), (batch, end, constant + slope * end)]
                if until > room or until <= at:
                    break
                at = until
        except OutOfRange:
            continue  # what nobody measured ends a run: no schedule has such a step
    if not found:
        raise BadInput(f"{table.name} has no time for a decode step", right="a profile that has")
    return np.array(found)


def _planes(corners: NDArray[np.float64]) -> list[tuple[float, float, float]]:
    """For each of some places the plane that is highest there and nowhere above a corner."""
    sizes, contexts, seconds = corners.T
    found: dict[tuple[float, float], None] = {}
    below = np.column_stack((np.ones(len(corners)), sizes, contexts))
    scale = np.array([1.0, sizes.max(), contexts.max()])
    for many in SHARES:
        for much in SHARES:
            place = np.array([1.0, many * sizes.max(), much * contexts.max()])
            if place[2] < place[1]:
                continue
            bounds = [(None, None), (0.0, None), (0.0, None)]
            done = linprog(-place / scale, A_ub=below / scale, b_ub=seconds, bounds=bounds, method="highs")
            if done.x is not None:
                _, b, c = done.x / scale
                found[round(max(b, 0.0), 12), round(max(c, 0.0), 15)] = None
    # As high as no corner is below, whatever the solver's tolerance.
    return [(float((seconds - b * sizes - c * contexts).min()), b, c) for b, c in found]


def _least_prefill(table: TokenTable, tokens: int) -> float:
    """Seconds of a step of so many prompt tokens, however they are shared out among prompts."""
    shares: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 1.0 / 16, 1.0 / 32, 1.0 / 64, 1.0 / tokens)
    try:
        return min(table.prefill(tokens, s * tokens * tokens) for s in {max(share, 1.0 / tokens) for share in shares})
    except OutOfRange:
        return float("inf")
