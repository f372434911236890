"""A formula, for a model by name or config.json on a --device: arithmetic and memory at stated efficiencies.

Nothing here is measured. Each matrix product takes what its arithmetic takes at *compute* of the device's peak, or
what its bytes take at *bandwidth* of the memory's, whichever is more; attention likewise, at *attention* of the peak;
what lies between (norms, rotations, activations) takes its bytes. Each layer adds *layer_us*, and with several
devices two reductions over their links, *reduce_us* each and their bytes at *link* of the links' rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ...llm.architectures import Architecture
from ...llm.hf_config import shape_of
from ..devices import KnownDevice, device
from ..grids import padded, tables, up_to
from ..imported import Imported, Places
from ..settings import Option, Settings

OPTIONS: Mapping[str, Option[Any]] = {
    "compute": Option(0.7, "share of the peak arithmetic that matrix products reach", 0.01, 1.0),
    "attention": Option(0.5, "likewise of a prompt's attention", 0.01, 1.0),
    "bandwidth": Option(0.8, "share of the peak memory bandwidth", 0.01, 1.0),
    "link": Option(0.6, "share of the links' rate that reductions reach", 0.01, 1.0),
    "layer_us": Option(10.0, "microseconds that each layer adds", 0.0),
    "reduce_us": Option(8.0, "microseconds that each reduction adds", 0.0),
}

BYTES = 2  #: of a weight, an activation, a key or a value

KNOWN_ERROR = (
    "against OPT-13B, 30B and 66B as measured here on H200s its decode steps are off by 8 to 17 % in the median and "
    "prompts by 5 to 16 %, against LLMServingSim's kernels of Llama-3.1-8B on an RTX 4090 by 7 and 34 %"
)


def read(source: str, settings: Settings) -> Imported:
    """The model *source*, a name or a config.json, on the settings' device. Raises `BadInput`."""
    told = settings.known(OPTIONS)
    if settings.device is None:
        raise BadInput("a formula needs a device", where="--device", right="h100, a100, ...")
    if settings.model is not None:
        raise BadInput("the source is the model", where="--model", right="nothing there")
    name, shape = shape_of(source)
    shape.check_dense(source)
    known = device(settings.device)
    parallel = settings.tensor_parallel_size
    if shape.heads % parallel:
        right = "a divisor of the heads"
        raise BadInput(f"{shape.heads} heads on {parallel} devices", where="--tensor-parallel-size", right=right)
    steps = Roofline(shape, known, settings, **told)
    said = ", ".join(f"{key} {value:g}" for key, value in told.items())
    return Imported(
        model=tables(steps, places(shape, settings), statistic="formula", file="formats/roofline.py"),
        kind="estimated",
        source=f"a roofline of {name} on {known.name} ({said})",
        known_error=KNOWN_ERROR,
        architecture=name,
        shape=shape,
        device=known.name,
        memory_gib=known.memory_gib,
        origin={"repository": "this one; servetwin import roofline"},
        engine="none: a formula",
        unlike=f"Nothing is measured. Peaks as published; efficiencies as said ({said}).",
        measured_when="never",
    )


def places(shape: Architecture, settings: Settings) -> Places:
    """Where the formula is asked: as finely as it bends."""
    most = settings.max_num_batched_tokens
    longest = settings.max_model_len or shape.positions
    contexts = [n for n in (128, 512, 2048, 8192, 32768) if n < longest]
    graphs = [n for n in settings.graphs if n <= most]
    sizes = sorted({n for n in (*settings.graphs, *(2**k for k in range(11))) if n <= settings.max_num_seqs})
    return Places(
        tokens=padded(graphs, most, lambda n: max(64, n // 8)),
        prompts=[1, 2, 4, 8, 16, 32],
        chunks=up_to([n for n in (16, 64, 256, 1024, 4096) if n < most], most),
        context=[0, *contexts, longest],
        batch=up_to(sizes, settings.max_num_seqs),
        each=[16, *contexts, longest],
    )


class Roofline:
    """`servetwin.profiles.importing.imported.Steps` of a model of a *shape* on a device."""

    def __init__(
        self,
        shape: Architecture,
        known: KnownDevice,
        settings: Settings,
        *,
        compute: float,
        attention: float,
        bandwidth: float,
        link: float,
        layer_us: float,
        reduce_us: float,
    ) -> None:
        self.shape, self.devices, self.graphs = shape, settings.tensor_parallel_size, settings.graphs
        self.flops, self.attending = compute * known.flops, attention * known.flops
        self.bandwidth, self.link = bandwidth * known.bandwidth, link * known.link
        self.layer, self.reduce = 1e-6 * layer_us, 1e-6 * reduce_us
        queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
        wide = shape.feed_forward * (2 if shape.gated else 1)
        #: (inputs, outputs) of a layer's matrix products on one device.
        self.products = [
            (shape.hidden, (queries + 2 * keys) / self.devices),
            (queries / self.devices, shape.hidden),
            (shape.hidden, wide / self.devices),
            (shape.feed_forward / self.devices, shape.hidden),
        ]

    def _product(self, rows: int, inputs: float, outputs: float) -> float:
        moved = BYTES * (inputs * outputs + rows * (inputs + outputs))
        return max(2.0 * rows * inputs * outputs / self.flops, moved / self.bandwidth)

    def _pass(self, tokens: int, sequences: int) -> float:
        """All but attention: *tokens* through the layers, *sequences* through the head."""
        at = next((n for n in self.graphs if n >= tokens), tokens)
        shape = self.shape
        between = BYTES * at * (8 * shape.hidden + 3 * shape.feed_forward / self.devices) / self.bandwidth
        each = float_sum(self._product(at, *sizes) for sizes in self.products) + between + self.layer
        if self.devices > 1:
            moved = 2.0 * BYTES * at * shape.hidden * (self.devices - 1) / self.devices
            each += 2.0 * (self.reduce + moved / self.link)
        head = self._product(sequences, shape.hidden, shape.vocabulary / self.devices)
        return shape.layers * each + head

    def _attention(self, pairs: float, context: float) -> float:
        """*pairs* of tokens that attend to each other; keys and values of *context* tokens are read."""
        shape = self.shape
        arithmetic = 4.0 * shape.heads * shape.head * pairs / self.devices / self.attending
        read = shape.kv_bytes_per_token(BYTES) / shape.layers * context / self.devices / self.bandwidth
        return shape.layers * max(arithmetic, read)

    def whole(self, tokens: int, prompts: int) -> float:
        return self._pass(tokens, prompts) + self._attention(tokens * tokens / (2.0 * prompts), tokens)

    def chunk(self, tokens: int, context: int) -> float:
        return self._pass(tokens, 1) + self._attention(tokens * (tokens / 2.0 + context), tokens + context)

    def decode(self, batch: int, per_sequence: int) -> float:
        context = batch * per_sequence
        return self._pass(batch, batch) + self._attention(context, context)

    def mixed(self, tokens: int, context: int, batch: int, per_sequence: int) -> float:
        prompt = self._attention(tokens * (tokens / 2.0 + context), tokens + context)
        return self._pass(tokens + batch, batch + 1) + prompt + self._attention(*2 * (batch * per_sequence,))
