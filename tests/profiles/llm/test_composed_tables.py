"""Tables of profiles that are made of steps of all compositions: squares, and what decodes add by a formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError
from servetwin.profiles import load, verdict
from servetwin.profiles.llm.schema import TokenModel
from servetwin.profiles.llm.step_table import TokenTable

MODEL: dict[str, Any] = {
    "prefill": {
        "tokens": [1, 8192],
        "seconds": [[0.005, 0.2]],
        "between": "line",
        "statistic": "x",
        "source": {"file": "x"},
        "per_square": 1e-10,
        "per_pair": 2e-10,
    },
    "surface": {
        "batch": [1, 64],
        "per_sequence": [64, 1024],
        "seconds": [[0.005, 0.0051], [0.006, 0.008]],
        "statistic": "x",
        "source": {"file": "x"},
    },
    "mixed": {
        "decoding": {
            "tokens": [1, 100],
            "per_sequence": [1e-6, 3e-6],
            "per_context": [1e-8, 2e-8],
            "per_both": 1e-11,
        }
    },
}


def table(**mixed: Any) -> TokenTable:
    model = copy.deepcopy(MODEL)
    model["mixed"] |= mixed
    return TokenTable(TokenModel.model_validate(model))


def test_several_prompts_lack_squares() -> None:
    found = table()
    alone = found.prefill(1000)
    assert found.prefill(1000, 1000.0**2) == alone
    assert found.prefill(1000, 2 * 500.0**2) == pytest.approx(alone - 1e-10 * (1000**2 - 2 * 500**2))
    assert found.prefill(1000, 1000.0**2, 1000.0 * 300) == pytest.approx(alone + 2e-10 * 300_000)


@pytest.mark.parametrize(("length", "each", "context"), [(1, 1e-6, 1e-8), (10, 2e-6, 1.5e-8), (400, 3e-6, 2e-8)])
def test_decodes_add_by_how_long_the_chunks_beside_them_are(length: int, each: float, context: float) -> None:
    found, batch, tokens = table(), 8, 4000
    whole = found.prefill(length + batch, float(length**2 + batch))
    step = found.step(length, float(length**2), 0.0, batch, tokens)
    assert step == pytest.approx(
        max(whole + each * batch + (context + 1e-11 * batch) * tokens, found.decode(batch, tokens))
    )
    assert found.step(length, float(length**2), 0.0, batch, tokens) == step  # as it was kept


def test_a_mixed_step_takes_no_less_than_its_decodes() -> None:
    found = table(decoding={"tokens": [1], "per_sequence": [0.0], "per_context": [0.0]})
    assert found.step(1, 1.0, 0.0, 60, 60 * 1000) == found.decode(60, 60 * 1000)


@pytest.mark.parametrize(
    "mixed", [{"attention": 1.0}, {"per_sequence": 1e-6}, {"rule": "sum"}], ids=["attention", "sequence", "sum"]
)
def test_nothing_else_says_what_decoding_adds(mixed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="decoding is all that it adds"):
        table(**mixed)


def test_squares_are_for_one_row() -> None:
    model = copy.deepcopy(MODEL)
    model["prefill"] |= {"prompts": [1, 2], "seconds": [[0.005, 0.2], [0.005, 0.2]]}
    with pytest.raises(ValidationError, match="there are rows for that"):
        TokenModel.model_validate(model)


@pytest.mark.parametrize("name", ["h200-steps/llama-3.1-8b", "h200-steps/opt-13b"])
def test_a_profile_says_how_far_it_is_off_on_steps_that_it_was_not_made_of(name: str) -> None:
    data = load(name).data
    assert data.tokens is not None
    assert data.tokens.blind is not None
    lines = verdict.blind(data)
    assert len(lines) == len(data.tokens.blind.kinds) + 2
    assert "decode" in lines[1]
    assert "over the limits" not in lines[1]  # 1.5 % and 5 %
    assert any("over the limits" in line for line in lines[2:])
    kinds = {finding.text.split(" steps")[0] for finding in verdict.of(data) if finding.kind == "blind"}
    assert "decode" not in kinds
    assert "mixed" in kinds


def test_a_profile_that_was_not_tried_says_nothing() -> None:
    assert verdict.blind(load("h200-long/opt-13b-tp1-0").data) == ()
