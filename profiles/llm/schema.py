"""What a profile file may say about a language model: prefill and decode, in seconds by tokens."""

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, model_validator

from ..tables.field_types import Finite, Natural, NotNegative, Positive, Source, Strict, Text
from .architectures import Architecture, architecture, kv_blocks
from .step_grids import Beside, OverContext

TokenKind = Literal["scheduler", "measured", "corrected"]
#: By what simulated time goes by (`TimeOptions.table`), the kinds whose times are taken, the first that there is.
KINDS_OF_TABLE: dict[str, tuple[TokenKind, ...]] = {
    "scheduler": ("scheduler",),
    "measured": ("measured", "scheduler"),
    "corrected": ("corrected", "measured", "scheduler"),
}
#: What each kind of latency model is.
TOKEN_KINDS: dict[TokenKind, str] = {
    "scheduler": "what the scheduler of the measured system planned with",
    "measured": "what steps took",
    "corrected": "what steps took, with a correction by those who measured them for what they had not measured",
}

Between = Literal["up", "line"]


def _increasing(values: tuple[float, ...], what: str) -> None:
    if not values:
        raise ValueError(f"no {what}")
    for a, b in itertools.pairwise(values):
        if a >= b:
            raise ValueError(f"{what} must increase, but {b:g} follows {a:g}")


class Polynomial(Strict):
    """Seconds of a prefill step of several prompts: c0 + c1 sum(length) + c2 sum(length^2).

    *until* is the largest sum of lengths for which it may be asked, which may lie beyond what was measured.
    """

    c0: Finite
    c1: Finite
    c2: Finite
    until: Natural
    statistic: Text
    source: Source
    note: Text | None = None

    def __call__(self, tokens: float, squares: float) -> float:
        return self.c0 + self.c1 * tokens + self.c2 * squares


class PrefillData(Strict):
    """Seconds of a prefill step by the *tokens* computed in it (over all its prompts), a row per entry of *prompts*.

    With *between* "up" a value holds for all totals down to the entry before: measured steps are a staircase, since a
    GPU computes whole tiles. With "line", straight lines. A row for more prompts than tokens begins with nulls.
    *beyond* tells what larger totals take, *per_pair* the seconds for each pair of a computed token and a token whose
    keys and values were there already (chunks of a long prompt); by default twice c2, for a prompt of n tokens has
    n^2 / 2 pairs. *over_context* is a table of what chunks take for that, and goes before *per_pair*. With
    *per_square* there is one row, that of one prompt, and several prompts of as many tokens take that less
    *per_square* seconds for each square that the sum of their squared lengths is short of the square of the sum.
    """

    tokens: tuple[Natural, ...]
    prompts: tuple[Natural, ...] = (1,)
    seconds: tuple[tuple[Positive | None, ...], ...]
    between: Between
    statistic: Text
    source: Source
    note: Text | None = None
    samples: Natural | None = None
    beyond: Polynomial | None = None
    per_pair: Finite | None = None
    over_context: OverContext | None = None
    per_square: NotNegative | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.per_square is not None and len(self.prompts) > 1:
            raise ValueError("per_square says what several prompts take, and there are rows for that")
        if self.over_context is not None and self.per_pair is not None:
            raise ValueError("per_pair and over_context say the same, and there are both")
        _increasing(self.tokens, "tokens")
        _increasing(self.prompts, "prompts")
        if self.prompts[0] != 1:
            raise ValueError("the first row must be that of one prompt")
        if len(self.seconds) != len(self.prompts):
            raise ValueError(f"{len(self.prompts)} numbers of prompts but {len(self.seconds)} rows of seconds")
        for n, row in zip(self.prompts, self.seconds, strict=True):
            if len(row) != len(self.tokens):
                raise ValueError(f"{len(self.tokens)} numbers of tokens but {len(row)} seconds for {n} prompts")
            known = [value is not None for value in row]
            if not known[-1] or known != sorted(known) or (n == 1 and not known[0]):
                raise ValueError(f"the row for {n} prompts has a gap that is not at its begin, or nothing at its end")
        if self.beyond is not None and self.beyond.until <= self.tokens[-1]:
            raise ValueError(f"beyond ends at {self.beyond.until}, where the table still reaches")
        return self


class Offset(Strict):
    """Seconds to *add* where the line says *above* so many seconds, or more."""

    above: Positive
    add: Positive


class DecodeLine(Strict):
    """Seconds of a decode step: d0 + d1 x context tokens of the batch (+ *per_sequence* x batch size). The context is
    the tokens whose keys and values stand before the step.

    *until_batch* and *until_context* bound what may be asked, which may lie beyond what was measured.
    """

    d0: Positive
    d1: Finite
    per_sequence: Finite = 0.0
    offsets: tuple[Offset, ...] = ()
    until_batch: Natural
    until_context: Natural
    statistic: Text
    source: Source
    note: Text | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.offsets:
            _increasing(tuple(o.above for o in self.offsets), "offsets")
            _increasing(tuple(o.add for o in self.offsets), "offsets' additions")
            if self.d1 <= 0:
                raise ValueError("offsets need a line that rises")
        return self


class DecodeSurface(Strict):
    """Seconds of a decode step by *batch* size (a row each) and context tokens *per_sequence*.

    Rows may end early where the memory for keys and values did. Between batch sizes the values lie on straight lines,
    or with *between* "up" a batch takes what the next measured size takes (an engine that pads batches to the sizes
    of its CUDA graphs; measure those). Between contexts and beyond a row's ends its lines go on, up to
    *until_context* tokens in all (by default as far as the rows beside reach). What falls with the batch is read by
    the rule of `servetwin.profiles.llm.decode_surface`.
    """

    batch: tuple[Natural, ...]
    per_sequence: tuple[Natural, ...]
    seconds: tuple[tuple[Positive, ...], ...]
    between: Between = "line"
    until_context: Natural | None = None
    statistic: Text
    source: Source
    note: Text | None = None
    samples: Natural | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _increasing(self.batch, "batch sizes")
        _increasing(self.per_sequence, "contexts per sequence")
        if len(self.seconds) != len(self.batch):
            raise ValueError(f"{len(self.batch)} batch sizes but {len(self.seconds)} rows of seconds")
        for n, row in zip(self.batch, self.seconds, strict=True):
            if not 1 <= len(row) <= len(self.per_sequence):
                raise ValueError(f"{len(self.per_sequence)} contexts but {len(row)} seconds for a batch of {n}")
        return self


class Decoding(Strict):
    """What sequences that decode add to the pass of a step that computes prompts: *per_sequence* seconds for each,
    and *per_context* for each token of context that they have, by how long the chunks beside them are (*tokens*, the
    sum of their squared lengths over their sum, between on straight lines by its logarithm): kernels for prompts
    compute whole tiles, of a size that follows the longest. *per_both* is for each token of context times the number
    of sequences: many of them compete for the memory."""

    tokens: tuple[Natural, ...]
    per_sequence: tuple[NotNegative, ...]
    per_context: tuple[NotNegative, ...]
    per_both: NotNegative = 0.0

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _increasing(self.tokens, "tokens")
        for name in ("per_sequence", "per_context"):
            if len(getattr(self, name)) != len(self.tokens):
                raise ValueError(f"{len(self.tokens)} lengths of chunks but {len(getattr(self, name))} {name}")
        return self


class Mixed(Strict):
    """How long a step takes that computes prompts and decodes at once.

    "one_pass": all its tokens go through the weights together and decoding adds its attention: prefill of (tokens +
    batch) plus decode of the batch less decode of the batch without context; never less than the decode step alone.
    "sum": a prefill step and a decode step, one after the other. *factor* is the measured ratio to that. With
    *attention* (one_pass only) the factor is that of the pass alone, and what decoding adds takes so many times as
    long as in a step of its own: kernels for prompts of any lengths serve single tokens less well. *per_sequence*
    (one_pass only) is what each sequence that decodes adds in seconds, however long it is: such kernels treat it as a
    prompt. *beside* (one_pass only) is a table of all that sequences that decode add to the pass, and goes before
    *attention* and *per_sequence*; *decoding* (one_pass only) says the same by a formula.
    """

    rule: Literal["one_pass", "sum"] = "one_pass"
    factor: Positive = 1.0
    attention: NotNegative | None = None
    per_sequence: NotNegative = 0.0
    beside: Beside | None = None
    decoding: Decoding | None = None
    source: Source | None = None
    note: Text | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.beside is not None and (self.rule == "sum" or self.attention is not None or self.per_sequence):
            raise ValueError(
                "beside is all that decoding adds to one pass: no sum, attention or per_sequence with it"
            )
        own = self.attention is not None or self.per_sequence or self.beside is not None
        if self.decoding is not None and (self.rule == "sum" or own):
            raise ValueError("decoding is all that it adds to one pass: no sum, attention, per_sequence or beside")
        if self.rule == "sum" and self.attention is not None:
            raise ValueError("attention is a part of one pass, and there are two")
        if self.rule == "sum" and self.per_sequence:
            raise ValueError("per_sequence is a part of one pass, and there are two")
        return self


class TokenModel(Strict):
    """Prefill, decode by one of *line* and *surface*, and their mixture."""

    prefill: PrefillData
    line: DecodeLine | None = None
    surface: DecodeSurface | None = None
    mixed: Mixed = Field(default_factory=Mixed)  # made when it is wanted: no run of diffusion models has one

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.line is None) == (self.surface is None):
            raise ValueError("decode is either a line or a surface")
        return self


class KVCache(Strict):
    """Paged memory for keys and values: *blocks* of *block_size* tokens, as the engine reported or as computed. With
    *memory_gib*, that of one device, they were computed from it (`architectures.kv_blocks`) and follow the settings
    of an engine that has others."""

    block_size: Natural = 16
    blocks: Natural
    memory_gib: Positive | None = None
    statistic: Text
    source: Source | None = None
    note: Text | None = None


class Engine(Strict):
    """The engine that was measured, and its limits."""

    name: Text
    max_batched_tokens: Natural
    max_sequences: Natural
    max_model_len: Natural
    gpu_memory_utilization: Annotated[Finite, Field(gt=0, le=1)]
    watermark: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    chunked_prefill: StrictBool = False
    cuda_graphs: StrictBool = True
    compiled: StrictBool | None = None  #: with torch.compile and the graphs that vLLM has by default
    graph_tokens: Natural | None = None  #: steps of more tokens are launched kernel by kernel; None: not known
    asynchronous: StrictBool = False  #: whether a step is decided while the one before it runs
    note: Text | None = None


class Solo(Strict):
    """What the k-th decode step of a sequence alone takes after a prompt of n tokens, d0 + d1 (n + k): what deadlines
    of tokens are multiples of."""

    d0: Positive
    d1: Finite
    statistic: Text
    source: Source


class BlindKind(Strict):
    """How far steps of a kind were off: *steps* of them, *median* and *p95* of the absolute errors, and the *bias*,
    the median of the errors themselves; shares of what the steps took."""

    steps: Natural
    median: NotNegative
    p95: NotNegative
    bias: Finite


class Blind(Strict):
    """What came of steps that the profile was not made of: requests at random, by *kinds* of steps."""

    kinds: dict[Text, BlindKind]
    statistic: Text
    source: Source | None = None
    note: Text | None = None


class DecodeRegion(Strict):
    """How far the table of decode steps is off where from *batch* to *batch* sequences decode with from *context* to
    *context* tokens each on average: *steps* of them, and the *bias*, the median of the errors as shares of what they
    took. *own* steps are those that the profile was made of; the others are traffic's."""

    batch: tuple[Natural, Natural]
    context: tuple[Natural, Natural]
    steps: Natural
    bias: Finite
    own: bool


class TokenData(Strict):
    """A language model on one device (or *tensor_parallel* of them together)."""

    architecture: Text  #: its name in ``models.yaml``
    shape: Architecture | None = None  #: where that does not hold it
    tensor_parallel: Natural = 1
    engine: Engine
    kv: KVCache
    step_includes: Text  #: from where to where a step was timed
    solo: Solo | None = None
    kinds: Annotated[dict[TokenKind, TokenModel], Field(min_length=1)]
    blind: Blind | None = None  #: the judgement on "measured"
    decode_regions: tuple[DecodeRegion, ...] = ()  #: likewise, on its table of decode steps, place by place

    def blocks(
        self,
        *,
        max_batched_tokens: int | None,
        max_sequences: int | None,
        block_size: int | None = None,
        fp8: bool = False,
    ) -> int:
        """KV blocks of *block_size* tokens of an engine with these settings (None: those of the profile). With *fp8*
        a token's keys and values take half as many bytes as in the profile: the same memory holds twice as many."""
        kv, engine = self.kv, self.engine
        size = block_size or kv.block_size
        asked = (max_batched_tokens or engine.max_batched_tokens, max_sequences or engine.max_sequences, size)
        if kv.memory_gib is None or asked == (engine.max_batched_tokens, engine.max_sequences, kv.block_size):
            return kv.blocks * kv.block_size * (2 if fp8 else 1) // size
        return kv_blocks(
            self.shape or architecture(self.architecture),
            memory_gib=kv.memory_gib,
            utilization=engine.gpu_memory_utilization,
            tensor_parallel=self.tensor_parallel,
            block_size=size,
            max_batched_tokens=asked[0],
            max_sequences=asked[1],
            kv_dtype_bytes=1 if fp8 else None,
        )
