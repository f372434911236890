"""LLMServingSim's tables: a step is the sum of its parts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.profiles.importing.formats.llmservingsim import full_grid
from servetwin.profiles.importing.settings import Settings
from servetwin.profiles.importing.write import import_profile

LAYERS = 32  # of Llama-3.1-8B
PARTS = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")


def dense(part: str, n: int) -> float:
    """Microseconds: each part costs something else, so that one taken twice, or not at all, shows."""
    return (1 + PARTS.index(part)) * (10 + n) if part in PARTS else {"embedding": 3.0, "final_layernorm": 5.0}[part]


def attention(chunk: int, before: int, n: int, each: int) -> float:
    alone = 2.0 + n * each / 100
    return alone if not chunk else 4.0 + chunk * (chunk / 2 + before) / 1000 + 3.0 * n * each / 100


CHUNKS, BEFORE, DECODES, EACH = (16, 256, 1024), (0, 1024), (1, 8, 32), (16, 1024, 4096)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "GPU" / "Llama" / "tp1"
    folder.mkdir(parents=True)
    sizes = [*range(1, 65), 128, 256, 512, 1024]
    lines = [f"{part},{n},{dense(part, n)}" for part in (*PARTS, "embedding", "final_layernorm") for n in sizes]
    (folder / "dense.csv").write_text("\n".join(["layer,tokens,time_us", *lines]))
    lines = [f"{part},{n},{each * n}" for part, each in (("lm_head", 7.0), ("sampler", 1.0)) for n in (1, 32)]
    (folder / "per_sequence.csv").write_text("\n".join(["layer,sequences,time_us", *lines]))
    places = [*itertools.product(CHUNKS, BEFORE, DECODES, EACH)]
    places += [*itertools.product((0,), (0,), DECODES, EACH), *itertools.product(CHUNKS, BEFORE, (0,), (0,))]
    lines = [",".join(map(str, (*place, attention(*place)))) for place in places]
    (folder / "attention.csv").write_text("\n".join(["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", *lines]))
    (folder / "meta.yaml").write_text("gpu: NVIDIA GeForce RTX 4090\nmodel: meta-llama/Llama-3.1-8B\n")
    return folder


SETTINGS = {"max_num_batched_tokens": 1024, "max_num_seqs": 32}


def rest(tokens: int, sequences: int) -> float:
    once = sum(dense(part, tokens) for part in ("embedding", "final_layernorm")) + 8.0 * sequences
    return once + LAYERS * (dense("layernorm", tokens) + sum(dense(part, tokens) for part in PARTS))


def test_a_step_is_the_sum_of_its_parts(imported, tables):
    table = imported("llmservingsim", tables, **SETTINGS).tokens("measured")
    for n in (16, 256, 1024):
        # 256 lies between two places at which the profile was asked
        assert table.prefill(n) == pytest.approx(1e-6 * (rest(n, 1) + LAYERS * attention(n, 0, 0, 0)), rel=1e-4)
    for n, each in itertools.product((1, 8, 32), EACH):
        alone = 1e-6 * (rest(n, n) + LAYERS * attention(0, 0, n, each))
        assert table.decode(n, n * each) == pytest.approx(alone, rel=1e-5)


def test_a_chunk_pays_for_what_stood_before_it(imported, tables):
    table = imported("llmservingsim", tables, **SETTINGS).tokens("measured")
    chunk = 1e-6 * (rest(256, 1) + LAYERS * attention(256, 1024, 0, 0))
    assert table.prefill(256, 256.0**2, 256.0 * 1024) == pytest.approx(chunk, rel=1e-5)


def test_decodes_beside_a_chunk_take_what_was_measured_beside_it(imported, tables):
    table = imported("llmservingsim", tables, **SETTINGS).tokens("measured")
    for chunk, before, n, each in ((256, 0, 8, 1024), (16, 1024, 32, 4096), (256, 1024, 1, 16)):
        both = 1e-6 * (rest(padded(chunk + n), n + 1) + LAYERS * attention(chunk, before, n, each))
        found = table.mixed(chunk, float(chunk**2), float(chunk * before), n, n * each)
        assert found == pytest.approx(both, rel=1e-4), (chunk, before, n, each)


def padded(n: int) -> int:
    """As vLLM's CUDA graphs do it for at most 32 sequences: up to 64 tokens, in eights."""
    return n if n > 64 or n in (1, 2, 4) else -(-n // 8) * 8


def test_steps_are_padded_to_cuda_graphs_unless_eager(imported, tables):
    graphs = imported("llmservingsim", tables, **SETTINGS).tokens("measured")
    assert graphs.prefill(17) == pytest.approx(graphs.prefill(24), rel=1e-3)
    eager = imported("llmservingsim", tables, **SETTINGS, enforce_eager=True).tokens("measured")
    assert eager.prefill(17) < 0.95 * eager.prefill(24)


def test_the_profile_says_that_it_is_imported_and_its_blocks_follow_the_engine(imported, tables):
    data = imported("llmservingsim", tables, **SETTINGS).data
    assert data.basis.kind == "imported"
    assert "0.6" in data.basis.known_error
    assert data.tokens.kv.blocks == data.tokens.blocks(max_batched_tokens=None, max_sequences=None)
    assert data.tokens.blocks(max_batched_tokens=512, max_sequences=16) > data.tokens.kv.blocks
    reported = imported("llmservingsim", tables, **SETTINGS, blocks=2587).data.tokens
    assert reported.blocks(max_batched_tokens=512, max_sequences=16) == 2587


def test_of_two_grids_in_a_file_the_one_that_spans_more_counts():
    wide = set(itertools.product((16, 32, 64), (0, 512), (1, 2), (16, 512)))
    fine = set(itertools.product((16, 24, 36, 64), (0, 300), (1, 2), (256, 300, 512)))
    assert full_grid(wide | fine)[3] == [16, 512]
    with pytest.raises(BadInput, match="no full grid"):
        full_grid({(16, 0, 1, 16), (16, 0, 2, 32)})


def wrong(tables: Path, file: str, old: str, new: str) -> str:
    path = tables / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(BadInput) as caught:
        import_profile("llmservingsim", str(tables), Settings(**SETTINGS))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_is_told_in_one_line(tables):
    assert "the first line says" in wrong(tables, "dense.csv", "layer,tokens", "layer,token")
    (tables / "dense.csv").unlink()
    assert "cannot be read" in wrong(tables, "meta.yaml", "", "")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("dense.csv", "qkv_proj,1,", "qvk_proj,1,", "unknown layer 'qvk_proj'"),
        ("dense.csv", "qkv_proj,1,22", "qkv_proj,1,-3", "'-3' is no time"),
        ("per_sequence.csv", "sampler,1,1.0\nsampler,32,32.0", "", "layer 'sampler' is missing"),
        ("attention.csv", "16,0,1,16,", "16,0,x,16,", "'x' is no count"),
        ("attention.csv", "16,0,1,16,", "16,0,1,", "4 values"),
        ("meta.yaml", "Llama-3.1-8B", "Llama-9", "unknown model 'meta-llama/Llama-9'"),
        ("meta.yaml", "RTX 4090", "RTX 1234", "unknown device"),
    ],
)
def test_each_fault_has_a_line(tables, file, old, new, said):
    assert said in wrong(tables, file, old, new)


def test_what_the_tables_do_not_reach_is_refused(tables):
    with pytest.raises(BadInput, match="reach steps of 1024 tokens"):
        import_profile("llmservingsim", str(tables), Settings(max_num_batched_tokens=2048, max_num_seqs=32))
    with pytest.raises(BadInput, match="reach 32 sequences"):
        import_profile("llmservingsim", str(tables), Settings(max_num_batched_tokens=1024))
    with pytest.raises(BadInput, match="communication between devices"):
        import_profile("llmservingsim", str(tables), Settings(**SETTINGS, tensor_parallel_size=2))
