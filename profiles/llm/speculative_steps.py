"""Steps of an engine that drafts tokens: what verifying the drafts takes, and making them.

A sequence that decodes brings its last token and *drafts* more. All of them go through the weights in one pass, and
the keys and values of its context are read once for all of them. That is what the mixed steps of a profile are: each
sequence decodes, and beside it its drafts are computed as a chunk of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

#: Seconds of making the drafts of a step: by tokens of prompts in it, the sum of the squares of their chunks, that of
#: each times the tokens before it, sequences that decode and their context.
DraftSeconds = Callable[[int, float, float, int, float], float]


class Steps(Protocol):
    """Seconds of steps, as of `servetwin.profiles.TokenTable`."""

    def step(
        self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float
    ) -> float: ...
    def between(self, sequences: int) -> float: ...


@dataclass
class SpeculativeSteps:
    """*times* of an engine that verifies *drafts* tokens of each sequence that decodes, and makes them in *draft*
    seconds a step."""

    times: Steps
    drafts: int
    draft: DraftSeconds

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        """As of `TokenTable`, with the drafts of *batch* sequences verified, and new ones made after it."""
        whole = float(tokens * tokens) if squares is None else squares
        more = batch * self.drafts
        seconds = self.times.step(tokens + more, whole + more * self.drafts, context, batch, decode_context)
        return seconds + self.draft(tokens, whole, context, batch, decode_context)

    def decode(self, batch: int, context: float) -> float:
        """Seconds of a step in which *batch* sequences decode, and nothing else happens."""
        return self.step(0, 0.0, 0.0, batch, context)

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        """As of `TokenTable`; good for this one context, as each step gives another number of tokens."""
        return self.decode(batch, context), 0.0, math.nextafter(context, math.inf)

    def prefill(self, tokens: int, squares: float | None = None, context: float = 0.0) -> float:
        """Seconds of a step that computes prompts and nothing else."""
        return self.step(tokens, squares, context, 0, 0.0)

    def between(self, sequences: int) -> float:
        return self.times.between(sequences)


@dataclass(frozen=True)
class StatedDrafts:
    """Drafts of a step take *seconds*, and *each* for every sequence that decodes in it."""

    seconds: float
    each: float

    def __call__(self, tokens: int, squares: float, context: float, batch: int, decode_context: float) -> float:
        return self.seconds + self.each * batch


@dataclass(frozen=True)
class DraftModel:
    """Drafts of a model whose own steps take *times*: it computes all that the step computed (prompts, and the tokens
    of those who decode), which gives the first of *drafts*, and then decodes the rest one by one."""

    times: DecodeSteps
    drafts: int

    def __call__(self, tokens: int, squares: float, context: float, batch: int, decode_context: float) -> float:
        seconds = self.times.step(tokens, squares, context, batch, decode_context)
        for j in range(1, self.drafts) if batch else ():
            seconds += self.times.decode(batch, decode_context + j * batch)
        return seconds


class DecodeSteps(Steps, Protocol):
    """`Steps`, of which those that only decode are told by themselves as well."""

    def decode(self, batch: int, context: float) -> float: ...
