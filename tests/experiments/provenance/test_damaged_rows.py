"""Rows that were damaged where they are kept: each is computed again, or is what it was."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest
from edited_policies import counted, spec
from servetwin.experiments.provenance.stored_rows import Kept, decode, encode
from servetwin.experiments.sweeps import point as engine
from servetwin.experiments.sweeps import sweep
from servetwin.experiments.sweeps.cache import Cache


def damaged(text: bytes, draws: random.Random) -> bytes:
    """*text* with a digit changed, a bit turned, or cut off."""
    kind, at = draws.randrange(4), draws.randrange(len(text))
    if kind == 0:
        digits = [i for i, c in enumerate(text) if chr(c).isdigit()]
        at = draws.choice(digits)
        return text[:at] + str((int(chr(text[at])) + draws.randrange(1, 10)) % 10).encode() + text[at + 1 :]
    if kind == 1:
        return text[:at] + bytes([text[at] ^ (1 << draws.randrange(8))]) + text[at + 1 :]
    if kind == 2:
        return text[:at]
    return text[:at] + text[at + draws.randrange(1, 20) :]


ROW = {"workload": "toy", "rate": 12.5, "met": 31, "attainment": 0.775, "mean_batch_size": None, "k": float("inf")}


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_line_is_no_row_or_the_same_row(seed):
    draws = random.Random(seed)
    line = encode("k1", Kept(ROW, {"/a": "b"})).encode()
    assert decode(line) == ("k1", Kept(ROW, {"/a": "b"}))
    for _ in range(400):
        found = decode(damaged(line, draws), "k1")
        assert found is None or found == ("k1", Kept(ROW, {"/a": "b"}))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"1",
        b"null",
        b'{"key": "k", "row": [1], "reads": {}, "sum": ""}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_is_no_row(line):
    assert decode(line) is None


def test_a_row_of_another_point_is_not_taken():
    assert decode(encode("k1", Kept(ROW)), "k2") is None


def test_a_damaged_cache_is_computed_again(place: Path, monkeypatch):
    """Whatever is done to the file: the table is the same, and nothing breaks."""
    path = spec(place, "edf")
    folder = place / "cache"
    with Cache(folder) as cache:
        sweep.sweep(path, place / "right.csv", jobs=1, cache=cache)
    file = folder / "points.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    whole, draws = file.read_bytes(), random.Random(5)
    places = [i for i in range(len(whole)) if whole[i : i + 1].isdigit()]
    for n in range(25):
        content = bytearray(whole)
        if n % 2:
            content[draws.choice(places)] = ord("0") + draws.randrange(10)
        else:
            content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        for other in folder.iterdir():
            other.unlink()
        file.write_bytes(content)
        with Cache(folder) as cache:
            sweep.sweep(path, place / "again.csv", jobs=1, cache=cache)
        assert (place / "again.csv").read_bytes() == (place / "right.csv").read_bytes()


def test_a_damaged_partial_file_is_computed_again(place: Path, monkeypatch):
    path, out = spec(place, "edf"), place / "a.csv"
    sweep.sweep(path, place / "right.csv", jobs=1)
    run_point, count = engine.run_point, []

    def breaks(experiment):
        if len(count) == 1:
            raise KeyboardInterrupt
        count.append(1)
        return run_point(experiment)

    monkeypatch.setattr(engine, "run_point", breaks)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(path, out, jobs=1)
    monkeypatch.setattr(engine, "run_point", run_point)
    partial = place / "a.csv.part"
    (line,) = [text for text in partial.read_text().split("\n") if text]
    entry = json.loads(line)
    altered = [
        {**entry, "row": {**entry["row"], "met": entry["row"]["met"] + 1}},
        {**entry, "row": [1, 2]},
        {**entry, "row": None},
        {**entry, "reads": []},
        {"key": entry["key"], "row": entry["row"]},
    ]
    for other in altered:
        partial.write_text(json.dumps(other) + "\n")
        sweep.sweep(path, out, jobs=1)
        assert out.read_bytes() == (place / "right.csv").read_bytes()
    ran = counted(monkeypatch)
    partial.write_text(line + "\n")
    sweep.sweep(path, out, jobs=1)
    assert len(ran) == 1
