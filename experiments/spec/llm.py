"""What an experiment file says of language models: lengths of prompts and outputs, deadlines of tokens, engines.

Lengths are in tokens. See docs/guides/language-models.md.
"""

import itertools
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field

from .keys.field_types import Count, NotNegative, Positive, Strict


class ConstantTokens(Strict):
    """The same for every request."""

    draw: Literal["constant"]
    tokens: Count


class UniformTokens(Strict):
    """Any whole number from *low* to *high*, both included, equally likely."""

    draw: Literal["uniform"]
    low: Count
    high: Count


class ChoiceTokens(Strict):
    """One of *values*, with probabilities proportional to *weights* (equal if left out)."""

    draw: Literal["choice"]
    values: Annotated[list[Count], Field(min_length=1)]
    weights: list[NotNegative] | None = None


class LognormalTokens(Strict):
    """Lognormal with this *median* and 90th percentile *p90*, rounded, and cut to *low* and *high*."""

    draw: Literal["lognormal"]
    median: Positive
    p90: Positive
    low: Count = 1
    high: Count


class ListedTokens(Strict):
    """The values of a list that comes with ServeTwin, in its order, repeated as needed."""

    draw: Literal["listed"]
    name: str


class TraceTokens(Strict):
    """What the trace file says."""

    draw: Literal["trace"]


TokenDraw = Annotated[
    ConstantTokens | UniformTokens | ChoiceTokens | LognormalTokens | ListedTokens | TraceTokens,
    Discriminator("draw"),
]


def longest_of(draw: TokenDraw) -> int | None:
    """The most tokens that *draw* can give; None if only a list or a trace knows."""
    if isinstance(draw, ConstantTokens):
        return draw.tokens
    if isinstance(draw, UniformTokens | LognormalTokens):
        return draw.high
    return max(draw.values) if isinstance(draw, ChoiceTokens) else None


class ExactPrediction(Strict):
    """The true number of output tokens: an oracle, which no real system has. Results say so."""

    model: Literal["exact"]


class NoisyPrediction(Strict):
    """The true number times a lognormal error with median 1 and standard deviation *sigma* of its logarithm."""

    model: Literal["noisy"]
    sigma: Positive


class BucketPrediction(Strict):
    """What a classifier of lengths says: the upper end of the bucket that the true number is in.

    Buckets end at *edges* (tokens; the last one at the declared limit), or, with *quantiles* n, hold an n-th of all
    outputs each. The right one is found with probability *accuracy*, else any other, all equally likely.
    """

    model: Literal["buckets"]
    edges: Annotated[list[Count], Field(min_length=1)] | None = None
    quantiles: Annotated[int, Field(ge=2, le=1000)] | None = None
    accuracy: Annotated[float, Field(gt=0, le=1)] = 1.0


Prediction = Annotated[ExactPrediction | NoisyPrediction | BucketPrediction, Discriminator("model")]


class SharedPrefix(Strict):
    """Prompts of *groups* groups, each as likely as any other; those of one group begin with the same *tokens* tokens
    (a system prompt, say), which count as part of the prompt. A shorter prompt is the beginning of them, and runs say
    how many are; if no prompt can be as long, that is an error. In sessions they come before the first prompt."""

    draw: Literal["shared"]
    groups: Count = 1
    tokens: Count


class TracePrefix(Strict):
    """What the trace says of the contents of prompts: the ``hash_ids`` of Mooncake's traces, of 512 tokens each."""

    draw: Literal["trace"]


PrefixDraw = Annotated[SharedPrefix | TracePrefix, Discriminator("draw")]


class Lengths(Strict):
    """Tokens of a request at an LLM module: its *prompt* and the *output* that it will really generate.

    *limit* is the most that it declares, which is what policies see; by default the most that *output*
    can be. A prompt that leaves no room in the engine's context is an error, and so is an output that is longer than
    the limit or than the room that its prompt leaves; with *truncate* they are cut, and the summary says how many.

    *predict*: policies are shown a predicted number of output tokens, which is wrong as that says; without it, none.

    With *after* the prompt is that many tokens and what the request generated at the LLM module of that name before.

    *prefix*: what prompts begin with, for engines with a prefix cache; without it no two begin alike. A prompt that
    is cut loses its last tokens.
    """

    prompt: TokenDraw
    output: TokenDraw
    limit: Count | None = None
    truncate: bool = False
    after: str | None = None
    predict: Prediction | None = None
    prefix: PrefixDraw | None = None


class Limits(Strict):
    """Limits in milliseconds, as ``vllm bench serve --goodput`` takes them; *itl_ms* bounds the longest gap."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    itl_ms: Positive | None = None
    e2el_ms: Positive | None = None


class Window(Strict):
    """When goodput is counted in the NeuStream artifact's multi-agent experiments: from *skip* seconds after the
    first request came to a worker on, for as long as *requests* requests take to arrive at the nominal rate."""

    skip: NotNegative = 30.0
    requests: Count = 300


class Preparing(Strict):
    """Seconds for which an engine stands still for each prompt before it computes it: to prepare an image and run a
    vision tower, say. *source* says where the number comes from."""

    seconds: NotNegative
    source: Annotated[str, Field(min_length=1)]


class TokenSLOSpec(Strict):
    """NeuStream's deadlines of tokens, limits per request, or both.

    Token j is due *prefill* times the prefill alone and *decode* times j - 1 decode steps alone after the arrival. A
    request is met if *meets* "all" its tokens, or the "last", came in time; if there are only *limits*, if it keeps
    those. *base* is the kind of latency model that "alone" is taken from. *window*: goodput is also counted there.
    """

    prefill: Positive | None = None
    decode: Positive | None = None
    meets: Literal["all", "last"] = "all"
    base: Literal["scheduler", "measured", "corrected"] = "scheduler"
    limits: Limits | None = None
    window: Window | None = None


class Fp8Attention(Strict):
    """What the part of a step's time that grows with the tokens whose keys and values stood before it takes with
    these in 8 bits, over what it takes in the profile: for sequences that *decode*, and for chunks of prompts
    (*prefill*). *source* says where the numbers come from."""

    decode: Positive
    prefill: Positive
    source: Annotated[str, Field(min_length=1)]


class KVOffloading(Strict):
    """KV blocks in host memory, *gib* GiB of it: all that is computed is copied there, and what a prompt finds there
    and not on the device is brought back, at *gb_per_s* (10^9 bytes a second) after *latency* seconds, of which
    *source* says where they come from; without *gb_per_s* in the time that the profile says (its cost `kv.swap`)."""

    gib: Annotated[float, Field(gt=0, le=1e6)]
    gb_per_s: Annotated[float, Field(ge=1e-3, allow_inf_nan=False)] | None = None
    latency: Annotated[float, Field(ge=0, le=60)] = 0.0
    source: Annotated[str, Field(min_length=1)] | None = None


class Adapters(Strict):
    """LoRA adapters: requests of a class have that of *adapters* (class -> adapter), others none. Those that run have
    *max_loras* of them at most, and as many are on the device; bringing one there takes *load_seconds*, and each step
    takes *slowdown* times as long as the model's alone, of which *source* says where they come from; what it leaves
    out the profile says (its costs `lora.load` and `lora.slowdown`)."""

    max_loras: Count
    adapters: Annotated[dict[str, str], Field(min_length=1)]
    load_seconds: Annotated[float, Field(ge=0, le=3600)] | None = None
    slowdown: Annotated[float, Field(ge=0.1, le=100)] | None = None
    source: Annotated[str, Field(min_length=1)] | None = None


class PipelineParallel(Strict):
    """The model's layers on several devices, one group after the other: *pipeline_parallel_size* stages, with so many
    *layers* each (left out: as vLLM divides them), of which each takes that share of a step's time in the profile.
    Sending a step's activations from one stage to the next takes *hop_seconds*, and *hop_seconds_each* for every
    token, of which *source* says where they come from; without *hop_seconds* the profile does (its cost
    `pipeline.hop`)."""

    pipeline_parallel_size: Annotated[int, Field(ge=2, le=64)]
    layers: Annotated[list[Count], Field(min_length=2)] | None = None
    hop_seconds: Annotated[float, Field(ge=0, le=60)] | None = None
    hop_seconds_each: Annotated[float, Field(ge=0, le=1)] = 0.0
    source: Annotated[str, Field(min_length=1)] | None = None


Probability = Annotated[float, Field(ge=0, le=1)]


class Draft(Strict):
    """What making the drafts of a step takes: *seconds* of it, and *seconds_each* for every sequence that decodes in
    it, of which *source* says where they come from; or what a model takes whose profile is that of *device* (one of
    the deployment's devices, which no worker needs to have)."""

    seconds: NotNegative | None = None
    seconds_each: NotNegative = 0.0
    source: Annotated[str, Field(min_length=1)] | None = None
    device: str | None = None


class SpeculativeConfig(Strict):
    """Speculative decoding: in each step *num_speculative_tokens* drafts are verified of each sequence that decodes.

    *method*: drafts are looked up in what was said ("ngram"), or come from a model of their own ("draft_model") or a
    head on this one ("eagle"); with the latter two memory is kept for as many tokens more. The draft at each position
    is accepted, if all before it were, with the probability *acceptance* (one for all, or a list); or
    *synthetic_acceptance_rates* says which share of all steps accept it, as vLLM's metrics do. *source* says where
    that comes from. *draft* is what making drafts takes, or else the profile says (its cost `speculation.draft`).
    """

    method: Literal["ngram", "draft_model", "eagle"]
    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)]
    acceptance: Probability | list[Probability] | None = None
    synthetic_acceptance_rates: list[Probability] | None = None
    source: Annotated[str, Field(min_length=1)]
    draft: Draft | None = None

    @property
    def probabilities(self) -> tuple[float, ...]:
        """With which probability the draft at each position is accepted, if all before it were."""
        count, rates = self.num_speculative_tokens, self.synthetic_acceptance_rates
        if rates is not None:
            return tuple(b / a if a else 0.0 for a, b in itertools.pairwise([1.0, *rates]))
        given = self.acceptance
        return tuple(given) if isinstance(given, list) else (given or 0.0,) * count


class EngineSpec(Strict):
    """Limits of an LLM engine; what is left out is as the profile says.

    *blocks* KV blocks of *block_size* tokens; an admission leaves a share *watermark* of them free; a decoding
    request goes on only if *headroom* blocks are free (vLLM 0.5.4: 1, its V1 engine: 0). When memory runs out,
    *preemption* is by "recompute" or "swap". With *stamp* "seen" a request arrives, for its SLO, when the engine next
    looks at its queue, between two steps; with "sent", when the client sent it. *preparing* comes before each prompt.
    With *whole_prompt* a chunk is admitted only if there is memory for all of its prompt (vLLM V1). *asynchronous*: a
    step is decided while the one before it runs (vLLM's asynchronous scheduling). With *keep_freed* a preempted
    request that comes back finds of its blocks what nobody took meanwhile (vLLM's prefix cache, where no two prompts
    begin alike). With *enable_prefix_caching* prompts that begin alike share blocks as well (vLLM's prefix cache,
    which vLLM has on by default), as far as the workload says what they begin with. With *kv_cache_dtype* "fp8" keys
    and values take half the memory, and attention to them what *fp8_attention* says, or else the profile (its costs
    `kv.fp8.decode` and `kv.fp8.prefill`). *speculative_config*: a step gives a sequence several tokens.
    *kv_offloading*: the prefix cache goes on in host memory. *lora*: classes of requests have adapters.
    *pipeline_parallel*: the model's layers stand on several devices.
    """

    blocks: Count | None = None
    block_size: Count | None = None
    watermark: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_batched_tokens: Count | None = None
    max_model_len: Count | None = None
    headroom: Annotated[int, Field(ge=0)] = 0
    preemption: Literal["recompute", "swap"] = "recompute"
    stamp: Literal["sent", "seen"] = "sent"
    whole_prompt: bool = False
    keep_freed: bool = False
    enable_prefix_caching: bool = False
    asynchronous: bool | None = None
    preparing: Preparing | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    fp8_attention: Fp8Attention | None = None
    speculative_config: SpeculativeConfig | None = None
    kv_offloading: KVOffloading | None = None
    lora: Adapters | None = None
    pipeline_parallel: PipelineParallel | None = None

    @property
    def options(self) -> list[str]:
        """Those of `OPTIONS` that it asks for."""
        fields = type(self).model_fields
        return [key for key in OPTIONS if getattr(self, key) != fields[key].default]


#: Keys of an engine that files say nothing of where they are not asked for (docs/guides/engine-options.md).
OPTIONS = ("kv_cache_dtype", "fp8_attention", "speculative_config", "kv_offloading", "lora", "pipeline_parallel")


def drop_options(engine: dict[str, Any] | None) -> None:
    """Take the keys of `OPTIONS` that are as usual out of what is written of an *engine*: files from before there
    were such say the same."""
    for key in OPTIONS if engine is not None else ():
        if engine is not None and engine[key] == EngineSpec.model_fields[key].default:
            del engine[key]
