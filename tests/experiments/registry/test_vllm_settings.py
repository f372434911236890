"""Settings of vLLM's engine by vLLM's names."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.experiments.registry.vllm_settings import VllmSettings, settings_of


def test_left_out_they_are_those_of_vllms_server() -> None:
    settings = settings_of([])
    assert settings == VllmSettings()
    assert settings.sizes(139.8, "NVIDIA H200") == (8192, 1024)
    assert settings.sizes(79.2, "NVIDIA A100-SXM4-80GB") == (2048, 256)
    assert settings.sizes(23.6, "NVIDIA GeForce RTX 4090") == (2048, 256)
    assert settings_of(["max_num_batched_tokens=512"]).sizes(139.8) == (512, 512)


def test_they_may_be_written_as_vllms_options_are() -> None:
    found = settings_of(["--max-num-seqs=64", "gpu_memory_utilization = 0.8", "dtype=float16", "enforce-eager=true"])
    assert (found.max_num_seqs, found.gpu_memory_utilization, found.dtype) == (64, 0.8, "float16")
    assert found.enforce_eager


def test_what_an_engine_here_is_anyway_may_be_said() -> None:
    assert settings_of(["enable_prefix_caching=False", "enable_chunked_prefill=true"]) == VllmSettings()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("enable_prefix_caching=perhaps", "'perhaps' is neither"),
        ("long_prefill_token_threshold=512", "long_prefill_token_threshold is not modelled"),
        ("speculative_config={}", "speculative_config is not modelled"),
        ("max_num_sequences=3", "(right would be: max_num_seqs)"),
        ("max_num_seqs", "has no value"),
        ("max_num_seqs=many", "--vllm max_num_seqs: 'many' is no number"),
        ("max_num_seqs=0", "0 is too small"),
        ("gpu_memory_utilization=1.5", "1.5 is no share"),
        ("dtype=int4", "'int4' is no dtype"),
        ("enforce_eager=2", "true or false"),
    ],
)
def test_others_are_refused_by_name(line: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        settings_of([line])
    assert said in str(refused.value)
