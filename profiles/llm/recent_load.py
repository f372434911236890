"""How much an engine has computed lately, and what that does to its steps.

A GPU that has been busy with prompts for some hundredths of a second clocks down, and its next steps take longer,
whether they compute prompts or only decode: on H100s steps of OPT-13B took 1 % less than in rows of such steps while
little came, and 2 to 5 % more at more than 13,000 tokens a second (docs/reports/2026-11-h200-llm.md). The measure is
the tokens computed per second, fading.

>>> density = Density(0.05)
>>> density.add(0.0, 0.1, 200)  # 2000 tokens a second for a tenth of a second
>>> round(density.at(0.1)), round(density.at(0.15))
(1729, 636)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal, get_args

from servetwin.core import BadInput

from ..tables.cost import ByBatch, Cost
from ..tables.costs import RECENT_LOAD, RECENT_LOAD_MEMORY
from ..tables.latency_table import interpolate

#: Seconds after which a step counts for a third of what it did.
MEMORY = 0.05


class Density:
    """Tokens computed per second, as an average that fades within *memory* seconds."""

    def __init__(self, memory: float = MEMORY) -> None:
        self.memory = memory
        self._value = 0.0
        self._when = 0.0  # the end of the last step

    def at(self, now: float) -> float:
        """When a step begins *now*, no earlier than the last one ended."""
        return self._value * exp(min(0.0, self._when - now) / self.memory)

    def add(self, start: float, end: float, tokens: int) -> None:
        """A step from *start* to *end* computed so many *tokens*."""
        seconds = end - start
        if seconds > 0.0:
            stays = exp(-seconds / self.memory)
            self._value = self.at(start) * stays + tokens / seconds * (1.0 - stays)
            self._when = end


#: Steps that only decode, that only compute prompts, and that do both.
StepKind = Literal["decode", "prefill", "mixed"]


@dataclass(frozen=True)
class Curves:
    """What steps of a kind take over a table: those of up to ``limits[i]`` tokens ``ratios[i][j]`` times as long at
    ``densities[i][j]`` tokens a second, on straight lines between and level beyond the ends; larger ones what the
    table says."""

    limits: Sequence[int] = ()
    densities: Sequence[Sequence[float]] = ()
    ratios: Sequence[Sequence[float]] = ()

    def at(self, tokens: int, density: float) -> float:
        i = bisect_left(self.limits, tokens)
        return interpolate(density, self.densities[i], self.ratios[i]) if i < len(self.limits) else 1.0


class RecentLoad:
    """What the steps of an engine take over a table, by how much was computed lately. One for each engine: calls are
    its steps, in order. Where *curves* say nothing of steps that do both, those go by what only computes prompts.
    """

    def __init__(self, curves: Mapping[StepKind, Curves], memory: float = MEMORY) -> None:
        self.curves = curves
        self.density = Density(memory)
        nothing = Curves()
        self._decode, self._prefill = curves.get("decode", nothing), curves.get("prefill", nothing)
        self._mixed = curves.get("mixed", self._prefill)

    def __call__(self, start: float, seconds: float, prompt: int, tokens: int) -> float:
        """Seconds of a step that begins at *start*, takes *seconds* by the table, and computes *tokens* tokens, of
        which *prompt* are of prompts."""
        density = self.density
        curves = self._decode if not prompt else self._prefill if prompt == tokens else self._mixed
        if curves.limits:
            seconds *= curves.at(tokens, density.at(start))
        density.add(start, start + seconds, tokens)
        return seconds


def recent_load_of(costs: Mapping[str, Cost]) -> RecentLoad | None:
    """What a profile's *costs* say: ``prefill.recent_load`` (seconds of memory) and ``<kind>.recent_load.<tokens>``,
    where the kind is a `StepKind`; None if they say nothing. Sizes in the latter are tokens a second. Raises
    `BadInput` for one that is no such table."""
    if RECENT_LOAD_MEMORY() not in costs:
        return None
    kinds: tuple[StepKind, ...] = get_args(StepKind)
    curves = {kind: found for kind in kinds if (found := _curves(costs, kind)).limits}
    return RecentLoad(curves, costs[RECENT_LOAD_MEMORY()].scalar())


def _curves(costs: Mapping[str, Cost], kind: StepKind) -> Curves:
    """Of those *costs* that are of a *kind* of step."""
    found: dict[int, ByBatch] = {}
    for tokens, name in RECENT_LOAD.sizes(costs, kind).items():
        curve = costs[name].by_batch
        if curve is None:
            raise BadInput("is no table by tokens a second", where=name, right="by_batch")
        found[tokens] = curve
    limits = sorted(found)
    return Curves(limits, [found[n].batch for n in limits], [found[n].values for n in limits])
