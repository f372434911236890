"""Splitwise's table of requests' times."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.profiles.importing.settings import Settings
from servetwin.profiles.importing.write import import_profile

HEADER = "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,e2e_time"
HEADER += ",tensor_parallel"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Prompts of 0.1 ms a token, decode steps of 20 ms, 1 ms a sequence and 1 us a token of context."""
    lines = []
    for size, batch, out in (
        (128, 1, 128),
        (512, 1, 128),
        (512, 1, 2048),
        (512, 4, 128),
        (512, 16, 128),
        (2048, 1, 128),
    ):
        for repeat in (1.0, 1.1, 0.95):
            token = 20 + batch + 1e-3 * batch * (size + out / 2)
            lines.append(f"llama2-70b,h100-80gb,{size},{batch},{out},1,1,{0.1 * size * batch * repeat},{token},1,4")
            lines.append(f"llama2-70b,a100-80gb,{size},{batch},{out},1,1,{0.2 * size * batch},{2 * token},1,4")
    path = tmp_path / "perf_model.csv"
    path.write_text("\n".join([HEADER, *lines, ""]))
    return path


MINE = {"options": {"model": "llama2-70b", "hardware": "h100-80gb"}, "tensor_parallel_size": 4, "max_num_seqs": 16}


def test_prompts_and_decodes_are_those_of_the_table(imported, table):
    profile = imported("splitwise", table, **MINE)
    times = profile.tokens("measured")
    assert times.prefill(512) == pytest.approx(0.0512)
    assert times.prefill(2048) == pytest.approx(0.2048)
    assert times.prefill(8192) == pytest.approx(0.8192)  # 16 of 512
    for batch in (1, 4, 16):
        assert times.decode(batch, batch * 576) == pytest.approx(1e-3 * (20 + batch + 0.576 * batch))
    # Larger batches at other lengths: as one alone, for each of them.
    assert times.decode(16, 16 * 1536) == pytest.approx(1e-3 * (20 + 16 + 1.536 * 16))
    assert profile.data.basis.kind == "imported"
    assert "within 15.8 %" in profile.data.basis.known_error  # 1.1 / 0.95


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {}}, "it holds several"),
        ({"options": {"model": "gpt", "hardware": "h100-80gb"}}, "nothing in it is of 'gpt'"),
        ({"options": {"modl": "gpt"}}, "unknown option"),
        ({"tensor_parallel_size": 3}, "nothing in it is of 3 devices"),
        ({"max_num_seqs": 64}, "its batches reach 16"),
    ],
)
def test_what_it_does_not_hold_is_refused(table, change, said):
    with pytest.raises(BadInput, match=said):
        import_profile("splitwise", str(table), Settings(**{**MINE, **change}))


def test_a_time_that_is_none(table):
    table.write_text(table.read_text().replace(",51.2", ",-51.2", 1))
    with pytest.raises(BadInput, match=r"prompt_time: '-51.2' does not fit"):
        import_profile("splitwise", str(table), Settings(**MINE))
    table.write_text("model,hardware\n")
    with pytest.raises(BadInput, match="column 'prompt_size' is missing"):
        import_profile("splitwise", str(table), Settings(**MINE))
