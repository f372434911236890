"""What vLLM would refuse is refused, and what it knows and nobody here does is named."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import build
from servetwin.experiments.registry.vllm_options import UNMODELLED
from servetwin.experiments.spec.loading import load

OPT = "opt-13b-a6000"


def engine(**more: object) -> list[tuple[str, object]]:
    return [("policy", "vllm-v1"), *((f"deployment.workers.0.engine.{key}", value) for key, value in more.items())]


@pytest.mark.parametrize("option", UNMODELLED)
def test_options_that_are_not_modelled_are_refused_by_name(option: str) -> None:
    for given in (engine(**{option: True}), [("policy", {"name": "vllm-v1", "params": {option: 1}})]):
        with pytest.raises(BadInput) as error:
            load(OPT, given)
        assert f"vLLM's {option} is not modelled: {UNMODELLED[option]}" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "found"), [
    ("--enable-prefix-caching", "right would be: engine: {enable_prefix_caching: ...}"),
    ("no-enable-prefix-caching", "right would be: engine: {enable_prefix_caching: ...}"),
    ("prefix_caching", "right would be: engine: {enable_prefix_caching: ...}"),
    ("max_num_batched_tokens", "right would be: max_batched_tokens"),
    ("max_num_seqs", "right would be: limit, of the worker"),
    ("async_scheduling", "right would be: asynchronous"),
    ("blokcs", "right would be: blocks"),
])  # fmt: skip
def test_other_spellings_and_what_is_called_otherwise_here(key: str, found: str) -> None:
    tree = load(OPT, [("policy", "vllm-v1")]).as_dict()
    tree["deployment"]["workers"][0]["engine"] |= {key: 1}
    with pytest.raises(BadInput) as error:
        load(tree)
    assert found in str(error.value)


def test_such_a_name_is_an_ordinary_unknown_key_elsewhere() -> None:
    with pytest.raises(BadInput, match="workload has no key 'lora'"):
        load(OPT, [("workload.lora", 1)])
    with pytest.raises(BadInput, match="policy EDF takes no parameter 'lora'"):
        load("dit-s2-256-rtx4090", [("policy", {"name": "edf", "params": {"lora": 1}})])


@pytest.mark.parametrize(("policy", "tokens", "limit"), [
    ({"name": "vllm"}, 8, 64),
    ({"name": "vllm-v1"}, 63, 64),
    ({"name": "edf-llm"}, 255, 256),
    ({"name": "vllm-v1", "params": {"budget": 63}}, 8192, 64),
    ({"name": "sarathi", "params": {"chunk": 63}}, 8192, 64),
    ({"name": "sarathi"}, 8192, 513),
])  # fmt: skip
def test_no_more_requests_run_than_a_step_has_tokens(policy: dict, tokens: int, limit: int) -> None:
    given = [("policy", policy), ("deployment.workers.0.engine.max_batched_tokens", tokens),
             ("deployment.workers.0.limit", limit), ("slo.prefill", 3.0), ("slo.decode", 1.5)]  # fmt: skip
    with pytest.raises(BadInput, match=rf"{limit} requests may run at once, but a step has .* tokens"):
        build(load(OPT, given))


def test_as_many_may() -> None:
    for policy in ({"name": "vllm"}, {"name": "vllm-v1", "params": {"budget": 64}}, {"name": "vllm-v1"}):
        given = [("policy", policy), ("deployment.workers.0.engine.max_batched_tokens", 64), ("requests", 5),
                 ("deployment.workers.0.limit", 64)]  # fmt: skip
        build(load(OPT, given)).play()


def test_prompts_that_are_not_cut_fit_into_a_step() -> None:
    whole = {"name": "vllm-v1", "params": {"chunked": False}}
    with pytest.raises(BadInput, match=r"prompts are not cut, and a step has 1024 tokens .* may have 2048"):
        build(load(OPT, [("policy", whole), ("deployment.workers.0.engine.max_batched_tokens", 1024)]))
    build(load(OPT, [("policy", whole), ("deployment.workers.0.engine.max_batched_tokens", 2048)]))
