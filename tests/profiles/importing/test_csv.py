"""A table of times of steps becomes a profile that says them again."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.profiles.importing.settings import Settings
from servetwin.profiles.importing.write import import_profile

HEADER = "kind,tokens,prompts,context,batch,per_sequence,seconds"
SETTINGS = {"model": "llama-3.1-8b", "device": "h100", "max_num_batched_tokens": 1024, "max_num_seqs": 32}


def rows() -> list[str]:
    found = [f"prefill,{n},,,,,{1e-5 * n + 0.01}" for n in (1, 128, 1024)]
    found += [f"prefill,{n},,{c},,,{1e-5 * n + 0.01 + 1e-8 * n * c}" for n in (128, 1024) for c in (512, 2048)]
    found += [f"decode,,,,{n},{k},{0.01 + 1e-4 * n + 1e-8 * n * k}" for n in (1, 32) for k in (16, 2048)]
    mixed = itertools.product((128, 1024), (0, 512), (1, 32), (16, 2048))
    found += [f"mixed,{t},,{c},{n},{k},{0.012 + 1e-5 * t + 3e-8 * n * k + 1e-9 * t * c}" for t, c, n, k in mixed]
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "times.csv"
    path.write_text("\n".join([HEADER, *rows(), ""]))
    return path


def test_what_the_rows_say_the_profile_says(imported, table):
    times = imported("csv", table, **SETTINGS).tokens("measured")
    assert times.prefill(1024) == pytest.approx(0.02024)
    assert times.prefill(128, 128.0**2, 128.0 * 2048) == pytest.approx(0.01128 + 1e-8 * 128 * 2048)
    assert times.decode(32, 32 * 2048) == pytest.approx(0.0132 + 1e-8 * 32 * 2048, rel=1e-5)
    for t, c, n, k in itertools.product((128,), (0, 512), (1, 32), (16, 2048)):
        said = 0.012 + 1e-5 * t + 3e-8 * n * k + 1e-9 * t * c
        said = max(said, times.decode(n, n * k))  # never less than the decode alone
        assert times.mixed(t, float(t * t), float(t * c), n, n * k) == pytest.approx(said, rel=1e-4)


def test_rows_of_one_place_are_samples_whose_median_counts(imported, table):
    table.write_text(table.read_text() + "prefill,1024,,,,,0.5\nprefill,1024,,,,,0.03\n")
    assert imported("csv", table, **SETTINGS).tokens("measured").prefill(1024) == pytest.approx(0.03)


def test_prefill_and_decode_are_enough(imported, table):
    kept = [
        row for row in rows() if row.startswith("decode") or (row.startswith("prefill") and row.split(",")[3] == "")
    ]
    table.write_text("\n".join([HEADER, *kept]))
    times = imported("csv", table, **SETTINGS).tokens("measured")
    assert times.mixed(128, 128.0**2, 0.0, 1, 16) > times.prefill(128)


@pytest.mark.parametrize(
    ("of", "times", "told"),
    [
        ({}, 1e3, r"times.csv:2: a step of 10.01 s, which takes 0.00448 s at the peak .*seconds, not ms or us"),
        ({}, 1e6, "not ms or us"),
        ({}, 1e-3, "a step of 1.001e-05 s, .*the device, model and --tensor-parallel-size"),
        ({"device": "l4"}, 0.5, "the device, model and"),
        ({"model": "llama-3.1-70b", "tensor_parallel_size": 2}, 0.5, "the device, model and"),
    ],
)
def test_times_that_no_step_can_take_are_refused(imported, table, of, times, told):
    """By another unit, device, model or number of devices. What is three times as quick or slow may be."""
    lines = [row.rpartition(",") for row in rows()]
    table.write_text("\n".join([HEADER, *(f"{cells},{float(seconds) * times!r}" for cells, _, seconds in lines)]))
    with pytest.raises(BadInput, match=told):
        imported("csv", table, **{**SETTINGS, **of})


def test_quick_and_slow_steps_may_be(imported, table):
    lines = [row.rpartition(",") for row in rows()]
    for times in (0.33, 3.0):
        table.write_text("\n".join([HEADER, *(f"{cells},{float(seconds) * times!r}" for cells, _, seconds in lines)]))
        assert imported("csv", table, **SETTINGS).tokens("measured").prefill(1024) == pytest.approx(0.02024 * times)


WRONG = {
    "kind,tokens": ":1: the first line says kind,tokens",
    f"{HEADER}\nprefill,1": ":2: 2 values",
    f"{HEADER}\nboth,1,,,,,0.1": ":2: kind: 'both' is none",
    f"{HEADER}\nprefill,x,,,,,0.1": ":2: tokens: 'x' is no count",
    f"{HEADER}\nprefill,,,,,,0.1": ":2: tokens: '' is no count",
    f"{HEADER}\nprefill,8,,,4,,0.1": ":2: batch of a prefill row",
    f"{HEADER}\nprefill,8,,,,,0": ":2: seconds: '0' is no time",
    f"{HEADER}\nprefill,8,9,,,,0.1": ":2: 9 prompts of 8 tokens",
    f"{HEADER}\nprefill,8,2,5,,,0.1": ":2: several prompts, and context before them",
    f"{HEADER}\nprefill,8,,,,,0.1": "there is no decode row",
    f"{HEADER}\ndecode,,,,1,8,0.1": "there is no prefill row",
    f"{HEADER}\nprefill,8,2,,,,0.1\ndecode,,,,1,8,0.1": "no prefill row of 8 tokens in 1 prompts",
    f"{HEADER}\nprefill,8,,,,,0.1\ndecode,,,,1,8,0.1\ndecode,,,,2,9,0.1": "decode rows: 2 of 4 places are missing",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_in_one_line(tmp_path, text):
    (tmp_path / "times.csv").write_text(text)
    with pytest.raises(BadInput) as caught:
        import_profile("csv", str(tmp_path / "times.csv"), Settings(**SETTINGS))
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_and_device_must_be_said(table):
    with pytest.raises(BadInput, match="--model"):
        import_profile("csv", str(table), Settings(device="h100"))
    with pytest.raises(BadInput, match="--device"):
        import_profile("csv", str(table), Settings(model="llama-3.1-8b"))
