"""Holds measured runs that a test has simulated anyway to where the scoreboard has them, one by one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import cache

from servetwin.experiments.validation import points
from servetwin.experiments.validation.points import Point
from servetwin.experiments.validation.score import Scored


class PointsMovedWarning(UserWarning):
    """Some runs are simulated otherwise than the scoreboard says: it is to be made again."""


@cache
def kept() -> dict[str, list[Point]]:
    return points.kept()


def hold(row: str, met: Mapping[str, float], seeds: int) -> None:
    """Fail if a run of *row* was within its limit and no longer is; *met* is what it met on average by its first
    *seeds* seeds, by the run's name. What has moved otherwise, or come inside, is told as a warning."""
    judged = points.judge(kept()[row], met, seeds)
    if told := (*judged.came, *judged.moved):
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # pytest shows it, and does not fail for it
            what = "\n  ".join(("python -m servetwin.experiments.validation.scoreboard --all", *told))
            warnings.warn(what, PointsMovedWarning, stacklevel=2)
    assert not judged.left, "\n".join(judged.left)


def hold_scored(row: str, scored: Iterable[Scored], seeds: int) -> None:
    """Likewise of what `score` gave."""
    hold(row, {point.name: point.simulated for point in points.points_of(row, "", scored)}, seeds)
