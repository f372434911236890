"""Tables of chunks over context and of decodes beside chunks: between their places, beyond them, and in a step."""

from __future__ import annotations

import doctest
import itertools
from typing import Any

import pytest
from pydantic import ValidationError
from servetwin.core.llm.serving import freed_blocks
from servetwin.profiles.importing import devices, write
from servetwin.profiles.llm import hf_config, step_grids
from servetwin.profiles.llm.schema import Mixed, PrefillData, TokenModel
from servetwin.profiles.llm.step_grids import Beside, OverContext
from servetwin.profiles.llm.step_table import TokenTable

AXES = {"tokens": (16, 512), "context": (0, 1000, 4000), "batch": (1, 8, 64), "per_sequence": (100, 1000)}


def plane(tokens: float, context: float, batch: float, each: float) -> float:
    """Straight along each axis, with all products, so that lines between places are exact."""
    return (1 + 0.01 * tokens) * (1 + 0.001 * context) * (2 + 0.1 * batch) * (3 + 0.002 * each)


GRID = Beside(**AXES, seconds=tuple(itertools.starmap(plane, itertools.product(*AXES.values()))), statistic="made up")


@pytest.mark.parametrize(
    "module", [step_grids, hf_config, freed_blocks, devices, write], ids=lambda m: str(m.__name__)
)
def test_the_examples_in_the_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_every_place_is_as_it_was_measured() -> None:
    for place in itertools.product(*AXES.values()):
        assert GRID(*place) == pytest.approx(plane(*place))


@pytest.mark.parametrize("place", [(264, 500, 4, 550), (16, 3000, 33, 100), (100, 0, 64, 999)])
def test_between_them_lie_straight_lines(place: tuple[float, ...]) -> None:
    assert GRID(*place) == pytest.approx(plane(*place))


def test_beyond_the_largest_batch_and_length_lines_go_on_and_elsewhere_the_ends_hold() -> None:
    assert GRID(512, 4000, 128, 2000) == pytest.approx(plane(512, 4000, 128, 2000))
    assert GRID(2048, 9000, 8, 100) == pytest.approx(plane(512, 4000, 8, 100))
    assert GRID(1, 0, 1, 10) == pytest.approx(plane(16, 0, 1, 100))
    over = OverContext(tokens=(16, 64), context=(0, 100), seconds=(0.0, 1.0, 0.0, 4.0), statistic="made up")
    assert over(64, 300) == pytest.approx(12.0)
    assert over(640, 100) == pytest.approx(4.0)


def test_what_is_no_grid_is_told() -> None:
    with pytest.raises(ValidationError, match="36 places but 2 seconds"):
        Beside(**AXES, seconds=(1.0, 2.0), statistic="made up")
    with pytest.raises(ValidationError, match="batch must increase"):
        Beside(**{**AXES, "batch": (8, 8)}, seconds=(1.0,) * 24, statistic="made up")


def test_nothing_is_said_twice() -> None:
    with pytest.raises(ValidationError, match="beside is all that decoding adds"):
        Mixed(beside=GRID, attention=2.0)
    over = OverContext(tokens=(16,), context=(0,), seconds=(0.0,), statistic="made up")
    with pytest.raises(ValidationError, match="there are both"):
        PrefillData(
            tokens=(1, 8), seconds=((1.0, 2.0),), between="line", statistic="made up", source={"file": "x"},
            per_pair=1e-9, over_context=over,
        )  # fmt: skip


def test_a_step_is_the_pass_of_all_tokens_and_what_stands_beside() -> None:
    said = {"statistic": "made up", "source": {"file": "here"}}
    model = TokenModel.model_validate(
        {
            "prefill": {
                "tokens": (1, 1024), "seconds": ((1.0, 1024.0),), "between": "line", **said,
                "over_context": {"tokens": (1, 1024), "context": (0, 100), "seconds": (0.0, 5.0, 0.0, 5.0),
                                 "statistic": "s"},
            },
            "line": {"d0": 0.5, "d1": 0.0, "until_batch": 64, "until_context": 10**6, **said},
            "mixed": {"beside": GRID.model_dump()},
        }
    )  # fmt: skip
    table = TokenTable(model)
    assert table.prefill(100, 100.0**2, 100.0 * 40) == pytest.approx(100 + 2.0)
    # 100 tokens and 8 pass together; the 40 before each of the 100 are those of 108.
    beside = plane(100, 40, 8, 550)
    assert table.mixed(100, 100.0**2, 100.0 * 40, 8, 8 * 550) == pytest.approx(108 + 5.0 * 4000 / 108 / 100 + beside)
