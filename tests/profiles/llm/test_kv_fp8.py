"""KV in 8 bits: which part of a step is scaled, by the formulas and tables that profiles have."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from servetwin.profiles import TokenTable, architecture, kv_blocks, load
from servetwin.profiles.llm.kv_fp8 import Fp8Table
from servetwin.profiles.llm.schema import TokenModel

HERE = {"statistic": "made up", "source": {"file": "bench.py"}}
D0, D1, PAIR = 0.010, 2e-6, 3e-8


def table(**mixed: Any) -> TokenTable:
    content: dict[str, Any] = {
        "prefill": {"tokens": [1, 1001], "seconds": [[0.010, 0.110]], "between": "line", "per_pair": PAIR, **HERE},
        "line": {"d0": D0, "d1": D1, "until_batch": 64, "until_context": 100_000, **HERE},
        "mixed": mixed,
    }
    return TokenTable(TokenModel.model_validate(content), name="toy")


def test_only_what_grows_with_the_context_is_scaled() -> None:
    fp8 = Fp8Table(table(), decode=0.5, prefill=0.25)
    assert fp8.decode(4, 3000) == pytest.approx(D0 + 0.5 * D1 * 3000)
    constant, slope, _ = fp8.straight(4, 3000)
    assert (constant, slope) == pytest.approx((D0, 0.5 * D1))
    assert fp8.prefill(100, 100**2) == table().prefill(100, 100**2)  # a whole prompt has nothing before it
    assert fp8.prefill(100, 100**2, 100 * 500) == pytest.approx(0.010 + 0.0001 * 99 + 0.25 * PAIR * 100 * 500)


def test_a_mixed_step_has_both() -> None:
    fp8 = Fp8Table(table(attention=2.0), decode=0.5, prefill=0.25)
    whole = 0.010 + 0.0001 * 103  # one pass of 100 tokens of a prompt and 4 that decode
    assert fp8.mixed(100, 100**2, 100 * 500, 4, 3000) == pytest.approx(
        whole + 0.25 * PAIR * 100 * 500 + 2.0 * 0.5 * D1 * 3000
    )


@pytest.mark.parametrize("name", ["h200-steps/llama-3.1-8b", "rtxpro6000/llama-3.1-8b-tp1-imported"])
def test_measured_forms_of_mixed_steps_are_scaled_alike(name: str) -> None:
    """What a step takes over one whose sequences are as short as tables know takes half as long."""
    plain = load(name).tokens("measured")
    fp8, short = Fp8Table(plain, decode=0.5, prefill=1.0), 8 * 1

    def over(times: TokenTable) -> float:
        return times.mixed(2000, 2000.0**2, 0.0, 8, 8 * 4000) - times.mixed(2000, 2000.0**2, 0.0, 8, short)

    assert over(plain) > 0.0
    assert over(fp8) == pytest.approx(0.5 * over(plain))


def test_tables_of_chunks_over_context_are_scaled() -> None:
    over = {"tokens": [64, 512], "context": [0, 1024], "seconds": [0.0, 0.001, 0.0, 0.008], "statistic": "made up"}
    content = table().model.model_dump()
    content["prefill"] |= {"per_pair": None, "over_context": over}
    plain = TokenTable(TokenModel.model_validate(content), name="toy")
    fp8 = Fp8Table(plain, decode=1.0, prefill=0.25)
    assert plain.prefill(512, None, 512 * 1024) - plain.prefill(512) == pytest.approx(0.008)
    assert fp8.prefill(512, None, 512 * 1024) - fp8.prefill(512) == pytest.approx(0.25 * 0.008)


@pytest.mark.parametrize("name", ["a6000/opt-13b-tp1", "h200-steps/opt-13b", "rtxpro6000/llama-3.1-8b-tp1-imported"])
def test_ratios_of_one_change_nothing(name: str) -> None:
    plain = load(name).tokens("measured")
    same = Fp8Table(plain, decode=1.0, prefill=1.0)
    for batch, context in ((1, 10), (8, 2000), (30, 7001)):
        assert same.decode(batch, context) == pytest.approx(plain.decode(batch, context), rel=1e-12)
    assert same.mixed(64, 64.0**2, 640, 4, 900) == pytest.approx(plain.mixed(64, 64.0**2, 640, 4, 900), rel=1e-12)
    assert same.largest_batch == plain.largest_batch
    again = pickle.loads(pickle.dumps(same))
    assert again.decode(8, 2000) == same.decode(8, 2000)


def test_the_same_memory_holds_twice_as_many_blocks() -> None:
    reported = load("a6000/opt-13b-tp1").token_data
    computed = load("h200/llama-3.1-8b-tp1-imported").token_data
    assert reported.kv.memory_gib is None
    assert computed.kv.memory_gib is not None
    for data in (reported, computed):
        for size in (None, 32):
            plain = data.blocks(max_batched_tokens=None, max_sequences=None, block_size=size)
            fp8 = data.blocks(max_batched_tokens=None, max_sequences=None, block_size=size, fp8=True)
            assert 2 * plain <= fp8 <= 2 * plain + 1  # a last block that was not whole
    opt = architecture("opt-13b")
    assert kv_blocks(opt, memory_gib=80.0, kv_dtype_bytes=1) in {
        2 * kv_blocks(opt, memory_gib=80.0) + i for i in (0, 1)
    }
