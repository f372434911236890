"""The long trials (`make soak`), short: they try what they say, and tell what fails with what makes it again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import soak


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SERVETWIN_CACHE", str(tmp_path))


def test_whole_files_are_answered(tmp_path: Path) -> None:
    """What is damaged is a file that was good, and is read by the command."""
    for kind, form in soak.formats(tmp_path).items():
        whole = form.text.encode()
        (tmp_path / form.path).write_bytes(soak.gzip.compress(whole) if form.packed else whole)
        soak.remove_results(tmp_path)
        code, _, err = soak.call(*form.command)
        assert code == 0, (kind, err)
        soak.remove_results(tmp_path)
        (tmp_path / form.path).write_bytes(b"\xff\x00")
        assert soak.call(*form.command)[0] == 2, kind
        (tmp_path / form.path).write_bytes(soak.gzip.compress(whole) if form.packed else whole)


def test_a_few_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.try_formats(2, seed=1) == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"2 damaged, 0 neither refused", told)) == 24


def test_what_fails_is_told_with_its_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    one = soak.Format("{}", "a.json", ("profiles", tmp_path))
    monkeypatch.setattr(soak, "formats", lambda _: {"a file": one})
    monkeypatch.setattr(soak, "call", broken)
    assert soak.try_formats(2, seed=4) == 2
    assert "FAILED a file: input 1 of seed 4: KeyError: 'x'" in capsys.readouterr().out


def test_memory_and_worlds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "PATHS", {"image model": soak.PATHS["image model"]})
    monkeypatch.setattr(soak, "MOST", 10**6)  # of so few requests what grows is all else
    assert soak.try_memory(400) == 0
    assert soak.try_worlds(5, seed=0) == 0
    assert soak.try_faults(40, seed=0) == 0
    told = capsys.readouterr().out
    assert re.search(r"image model: 400 requests in .* bytes for each request", told)
    assert "worlds: 5 under all invariants, none broken" in told
    assert re.search(r"worlds with faults: 40 under all invariants, none broken \([1-9]\d* failures, [1-9]", told)
