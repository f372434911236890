"""vLLM's engine settings by vLLM's names, as `servetwin profile --vllm NAME=VALUE` takes them.

Left out, a setting is what vLLM has by default for its server, on a device with so much memory; but prefixes are
cached only where that is asked for (no two prompts that are measured begin alike: all are computed). What no engine
here has is refused by name (`vllm_options`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from servetwin.core import BadInput

from .vllm_options import NOT_PROFILED, UNMODELLED, of_vllm

#: GiB of memory from which vLLM takes a device to be a large one.
LARGE = 70.0
#: Tokens and sequences of a step by default, on a large device and on another.
DEFAULTS = {True: (8192, 1024), False: (2048, 256)}
#: The share of the memory that vLLM takes by default.
UTILIZATION = 0.92
DTYPES = ("auto", "float16", "bfloat16", "float32")


@dataclass(frozen=True)
class VllmSettings:
    """Under vLLM's names; None: vLLM's default."""

    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = UTILIZATION
    tensor_parallel_size: int = 1
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    dtype: str = "auto"
    enforce_eager: bool = False
    async_scheduling: bool | None = None
    enable_prefix_caching: bool = False
    seed: int = 0

    def sizes(self, memory_gib: float, name: str = "") -> tuple[int, int]:
        """Tokens and sequences of a step at most, on a device with so much memory and of that *name*."""
        tokens, sequences = DEFAULTS[memory_gib >= LARGE and "a100" not in name.lower()]
        tokens = self.max_num_batched_tokens or tokens
        return tokens, self.max_num_seqs or min(sequences, tokens)


#: Settings that may be given with the only value that an engine here has.
AS_IT_IS: dict[str, tuple[str, ...]] = {
    "enable_chunked_prefill": ("true",),
    "long_prefill_token_threshold": ("0",),
    "max_num_partial_prefills": ("1",),
    "max_long_partial_prefills": ("1",),
    "enable_lora": ("false",),
    "pipeline_parallel_size": ("1",),
    "data_parallel_size": ("1",),
    "enable_expert_parallel": ("false",),
    "decode_context_parallel_size": ("1",),
    "cpu_offload_gb": ("0",),
    "scheduling_policy": ("fcfs",),
}


def settings_of(given: Iterable[str]) -> VllmSettings:
    """What ``NAME=VALUE`` lines say; names may be written as vLLM's options are. Raises `BadInput` for a setting that
    is not vLLM's, or that no engine here has, naming it."""
    found: dict[str, Any] = {}
    for line in given:
        key, mark, value = line.partition("=")
        name = key.strip().lstrip("-").replace("-", "_")
        value = value.strip()
        if not mark:
            raise BadInput(f"{line!r} has no value", where="--vllm", right="NAME=VALUE, as in max_num_seqs=256")
        if value.lower() in AS_IT_IS.get(name, ()):
            continue
        if name in NOT_PROFILED:
            what = f"vLLM's {name} is not modelled where profiles are taken: {NOT_PROFILED[name]}"
            raise BadInput(what, where=f"--vllm {name}", right="an engine without it")
        if name in UNMODELLED and (wrong := of_vllm(name)):
            right = f"{name}={AS_IT_IS[name][0]}" if name in AS_IT_IS else wrong[1]
            raise BadInput(wrong[0], where=f"--vllm {name}", right=right)
        known = list(VllmSettings.__dataclass_fields__)
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            right = near[0] if near else f"one of {', '.join(known)}"
            raise BadInput(f"{name!r} is no setting that is modelled", where="--vllm", right=right)
        found[name] = _value(name, value)
    return replace(VllmSettings(), **found)


def _value(name: str, value: str) -> Any:
    if name == "dtype":
        if value not in DTYPES:
            raise BadInput(f"{value!r} is no dtype", where="--vllm dtype", right=f"one of {', '.join(DTYPES)}")
        return value
    if name in ("enforce_eager", "async_scheduling", "enable_prefix_caching"):
        if value.lower() not in ("true", "false"):
            raise BadInput(f"{value!r} is neither", where=f"--vllm {name}", right="true or false")
        return value.lower() == "true"
    if name == "gpu_memory_utilization":
        share = _number(name, value, float)
        if not 0.0 < share <= 1.0:
            raise BadInput(f"{value} is no share", where=f"--vllm {name}", right="above 0, 1 at most")
        return share
    number = _number(name, value, int)
    if number < (0 if name == "seed" else 1):
        raise BadInput(f"{value} is too small", where=f"--vllm {name}", right="1 or more")
    return number


def _number(name: str, value: str, kind: type[Any]) -> Any:
    try:
        return kind(value)
    except ValueError:
        right = "a whole number" if kind is int else "a number"
        raise BadInput(f"{value!r} is no number", where=f"--vllm {name}", right=right) from None
