"""Shapes of language models, and how many KV blocks they leave room for.

>>> opt = architecture("opt-13b")
>>> opt.kv_bytes_per_token(2)  # keys and values of all layers, fp16
819200
>>> kv_blocks(opt, memory_gib=47.54, utilization=0.9, tensor_parallel=1)
1403
"""

import functools
from pathlib import Path

from pydantic import Field, StrictBool
from servetwin.core import BadInput

from ..tables.field_types import Natural, Strict
from ..tables.loading import check, read_mapping

MODELS = Path(__file__).with_name("models.yaml")
GIB = 2**30

#: What an engine's process takes on the device besides tensors: the CUDA context and its libraries. A round figure.
CONTEXT_GIB = 0.5


class Architecture(Strict):
    """The shape of a decoder-only language model. *parameters* counts all weights that are loaded. In a mixture of
    experts, *feed_forward* is the width of one expert."""

    layers: Natural
    hidden: Natural
    heads: Natural
    kv_heads: Natural
    feed_forward: Natural
    vocabulary: Natural
    positions: Natural = Field(description="the longest context in tokens")
    parameters: Natural
    head_dim: Natural | None = None  #: where it is not hidden / heads
    gated: StrictBool = True  #: whether the feed-forward layer has a gate, so three matrices and not two
    experts: Natural | None = None  #: of each layer, in a mixture of experts
    experts_per_token: Natural | None = None
    window: Natural | None = None  #: tokens that attention reaches back, where it slides

    @property
    def head(self) -> int:
        """The width of an attention head."""
        return self.head_dim or self.hidden // self.heads

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes that a token's keys and values take, over all layers and devices."""
        return 2 * self.layers * self.kv_heads * self.head * dtype_bytes

    def check_dense(self, where: str) -> None:
        """Refuse a mixture of experts, for what only knows dense models. Raises `BadInput`."""
        if self.experts is not None:
            right = "a dense model, or servetwin profile on a GPU"
            raise BadInput("a mixture of experts cannot be estimated so", where=where, right=right)

    def check_length(self, longest: int, where: str) -> None:
        """Refuse contexts of up to *longest* tokens of which attention would not see the first. Raises `BadInput`."""
        if self.window is not None and longest > self.window:
            what = f"attention slides over {self.window} tokens, and contexts of up to {longest} are asked for"
            raise BadInput(what, where=where, right=f"max_model_len {self.window}: longer ones are not modelled")


@functools.cache
def _all() -> dict[str, Architecture]:
    return {n: check(v, Architecture, where=f"{MODELS.name}: {n}") for n, v in read_mapping(MODELS).items()}


def architectures() -> list[str]:
    """The models whose shape is known."""
    return list(_all())


def architecture(name: str) -> Architecture:
    """The shape of a model by its name. Raises `BadInput` listing the known ones."""
    try:
        return _all()[name]
    except KeyError:
        raise BadInput(f"unknown model {name!r}", right=f"one of {', '.join(_all())}") from None


def kv_blocks(
    model: Architecture,
    *,
    memory_gib: float,
    utilization: float = 0.9,
    tensor_parallel: int = 1,
    block_size: int = 16,
    max_batched_tokens: int = 8192,
    max_sequences: int = 256,
    dtype_bytes: int = 2,
    kv_dtype_bytes: int | None = None,
) -> int:
    """How many KV blocks an engine allocates that, like vLLM, gives them what its share of the memory leaves::

        (memory x utilization - weights / tp - activations - context) / (bytes of a block / tp)

    *memory_gib* is that of one device as its driver reports it. Activations are those of the largest step:
    *max_batched_tokens* times (two buffers as wide as the feed-forward layer / tp, or the experts of a token, and six
    as wide as the model), and logits of *max_sequences* tokens in the model's type and twice in 4 bytes. Those widths
    and the context (`CONTEXT_GIB`) are assumptions, not measurements: give the blocks that an engine reports where
    they are known. Numbers take *dtype_bytes* each, those of keys and values *kv_dtype_bytes* where that differs.
    Raises `BadInput` if the weights leave no room.
    """
    widths = 2 * model.feed_forward * (model.experts_per_token or 1) / tensor_parallel + 6 * model.hidden
    activations = max_batched_tokens * widths * dtype_bytes + max_sequences * model.vocabulary * (dtype_bytes + 8)
    weights = model.parameters * dtype_bytes / tensor_parallel
    room = memory_gib * GIB * utilization - weights - activations - CONTEXT_GIB * GIB
    kv_bytes = model.kv_bytes_per_token(kv_dtype_bytes or dtype_bytes)
    blocks = int(room // (block_size * kv_bytes / tensor_parallel))
    if blocks < 1:
        needs = (weights + activations) / GIB + CONTEXT_GIB
        what = f"the model takes {needs:.1f} GiB of {memory_gib * utilization:.1f} GiB: no KV block fits"
        raise BadInput(what, right="a larger device, or tensor_parallel")
    return blocks
