"""Two modules that are to be one model, prefilled here and decoded there, are refused: nobody hands over KV."""

from __future__ import annotations

from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.experiments.spec.loading import load


def two(prefill: dict[str, Any], decode: dict[str, Any]) -> dict[str, Any]:
    workers = [{"modules": [name], "device": f"gpu{i}", "limit": 64} for i, name in enumerate(("first", "second"))]
    return {
        "name": "apart",
        "pipeline": {"modules": {"first": {"kind": "llm"}, "second": {"kind": "llm"}}},
        "workload": {
            "requests": 20,
            "arrivals": {"process": "gamma", "rate": 2.0, "cv": 1.0},
            "lengths": {"first": prefill, "second": decode},
        },
        "slo": {"prefill": 5.0, "decode": 5.0},
        "policy": {"name": "vllm-v1"},
        "deployment": {"devices": {"gpu0": "a6000/opt-13b", "gpu1": "a6000/opt-13b"}, "workers": workers},
    }


def tokens(count: int) -> dict[str, Any]:
    return {"draw": "constant", "tokens": count}


@pytest.mark.parametrize(
    ("decode", "context"),
    [
        ({"prompt": tokens(1), "output": tokens(100), "after": "first"}, 2),
        ({"prompt": tokens(2), "output": tokens(100)}, 2),
    ],
)
def test_a_stage_that_would_decode_without_the_prompt_is_refused(decode: dict[str, Any], context: int) -> None:
    prefill = {"prompt": {"draw": "uniform", "low": 100, "high": 900}, "output": tokens(1)}
    with pytest.raises(BadInput) as refused:
        load(two(prefill, decode))
    said = f"'second' would decode with a context of {context}, not with the KV of the prompts of 'first'"
    assert said in str(refused.value)
    assert "workload.lengths.second.prompt" in str(refused.value)


def test_models_that_answer_in_a_word_before_others_are_not() -> None:
    judge = {"prompt": tokens(400), "output": tokens(1)}
    answers = {"prompt": tokens(400), "output": tokens(100)}
    load(two(judge, answers))
    load(two(judge, {**answers, "after": "first"}))
    load(two({**judge, "output": tokens(2)}, {"prompt": tokens(1), "output": tokens(100), "after": "first"}))
