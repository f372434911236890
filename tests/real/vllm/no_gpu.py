"""vLLM's scheduler without a model: its real code, fed with synthetic tokens on a clock of our own."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from vllm import SamplingParams
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    KVTransferConfig,
    LoRAConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

#: What names blocks in the prefix cache; without the cache nobody asks.
init_none_hash(sha256)
HASHERS = {size: get_request_block_hasher(size, sha256) for size in (16, 32)}

#: Tokens of requests' own: nobody else's prompt or output has the same.
OWN = 1 << 20

#: A model of two layers; only its shape is ever read here.
TINY = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "activation_function": "relu",
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "enable_bias": True,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "layerdrop": 0.0,
}


class Asked(NamedTuple):
    """A request of a trace: seconds, tokens. Its prompt begins with the contents that *ids* name, of *size* tokens
    each, as `servetwin.core.llm.PromptContent` says it; the rest is its own."""

    id: int
    arrival: float
    prompt: int
    output: int
    ids: tuple[int, ...] = ()
    size: int = 1
    adapter: int = 0  # number of its LoRA adapter, if it has one


class Made(NamedTuple):
    """A step as vLLM's scheduler made it: (id, tokens, context before) in its order, those who decode by id."""

    prefill: tuple[tuple[int, int, int], ...]
    decode: tuple[int, ...]
    context: int
    preempted: tuple[int, ...]


def model_folder(folder: Path) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(TINY))
    return str(folder)


def scheduler(
    folder: str,
    *,
    blocks: int = 1000,
    max_sequences: int = 64,
    max_batched_tokens: int = 2048,
    asynchronous: bool = False,
    caching: bool = False,
    block_size: int = 16,
    settings: dict[str, Any] | None = None,
    cls: Callable[..., Any] | None = None,
    max_loras: int = 0,
    drafts: int = 0,
    method: str = "ngram",
    stages: int = 1,
    connector: str | None = None,
) -> Any:
    """vLLM's scheduler, or *cls*, with that many usable KV blocks; with *caching* it has its prefix cache, with
    *max_loras* LoRA adapters, with *drafts* so many of them a step by that *method*, with its layers in so many
    *stages*, and with that KV *connector*, by its scheduler's side alone."""
    speculates: dict[str, Any] = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_max": 2}
    cache = CacheConfig(block_size=block_size, enable_prefix_caching=caching)
    config = VllmConfig(
        model_config=ModelConfig(model=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=2048),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_sequences,
            max_num_batched_tokens=max_batched_tokens,
            max_model_len=2048,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            async_scheduling=asynchronous,
        ),
        cache_config=cache,
        device_config=DeviceConfig(device="cpu"),
        additional_config={"servetwin": settings or {}},
        lora_config=LoRAConfig(max_loras=max_loras, max_cpu_loras=99) if max_loras else None,
        speculative_config=SpeculativeConfig(**speculates) if drafts else None,
        kv_transfer_config=KVTransferConfig(kv_connector=connector, kv_role="kv_both") if connector else None,
    )
    if drafts:
        config.speculative_config.method = method  # whose model the scheduler does not look at
    config.parallel_config.pipeline_parallel_size = stages
    cache.num_gpu_blocks = blocks + 1  # vLLM keeps one for itself
    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    memory = KVCacheConfig(
        num_blocks=blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    # The configuration gives asynchronous scheduling up on a CPU; the scheduler itself does not mind.
    config.scheduler_config.async_scheduling = asynchronous
    made = cls or (AsyncScheduler if asynchronous else Scheduler)
    return made(
        vllm_config=config,
        kv_cache_config=memory,
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        log_stats=False,
    )


def prompt_of(asked: Asked) -> list[int]:
    """Its tokens: each of a named content by that name and its place, then its own."""
    named = [token for i in asked.ids for token in [100 + i] * asked.size][: asked.prompt]
    return named + [OWN + asked.id] * (asked.prompt - len(named))


def vllm_request(asked: Asked, limit: int | None = None, block_size: int = 16) -> Request:
    extra = {"servetwin": {"id": asked.id, "limit": limit or asked.output, "arrival": asked.arrival}}
    return Request(
        request_id=str(asked.id),
        prompt_token_ids=prompt_of(asked),
        sampling_params=SamplingParams(max_tokens=asked.output, ignore_eos=True, extra_args=extra),
        pooling_params=None,
        arrival_time=asked.arrival,
        block_hasher=HASHERS[block_size],
        lora_request=LoRARequest(f"adapter {a}", a, "nowhere") if (a := asked.adapter) else None,
    )


def replay(
    scheduler: Any,
    trace: Iterable[Asked],
    seconds: Callable[[Made], float],
    *,
    clock: Callable[[float], None] | None = None,
    limit: int | None = None,
) -> tuple[list[Made], dict[int, list[float]], list[float]]:
    """Play *trace* with steps that take *seconds*: the steps, each request's token times, the steps' ends."""
    left = list(reversed(list(trace)))
    now = 0.0
    steps: list[Made] = []
    times: dict[int, list[float]] = {}
    ends: list[float] = []
    while left or scheduler.has_requests():
        while left and left[-1].arrival <= now:
            asked = left.pop()
            times[asked.id] = []
            scheduler.add_request(vllm_request(asked, limit, scheduler.block_size))
        if not scheduler.requests:
            if not left:
                break
            now = left[-1].arrival
            continue
        if clock is not None:
            clock(now)
        before = _before(scheduler)
        output = scheduler.schedule()
        made = _made(scheduler, output, before)
        if made.prefill or made.decode:
            steps.append(made)
            now += seconds(made)
            ends.append(now)
        elif left:
            now = left[-1].arrival
        if clock is not None:
            clock(now)
        for out in scheduler.update_from_output(output, _tokens(scheduler, output)).values():
            for one in out.outputs:
                times[int(one.request_id)] += [now] * len(one.new_token_ids)
    return steps, times, ends


def replay_ahead(
    scheduler: Any,
    trace: Iterable[Asked],
    seconds: Callable[[Made], float],
    *,
    between: float = 0.0,
    intake: float = 0.0,
    begins: float = 0.0,
    clock: Callable[[float], None] | None = None,
    limit: int | None = None,
    shares: tuple[float, ...] = (1.0,),
) -> tuple[list[Made], dict[int, list[float]], list[float]]:
    """Likewise, as vLLM's engine core does with asynchronous scheduling (``step_with_batch_queue``): two steps in
    flight at most. With several *shares* they are those of a step's time that its stages take, one after the other,
    and as many steps are in flight as there are. The device begins a step *begins* seconds after it was scheduled,
    and not before the last is over; handing on a step's outputs takes *between* seconds, taking a request in
    *intake*."""
    left = list(reversed(list(trace)))
    now = 0.0  # the host's time
    steps: list[Made] = []
    times: dict[int, list[float]] = {}
    ends: list[float] = []
    queue: deque[tuple[Any, ModelRunnerOutput, float, int]] = deque()
    depth, free = max(2, len(shares)), [0.0] * len(shares)
    lost: tuple[int, ...] = ()  # who was preempted for a step of which nothing came

    def take_in() -> None:
        """All that has come until the host looks, and what comes while it takes that in."""
        nonlocal now
        while left and left[-1].arrival <= now:
            here = now
            while left and left[-1].arrival <= here:
                asked = left.pop()
                times[asked.id] = []
                scheduler.add_request(vllm_request(asked, limit, scheduler.block_size))
                now += intake

    while left or scheduler.has_requests() or queue:
        take_in()
        if not scheduler.requests and not queue:
            if not left:
                break
            now = left[-1].arrival
            continue
        # One call of the core's step.
        if scheduler.has_requests():
            if clock is not None:
                clock(now)
            before = _before(scheduler)
            output = scheduler.schedule()
            made = _made(scheduler, output, before)
            tokens = _tokens(scheduler, output)  # now: later the scheduler is ahead
            end = now
            lost += made.preempted
            if made.prefill or made.decode:
                steps.append(made._replace(preempted=lost))
                lost = ()
                end = now + begins
                for stage, share in enumerate(shares):
                    end = free[stage] = max(free[stage], end) + share * seconds(made)
                ends.append(end)
                now += begins
            queue.appendleft((output, tokens, end, len(made.prefill) + len(made.decode)))
            if len(queue) < depth and scheduler.has_requests():
                if not (made.prefill or made.decode) and left and len(queue) == 1:
                    now = max(now, left[-1].arrival)  # nothing to do before somebody comes
                continue
        output, tokens, end, size = queue.pop()
        now = max(now, end)
        if clock is not None:
            clock(end)
        for out in scheduler.update_from_output(output, tokens).values():
            for one in out.outputs:
                times[int(one.request_id)] += [end] * len(one.new_token_ids)
        if size:
            now += between
    return steps, times, ends


def _before(scheduler: Any) -> dict[str, tuple[int, bool]]:
    """Of each request how often it was preempted, and whether it runs."""
    running = {request.request_id for request in scheduler.running}
    return {r: (q.num_preemptions, r in running) for r, q in scheduler.requests.items()}


def _made(scheduler: Any, output: Any, before: dict[str, tuple[int, bool]]) -> Made:
    prefill, decode, context = [], [], 0
    for rid, tokens in output.num_scheduled_tokens.items():
        request = scheduler.requests[rid]
        computed = request.num_computed_tokens - tokens
        known = request.num_output_tokens + request.num_output_placeholders
        # (One that comes back and finds all but its last token in the cache computes one token too.)
        if tokens == 1 and computed >= request.num_prompt_tokens and known and before[rid][1]:
            decode.append(int(rid))
            context += computed
        else:
            prefill.append((int(rid), tokens, computed))
    lost = tuple(
        int(r)
        for r, (n, _) in before.items()
        if r in scheduler.requests and scheduler.requests[r].num_preemptions > n
    )
    return Made(tuple(prefill), tuple(decode), context, lost)


def _tokens(scheduler: Any, output: Any) -> ModelRunnerOutput:
    """A token for each request whose pending tokens are all computed with this step."""
    ids = list(output.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={r: i for i, r in enumerate(ids)},
        sampled_token_ids=[[] if scheduler.requests[r].is_prefill_chunk else [OWN + int(r)] for r in ids],
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )
