"""What an LLM engine's memory and settings allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import BadInput


@dataclass(frozen=True)
class EngineLimits:
    """What an engine's memory and settings allow; none of it is the policy's to change.

    *blocks* of *block_size* tokens hold the KV of all running requests. A waiting request is admitted only if at
    least ``int(watermark * blocks)`` blocks stay free after it. A step computes *max_batched_tokens* tokens at most,
    and *max_sequences* requests run at most. A decoding request goes on only if *headroom* blocks are free when its
    turn comes, whether it needs one or not (vLLM 0.5.4: 1, its V1 engine: 0). When memory runs out, *preemption*
    frees that of the last of the running by forgetting it ("recompute") or by moving it to the host ("swap"). With
    *stamp* "sent" a request has arrived when the client sent it; with "seen", when the engine next looked at its
    queue, which is between two steps (NeuStream's serving loop stamps it then, so that the wait before that is free
    of charge). With *whole_prompt* a chunk is admitted only if there is memory for all of its prompt (vLLM V1). With
    *keep_freed* a preempted request that comes back finds of its blocks what nobody took meanwhile, as vLLM's prefix
    cache does it (`servetwin.core.llm.serving.freed_blocks`); blocks are not shared among requests. With
    *enable_prefix_caching* they are: vLLM's prefix cache whole (`servetwin.core.llm.prefix_cache`). With
    *num_speculative_tokens* so many drafts are verified of each that decodes (`servetwin.core.llm.speculation`). With
    *host_blocks* the prefix cache has so many more in host memory (`servetwin.core.llm.host_tier`). With
    *max_loras* the requests that run have so many *adapters* at most, of which each class has one
    (`servetwin.core.llm.serving.adapter_engine`). With *pipeline_parallel_size* stages as many steps are in flight
    (`servetwin.core.llm.serving.pipeline_engine`).
    """

    blocks: int
    block_size: int = 16
    watermark: float = 0.0
    max_batched_tokens: int = 8192
    max_sequences: int = 256
    headroom: int = 0
    preemption: Literal["recompute", "swap"] = "recompute"
    stamp: Literal["sent", "seen"] = "sent"
    whole_prompt: bool = False
    keep_freed: bool = False
    enable_prefix_caching: bool = False
    num_speculative_tokens: int = 0
    host_blocks: int = 0
    max_loras: int = 0
    adapters: tuple[tuple[str, str], ...] = ()
    pipeline_parallel_size: int = 1

    def __post_init__(self) -> None:
        for name in ("blocks", "block_size", "max_batched_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}", right="1 or more")
        if not 0.0 <= self.watermark < 1.0:
            raise BadInput(f"watermark is {self.watermark}", right="a share of the blocks, from 0 to below 1")
        if self.headroom < 0:
            raise BadInput(f"headroom is {self.headroom}", right="0 or more blocks")
        if self.preemption not in ("recompute", "swap"):
            raise BadInput(f"preemption is {self.preemption!r}", right="'recompute' or 'swap'")
        if self.keep_freed and self.preemption == "swap":
            raise BadInput("keep_freed is for blocks that are forgotten", right="preemption: recompute")
        if self.enable_prefix_caching and self.preemption == "swap":
            raise BadInput("enable_prefix_caching is for blocks that are forgotten", right="preemption: recompute")
        if self.enable_prefix_caching and self.keep_freed:
            raise BadInput("enable_prefix_caching does what keep_freed does, and more", right="one of them")
        if self.host_blocks < 0 or (self.host_blocks and not self.enable_prefix_caching):
            raise BadInput(f"host_blocks is {self.host_blocks}", right="0, or 1 or more with enable_prefix_caching")
        self._check_speculation()
        self._check_adapters()
        self._check_stages()
        if self.stamp not in ("sent", "seen"):
            raise BadInput(f"stamp is {self.stamp!r}", right="'sent' or 'seen'")

    def _check_speculation(self) -> None:
        if self.num_speculative_tokens < 0:
            raise BadInput(f"num_speculative_tokens is {self.num_speculative_tokens}", right="0 or more")
        if self.num_speculative_tokens:
            others = {"headroom": self.headroom > 0, "host_blocks": self.host_blocks > 0}
            self._check_alone("where tokens are drafted", others)

    def _check_adapters(self) -> None:
        if self.max_loras < 0 or (self.adapters and not self.max_loras):
            raise BadInput(f"max_loras is {self.max_loras}", right="1 or more, for adapters")
        if self.max_loras:
            self._check_alone("with adapters", {"host_blocks": self.host_blocks > 0})

    def _check_stages(self) -> None:
        if self.pipeline_parallel_size < 1:
            raise BadInput(f"pipeline_parallel_size is {self.pipeline_parallel_size}", right="1 or more")
        if self.pipeline_parallel_size > 1:
            others = {
                "num_speculative_tokens": self.num_speculative_tokens > 0,
                "max_loras": self.max_loras > 0,
                "host_blocks": self.host_blocks > 0,
            }
            self._check_alone("in a pipeline", others)

    def _check_alone(self, place: str, others: Mapping[str, bool]) -> None:
        """Raise `BadInput` if an option is set of which nobody knows what it does in that *place*: one of *others*,
        or one that is like it."""
        swaps = self.preemption == "swap"
        options = {"keep_freed": self.keep_freed, "preemption: swap": swaps, **others}
        if with_it := [name for name, set_ in options.items() if set_]:
            raise BadInput(f"what {with_it[0]} does {place} is not known", right="one of them")

    @property
    def tokens_per_decode(self) -> int:
        """The tokens of a step that each sequence takes which decodes: one, and its drafts."""
        return 1 + self.num_speculative_tokens

    @property
    def reserve(self) -> int:
        """The blocks that an admission must leave free."""
        return int(self.watermark * self.blocks)

    @property
    def passes_over(self) -> bool:
        """Whether the engine passes over some who wait, behind whom preempted ones may then stand."""
        return self.max_loras > 0 or self.pipeline_parallel_size > 1
