"""Options of vLLM that no engine here has: named, so that whoever asks for one is told, and why.

An engine that is simulated without one of these is another engine: where the option would change which steps run, or
how long they take, nothing that is computed here says anything of it.
"""

from __future__ import annotations

_HASHES = "contents of blocks are compared as the workload names them, which no hash can confuse"
_THRESHOLD = "prompts are cut by the budget of a step alone, so other steps would run"
_LORA = (
    "step times of profiles are those of the model alone; in simulation an engine has `lora` "
    "(docs/guides/engine-options.md)"
)
_SPECULATION = (
    "profiles are of engines that draft no tokens; in simulation an engine has a `speculative_config` "
    "(docs/guides/engine-options.md)"
)
_CONNECTOR = "KV goes to other engines where workers have a role (prefill, decode), and to the host by swap only"
_STRUCTURE = "no grammars are compiled or applied, and their time in each step was not measured"
_PARALLEL = "an engine is one scheduler, on GPUs that work as one"
_PRIORITY = "queues are served by policies of ServeTwin's, which see no priorities of requests"
_PARTIAL = "how many long prompts are in chunks at a time is not limited"

#: Name in vLLM's `EngineArgs`, or in the experiment files of those who look for it -> why it is not there.
UNMODELLED: dict[str, str] = {
    "prefix_caching_hash_algo": _HASHES,
    "long_prefill_token_threshold": _THRESHOLD,
    "max_long_partial_prefills": _PARTIAL,
    "max_num_partial_prefills": _PARTIAL,
    "enable_lora": _LORA,
    "lora_modules": _LORA,
    "max_lora_rank": _LORA,
    "speculative_model": _SPECULATION,
    "speculative_decoding": _SPECULATION,
    "num_speculative_tokens": _SPECULATION,
    "num_lookahead_slots": _SPECULATION,
    "kv_transfer_config": _CONNECTOR,
    "kv_connector": _CONNECTOR,
    "cpu_offload_gb": _CONNECTOR,
    "guided_decoding_backend": _STRUCTURE,
    "structured_outputs_config": _STRUCTURE,
    "structured_output": _STRUCTURE,
    "reasoning_parser": _STRUCTURE,
    "data_parallel_size": _PARALLEL,
    "enable_expert_parallel": _PARALLEL,
    "decode_context_parallel_size": _PARALLEL,
    "scheduling_policy": _PRIORITY,
}

#: What engines have in simulation, and none that a profile is taken of: vLLM's name -> why it is not there.
NOT_PROFILED: dict[str, str] = {"speculative_config": _SPECULATION}

#: vLLM's name -> the key, or parameter, that says it here.
CALLED_HERE: dict[str, str] = {
    "max_num_batched_tokens": "max_batched_tokens",
    "max_num_seqs": "limit, of the worker",
    "num_gpu_blocks_override": "blocks",
    "async_scheduling": "asynchronous",
    "enable_prefix_caching": "engine: {enable_prefix_caching: ...}, of the worker",
    "prefix_caching": "engine: {enable_prefix_caching: ...}, of the worker",
    "enable_chunked_prefill": "policy: {name: vllm-v1, params: {chunked: ...}}",
    "preemption_mode": "preemption",
    "gpu_memory_utilization": "blocks",
    "kv_offloading_size": "engine: {kv_offloading: {gib: ...}}, of the worker",
    "max_loras": "engine: {lora: {max_loras: ...}}, of the worker",
    "pipeline_parallel_size": "engine: {pipeline_parallel: {pipeline_parallel_size: ...}}, of the worker",
    "tensor_parallel_size": "a profile that was taken at that degree",
}


def of_vllm(key: str) -> tuple[str, str] | None:
    """What is wrong with *key*, an option of vLLM's, and what would be right; None if it is none."""
    key = key.lstrip("-").replace("-", "_").removeprefix("no_")
    if key in UNMODELLED:
        return f"vLLM's {key} is not modelled: {UNMODELLED[key]}", "an engine without it"
    if key in CALLED_HERE:
        return f"unknown key {key!r}", CALLED_HERE[key]
    return None
