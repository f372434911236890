"""What a format makes of its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..llm.architectures import Architecture


class Steps(Protocol):
    """Seconds of an engine's steps on a device, at places that a format is asked for."""

    def whole(self, tokens: int, prompts: int) -> float:
        """A step that computes *tokens* in all of whole prompts of equal lengths."""

    def chunk(self, tokens: int, context: int) -> float:
        """A step that computes a chunk of *tokens* of one prompt after *context* of its tokens."""

    def decode(self, batch: int, per_sequence: int) -> float:
        """A step in which *batch* sequences of so many tokens each get one more."""

    def mixed(self, tokens: int, context: int, batch: int, per_sequence: int) -> float:
        """A `chunk` and a `decode` in one step."""


@dataclass(frozen=True)
class Places:
    """Where a format knows what steps take, as far as it does: *tokens* in a step of prompts, numbers of *prompts*,
    *chunks* and tokens of *context* before them, sequences that decode (*batch*) and their lengths (*each*), and the
    places of mixed steps (no chunks: none are known, and one pass stands for them)."""

    tokens: Sequence[int]
    prompts: Sequence[int]
    chunks: Sequence[int]
    context: Sequence[int]
    batch: Sequence[int]
    each: Sequence[int]
    mixed_chunks: Sequence[int] = ()
    mixed_context: Sequence[int] = (0,)
    mixed_batch: Sequence[int] = ()
    mixed_each: Sequence[int] = ()


@dataclass(frozen=True)
class Imported:
    """*model* is what steps take (prefill, decode, mixed, as a profile file says them), made by `grids.tables` or by
    the format itself. *kind* is "imported" or "estimated"; *source* and *known_error* say in a line where the times
    come from and how far that is known to be off. *architecture* is the model's name, *shape* its shape where that is
    known; *device* and *memory_gib* are those of one device. *unlike* says what an engine pays that is not in the
    times."""

    model: Mapping[str, Any]
    kind: Literal["imported", "estimated"]
    source: str
    known_error: str
    architecture: str
    shape: Architecture | None
    device: str
    memory_gib: float | None
    origin: Mapping[str, str]
    engine: str
    unlike: str
    measured_when: str = "not stated"
    precision: str = "bf16"
    step_includes: str = "what the device computes; the host is beside it (asynchronous scheduling) or not known"
