"""How often, and how far, a run went beyond what its profiles know, where `TimeOptions.hold` lets it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from servetwin.profiles import TokenTable


@dataclass
class Held:
    """*steps* of *worker* asked *profile* for more *of* something than it knows: *most* at most, where *known* is the
    largest that it has, whose value stood for them."""

    worker: str
    profile: str
    of: str
    known: float
    steps: int = 0
    most: float = 0.0

    def ask(self, asked: float) -> None:
        self.steps += 1
        self.most = max(self.most, asked)

    def as_dict(self) -> dict[str, Any]:
        asked, known = (int(x) if float(x).is_integer() else x for x in (self.most, self.known))
        return {
            "worker": self.worker,
            "profile": self.profile,
            "of": self.of,
            "steps": self.steps,
            "largest_asked": asked,
            "largest_known": known,
        }


@dataclass
class HeldTimes:
    """The steps of *table*, which holds its last values, of an engine called *worker*; counts what is beyond it.

    What `straight` gives for such a step is good for no other, so that each is asked for.
    """

    table: TokenTable
    worker: str
    found: dict[str, Held] = field(default_factory=dict)
    _last: tuple[int, float] = (0, -1.0)

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        if tokens:
            # A step that does both passes the weights once, with all its tokens.
            whole = tokens + batch if batch and self.table.model.mixed.rule == "one_pass" else tokens
            if whole > self.table.largest_prefill:
                self._held("tokens in a step with prompts", self.table.largest_prefill).ask(whole)
        if batch:
            self._decoding(batch, decode_context)
        return self.table.step(tokens, squares, context, batch, decode_context)

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        if (batch, context) == self._last:  # asked for twice
            return self._once(batch, context)
        if self._decoding(batch, context):
            self._last = (batch, context)
            return self._once(batch, context)
        return self.table.straight(batch, context)

    def between(self, sequences: int) -> float:
        return self.table.between(sequences)

    def _once(self, batch: int, context: float) -> tuple[float, float, float]:
        return self.table.decode(batch, context), 0.0, math.nextafter(context, math.inf)

    def _decoding(self, batch: int, context: float) -> bool:
        """Whether so many sequences that decode, or their context, are beyond the table."""
        if batch > self.table.largest_batch:
            self._held("sequences that decode", self.table.largest_batch).ask(batch)
            return True
        last = self.table.pieces(batch).last
        if context > last:
            self._held("tokens of context that decode", last).ask(context)
            return True
        return False

    def _held(self, of: str, known: float) -> Held:
        if of not in self.found:
            self.found[of] = Held(self.worker, self.table.name, of, known)
        return self.found[of]


@dataclass
class Reach:
    """Up to which batch size a table that a worker goes by was measured, where its limit is above it."""

    worker: str
    table: str
    largest: int

    def held(self, sizes: Mapping[int, int]) -> Held:
        """Of the batches that ran, iterations by size, those that were beyond."""
        found = Held(self.worker, self.table, "batch size", self.largest)
        for size, count in sizes.items():
            if size > self.largest:
                found.steps += count
                found.most = max(found.most, size)
        return found


@dataclass
class Watch:
    """All that is beyond what was measured in a run."""

    engines: list[HeldTimes] = field(default_factory=list)
    reaches: list[Reach] = field(default_factory=list)

    def told(self, sizes: Mapping[str, Mapping[int, int]]) -> list[dict[str, Any]]:
        """For `Summary.held`, with the iterations by batch size of each worker (`Summary.sizes`)."""
        found = [held for times in self.engines for held in times.found.values()]
        found += [reach.held(sizes.get(reach.worker, {})) for reach in self.reaches]
        return [held.as_dict() for held in found if held.steps]
