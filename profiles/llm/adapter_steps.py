"""Steps of an engine whose layers have LoRA adapters: all take a little longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class AllSteps(Protocol):
    """Seconds of steps, as of `servetwin.profiles.TokenTable`."""

    def step(
        self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float
    ) -> float: ...
    def straight(self, batch: int, context: float) -> tuple[float, float, float]: ...
    def between(self, sequences: int) -> float: ...


@dataclass
class AdapterSteps:
    """Each step takes *factor* times as long as in *times*."""

    times: AllSteps
    factor: float

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        return self.factor * self.times.step(tokens, squares, context, batch, decode_context)

    def prefill(self, tokens: int, squares: float | None = None, context: float = 0.0) -> float:
        """Seconds of a step that computes prompts and nothing else."""
        return self.step(tokens, squares, context, 0, 0.0)

    def decode(self, batch: int, context: float) -> float:
        """Seconds of a step in which *batch* sequences decode, and nothing else happens."""
        return self.step(0, 0.0, 0.0, batch, context)

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        constant, slope, until = self.times.straight(batch, context)
        return self.factor * constant, self.factor * slope, until

    def between(self, sequences: int) -> float:
        return self.times.between(sequences)
