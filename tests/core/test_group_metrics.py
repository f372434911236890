"""Jain's index by its definition, for shares of any size."""

from __future__ import annotations

import pytest
from servetwin.core.group_metrics import jain


@pytest.mark.parametrize("unit", [1e-320, 1e-200, 1.0, 1e200, 1e305])
def test_jains_index_does_not_go_by_the_unit(unit: float) -> None:
    """Of 1, 1, 2 and 0 shares it is 16 / (4 * 6); squares of large and small ones are no numbers."""
    assert jain([unit, unit, 2 * unit, 0.0]) == pytest.approx(16 / 24)
    assert jain([unit, unit]) == 1.0


def test_of_nobody_and_of_nothing_there_is_no_index() -> None:
    assert jain([]) is None
    assert jain([0.0, 0.0]) is None
