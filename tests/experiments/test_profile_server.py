"""``servetwin profile PROFILE --url``; servers that answer are in tests/real/vllm/test_server.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.backends.profile_server import measure_server

pytest.importorskip("h11")

from servetwin.real.vllm.profiling.measuring.server_before import line_through

NOBODY = "http://127.0.0.1:9"


def test_a_line_through_medians() -> None:
    points = [(n, 0.002 + 1e-5 * n) for n in (16, 256, 1024) for _ in range(5)] + [(256, 9.0), (1024, 9.0)]
    assert line_through(points) == pytest.approx((0.002, 1e-5))


@pytest.mark.parametrize(
    ("points", "line"),
    [
        ([(10, 0.5), (20, 0.4), (30, 0.3)], (0.4, 0.0)),  # not less for more tokens: the median
        ([(10, -0.5), (20, -0.4)], (0.0, 0.0)),  # nothing that an engine gives back
        ([(100, 0.1), (200, 0.3)], (0.0, pytest.approx(0.0014))),
        ([(100, 0.1)], (0.1, 0.0)),
    ],
)
def test_never_below_nothing(points: list[tuple[int, float]], line: tuple[float, float]) -> None:
    assert line_through(points) == line


def test_what_is_no_server_or_profile_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "served.yaml"
    with pytest.raises(BadInput, match="no server answers"):
        measure_server("cpu/tiny-opt", NOBODY, out)
    with pytest.raises(BadInput, match="no language model"):
        measure_server("cpu/tiny-dit", NOBODY, out)
    assert not out.exists()
