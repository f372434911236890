"""Tables for steps that are no plain prefill and no plain decode: chunks after others, decodes beside chunks.

A chunk of a prompt attends to what stood before it, and sequences that decode in the same step go through kernels
that are made for prompts, which serve single tokens less well: by how much depends on the chunk, on how many decode
and on how long they are. Where kernels, or steps, were measured at a grid of these, a profile holds the grid.

>>> axes = {"tokens": (16, 512), "context": (0,), "batch": (1, 8), "per_sequence": (100,)}
>>> grid = Beside(**axes, seconds=(1e-3, 2e-3, 3e-3, 4e-3), statistic="made up")
>>> grid(512, 0.0, 8, 100.0)
0.004
>>> round(grid(264, 0.0, 8, 100.0), 6)  # half way from a chunk of 16 to one of 512
0.003
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Self

from pydantic import model_validator

from ..tables.field_types import Count, Finite, Natural, Strict, Text


class Grid(Strict):
    """*seconds* at all places of some axes, the last axis running fastest; straight between, at each axis in turn."""

    seconds: tuple[Finite, ...]
    statistic: Text
    note: Text | None = None

    def axes(self) -> dict[str, Sequence[int]]:
        """Names and values of the axes, in order."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _sound(self) -> Self:
        places = 1
        for name, values in self.axes().items():
            if not values or any(a >= b for a, b in itertools.pairwise(values)):
                raise ValueError(f"{name} must increase, and hold one value at least")
            places *= len(values)
        if len(self.seconds) != places:
            raise ValueError(f"{places} places but {len(self.seconds)} seconds")
        return self

    def at(self, *where: float, beyond: int) -> float:
        """Seconds at a place. Below an axis' first value the first stands; beyond its last one the last does, or, on
        the last *beyond* axes, the last line goes on."""
        parts = [(0, 1.0)]
        axes = list(self.axes().values())
        for i, (x, values) in enumerate(zip(where, axes, strict=True)):
            low, share = _between(x, values, on=len(axes) - i <= beyond)
            firsts = [(at * len(values) + low, weight) for at, weight in parts]
            parts = [(at, weight - weight * share) for at, weight in firsts]
            if share:
                parts += [(at + 1, weight * share) for at, weight in firsts]
        seconds = self.seconds
        return math.fsum([w * seconds[at] for at, w in parts])


def _between(x: float, values: Sequence[int], on: bool) -> tuple[int, float]:
    """The place of the last value up to *x*, and which share of the way to the next one it is on."""
    if x <= values[0] or len(values) == 1:
        return 0, 0.0
    if x >= values[-1]:
        last = len(values) - 2
        return (last, (x - values[last]) / (values[-1] - values[last])) if on else (len(values) - 1, 0.0)
    low = bisect_right(values, x) - 1
    return low, (x - values[low]) / (values[low + 1] - values[low])


class OverContext(Grid):
    """What *tokens* of prompts add to a step for the tokens that stood before them, *context* on average for each of
    them; 0 of these are the first. Beyond the last context the last line goes on."""

    tokens: tuple[Natural, ...]
    context: tuple[Count, ...]

    def axes(self) -> dict[str, Sequence[int]]:
        return {"tokens": self.tokens, "context": self.context}

    def __call__(self, tokens: float, context: float) -> float:
        return self.at(tokens, context, beyond=1)


class Beside(Grid):
    """What *batch* sequences that decode, *per_sequence* tokens long on average, add to the pass of *tokens* of
    prompts that have *context* tokens before them on average, over what one more token each adds to the pass itself.
    Beyond the last batch and the last length the last lines go on."""

    tokens: tuple[Natural, ...]
    context: tuple[Count, ...]
    batch: tuple[Natural, ...]
    per_sequence: tuple[Natural, ...]

    def axes(self) -> dict[str, Sequence[int]]:
        return {
            "tokens": self.tokens,
            "context": self.context,
            "batch": self.batch,
            "per_sequence": self.per_sequence,
        }

    def __call__(self, tokens: float, context: float, batch: float, per_sequence: float) -> float:
        return self.at(tokens, context, batch, per_sequence, beyond=2)
