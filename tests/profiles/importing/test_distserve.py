"""DistServe's fitted times of steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.profiles.importing.settings import Settings
from servetwin.profiles.importing.write import import_profile

FITS = {
    "decoding_large_small_bs_threshold": 90,
    "prefill": [18.0, 0.1, 7e-6],
    "decoding_smallbs": [20.0, 6e-4, 0.04],
    "decoding_largebs": [15.0, 6e-4, 0.16],
}


def written(folder: Path, content: object) -> Path:
    path = folder / "profiler.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def fits(tmp_path: Path) -> Path:
    return written(tmp_path, {"facebook/opt-13b": {"1": FITS, "2": FITS}})


def test_times_are_those_of_the_fits(imported, fits) -> None:
    times = imported("distserve", fits).tokens("measured")
    for prompt in (64, 512, 2048):
        assert times.prefill(prompt) == pytest.approx((18.0 + 0.1 * prompt + 7e-6 * prompt**2) / 1e3, rel=1e-4)
    assert times.prefill(1024, 2 * 512.0**2) == pytest.approx((18.0 + 0.1 * 1024 + 7e-6 * 2 * 512**2) / 1e3, rel=1e-4)
    for batch, (a, c) in (
        (1, (20.0, 0.04)),
        (40, (20.0, 0.04)),
        (60, (20.0, 0.04)),
        (91, (15.0, 0.16)),
        (200, (15.0, 0.16)),
    ):
        for each in (100, 700):
            expected = (a + 6e-4 * batch * each + c * batch) / 1e3
            assert times.decode(batch, batch * each) == pytest.approx(expected, rel=1e-3)


WRONG = [
    ({"facebook/opt-66b": {}}, "nothing in it is of 'facebook/opt-13b'"),
    ({"facebook/opt-13b": {"4": FITS}}, "nothing in it is of 1 devices"),
    ({"facebook/opt-13b": {"1": {**FITS, "prefill": [1.0]}}}, "prefill of facebook/opt-13b does not fit"),
    ({"facebook/opt-13b": {"1": {**FITS, "decoding_large_small_bs_threshold": 0}}}, "does not fit"),
    ([1], "nothing in it is of"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_what_is_wrong_with_the_file_is_said(tmp_path, content, message) -> None:
    with pytest.raises(BadInput, match=message):
        import_profile("distserve", str(written(tmp_path, content)), Settings())


def test_a_file_that_is_none(tmp_path) -> None:
    (tmp_path / "text").write_text("no JSON")
    for name in ("text", "nothing"):
        with pytest.raises(BadInput, match=r"JSON|cannot be read"):
            import_profile("distserve", str(tmp_path / name), Settings())
