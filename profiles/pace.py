"""How much an engine has computed lately, and what that does to its steps.

A GPU that has been busy with prompts for some hundredths of a second clocks down, and a step that computes prompts
then takes longer: on an H200 steps of OPT-13B took 1 % less than in rows of such steps while little came, and 3 to
5 % more at more than 13,000 tokens a second (docs/vllm.md). The measure is the tokens computed per second, fading.

>>> density = Density(0.05)
>>> density.add(0.0, 0.1, 200)  # 2000 tokens a second for a tenth of a second
>>> round(density.at(0.1)), round(density.at(0.15))
(1729, 636)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import exp

from servetwin.core import BadInput

from .schema import Cost
from .table import interpolate

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


class Pace:
    """What steps that compute prompts take over a table, by how much was computed lately.

    Steps of up to ``limits[i]`` tokens take ``ratios[i][j]`` times as long at ``densities[j]`` tokens a second, on
    straight lines between and level beyond the ends; larger ones what the table says. One for each engine: calls are
    its steps, in order.
    """

    def __init__(
        self,
        limits: Sequence[int],
        densities: Sequence[Sequence[float]],
        ratios: Sequence[Sequence[float]],
        memory: float = MEMORY,
    ) -> None:
        self.limits, self.densities, self.ratios = limits, densities, ratios
        self.density = Density(memory)

    def __call__(self, start: float, seconds: float, prompt: int, tokens: int) -> float:
        """Seconds of a step that begins at *start*, takes *seconds* by the table, and computes *tokens* tokens, of
        which *prompt* are of prompts."""
        density = self.density
        if prompt:
            i = bisect_left(self.limits, tokens)
            if i < len(self.limits):
                seconds *= interpolate(density.at(start), self.densities[i], self.ratios[i])
        density.add(start, start + seconds, tokens)
        return seconds


def pace_of(costs: Mapping[str, Cost]) -> Pace | None:
    """What ``prefill.pace`` (seconds of memory) and ``prefill.pace.<tokens>`` of a profile's *costs* say; None if
    they say nothing. Sizes in the latter are tokens a second. Raises `BadInput` for one that is no such table."""
    if "prefill.pace" not in costs:
        return None
    stem, found = "prefill.pace.", {}
    for name, cost in costs.items():
        if name.startswith(stem):
            tokens = name[len(stem) :]
            if not tokens.isdecimal() or cost.by_batch is None:
                raise BadInput("is no table by tokens a second", where=name, right=f"by_batch, under {stem}512 or so")
            found[int(tokens)] = cost.by_batch
    curves = sorted(found.items())
    return Pace(
        [limit for limit, _ in curves],
        [curve.batch for _, curve in curves],
        [curve.values for _, curve in curves],
        costs["prefill.pace"].scalar(),
    )
