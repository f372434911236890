"""What the user of ``servetwin import`` says beside the source: the model, the device and the engine's settings.

The names of the engine's settings are vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from servetwin.core import BadInput

T = TypeVar("T", int, float, str)

#: Sizes of vLLM's CUDA graphs in tokens: 1, 2, 4, then every 8 up to 256, then every 16.
GRAPHS = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))


@dataclass(frozen=True)
class Settings:
    """*model* and *device* (None: as the source says) are names or, of a model, a ``config.json``. *blocks* are KV
    blocks as an engine reported them (None: computed from the memory). *max_model_len* None: the model's. With
    *enforce_eager* there are no CUDA graphs. *options* are those of the format itself."""

    model: str | None = None
    device: str | None = None
    tensor_parallel_size: int = 1
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    blocks: int | None = None
    enforce_eager: bool = False
    asynchronous: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = ("tensor_parallel_size", "max_num_batched_tokens", "max_num_seqs", "block_size")
        for name in (*whole, *(n for n in ("max_model_len", "blocks") if getattr(self, n) is not None)):
            if getattr(self, name) < 1:
                raise BadInput(f"is {getattr(self, name)}", where=flag(name), right="1 or more")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            what = f"is {self.gpu_memory_utilization:g}"
            raise BadInput(what, where=flag("gpu_memory_utilization"), right="above 0, up to 1")
        if self.max_num_seqs > self.max_num_batched_tokens:
            what = (
                f"{self.max_num_seqs} requests may run at once, but a step has {self.max_num_batched_tokens} tokens"
            )
            raise BadInput(what, where=flag("max_num_seqs"), right="no more than tokens in a step, as vLLM wants it")

    @property
    def graphs(self) -> tuple[int, ...]:
        """The sizes to which vLLM pads a step's tokens; none without CUDA graphs."""
        most = min(2 * self.max_num_seqs, GRAPHS[-1], self.max_num_batched_tokens)
        return () if self.enforce_eager else tuple(n for n in GRAPHS if n <= most)

    def known(self, options: Mapping[str, Option[Any]]) -> dict[str, Any]:
        """The values of a format's *options*, by name. Raises `BadInput` for one that the format has not, or that
        does not fit."""
        for name in self.options:
            if name not in options:
                right = f"one of {', '.join(options)}" if options else "none: this format has no options of its own"
                raise BadInput("unknown option", where=f"--set {name}", right=right)
        return {name: option.read(name, self.options.get(name)) for name, option in options.items()}


def flag(name: str) -> str:
    """How a setting is said on the command line."""
    words = name.replace("_", "-")
    return f"--{words}"


@dataclass(frozen=True)
class Option(Generic[T]):
    """An option of one format, ``--set name=value``: its *default* (whose type is the option's), what it is *about*,
    and the least and most that it may be."""

    default: T
    about: str
    least: float | None = None
    most: float | None = None

    def read(self, name: str, text: str | None) -> T:
        """The value that *text* says. Raises `BadInput`."""
        if text is None:
            return self.default
        kind: Any = type(self.default)
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise BadInput(f"is {text!r}", where=f"--set {name}", right=what) from None
        if (self.least is not None and not value >= self.least) or (self.most is not None and not value <= self.most):
            right = f"{self.least:g} to {self.most:g}" if self.most is not None else f"{self.least:g} or more"
            raise BadInput(f"is {text}", where=f"--set {name}", right=right)
        return value  # type: ignore[no-any-return]
