"""Each measured run of the scoreboard: whether it is kept, and what is said when it moves."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import held_points
import pytest
from servetwin.core import BadInput
from servetwin.experiments.validation import points, scoreboard
from servetwin.experiments.validation.points import Judged, Point, judge, judge_all

AGAIN = "python -m servetwin.experiments.validation.scoreboard --all"


def point(name: str, *seeds: float, measured: int = 80, requests: int = 100) -> Point:
    return Point("campaign", name, "no", requests, measured, seeds)


def test_what_is_kept_is_what_the_rows_say() -> None:
    """Gaps of the rows are means and largest ones of their points, and the file says of each where it stands."""
    kept, rows = points.kept(), scoreboard.kept()
    assert list(kept) == list(rows) == [row.name for row in scoreboard.ROWS], AGAIN
    for name, own in kept.items():
        sizes = [abs(one.gap()) for one in own]
        found = (round(sum(sizes) / len(sizes), 2), round(max(sizes), 2))
        assert found == pytest.approx(rows[name].gap, abs=0.011), name
        assert len(own) == rows[name].scores, name
        assert len({one.name for one in own}) == len(own), name
    assert points.KEPT.read_text(encoding="utf-8") == points.text(kept.values()), AGAIN


def test_points_are_read_as_they_are_written(tmp_path: Path) -> None:
    own = [point("one", 80, 83.5), point("two, with a comma", 70)]
    (tmp_path / "points.csv").write_text(points.text([own]), encoding="utf-8")
    assert points.kept(tmp_path / "points.csv") == {"campaign": own}
    lines = (tmp_path / "points.csv").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == [
        "campaign,one,no,100,80,81.75,1.75,3,inside,80 83.5",
        'campaign,"two, with a comma",no,100,80,70,-10.00,3,outside,70',
    ]
    (tmp_path / "points.csv").write_text("row,gap\na,1\n", encoding="utf-8")
    with pytest.raises(BadInput, match="has other columns than points have"):
        points.kept(tmp_path / "points.csv")


def test_the_limit_itself_is_within() -> None:
    assert point("at", 83).within_limit
    assert point("at", 77).within_limit
    assert not point("beyond", 83.1).within_limit
    assert point("a third of 3000", 2310, measured=2400, requests=3000).within_limit


def test_a_point_that_leaves_its_limit_is_named() -> None:
    """By two of three seeds: what the third met then is taken to have moved as much."""
    before = [point("a", 82, 83, 81), point("b", 90, 90, 90), point("c", 80, 80, 80)]
    assert judge(before, {"a": 82.5, "b": 90, "c": 80}, 2) == Judged()
    found = judge(before, {"a": 84, "b": 82, "c": 80.5}, 2)
    assert found.left == ("campaign: a was +2.00 points off and is +3.50 (limit 3)",)
    assert found.came == ("campaign: b was +10.00 points off and is +2.00 (limit 3)",)
    assert found.moved == ("campaign: c was +0.00 points off and is +0.50 (limit 3)",)
    assert judge(before, {"b": 91}, 3) == Judged(moved=("campaign: b was +10.00 points off and is +11.00 (limit 3)",))
    assert judge(before, {"b": 69}, 3).moved == ("campaign: b was +10.00 points off and is -11.00 (limit 3)",)
    with pytest.raises(BadInput, match=r"points\.csv: d is not among the points that are kept"):
        judge(before, {"d": 1}, 1)


def test_rows_that_are_scored_anew_are_judged_whole() -> None:
    before = [point("a", 82, 83), point("gone", 1)]
    assert judge_all(before, [point("a", 84, 85), point("new", 1)]).left == (
        "campaign: a was +2.50 points off and is +4.50 (limit 3)",
    )
    assert judge_all([], [point("a", 1)]) == Judged()


def test_tests_fail_for_what_leaves_and_tell_what_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_points, "kept", lambda: {"campaign": [point("a", 82), point("b", 90)]})
    with warnings.catch_warnings(record=True) as told:
        held_points.hold("campaign", {"a": 82, "b": 90}, 1)
    assert told == []
    with pytest.warns(held_points.PointsMovedWarning, match=r"b was \+10\.00 points off and is \+1\.00"):
        held_points.hold("campaign", {"a": 82, "b": 81}, 1)
    with pytest.raises(AssertionError, match=r"a was \+2\.00 points off and is -4\.00"):
        held_points.hold("campaign", {"a": 76}, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in scoreboard.ROWS])
def test_every_point_stays_within_its_limit(name: str) -> None:
    """Those that are replayed for the sake of other tests are held there, by all that these simulate."""
    row = next(row for row in scoreboard.ROWS if row.name == name)
    scored = scoreboard.scored_of(row, seeds=1, jobs=1)
    held_points.hold_scored(name, scored, 1)


def test_a_row_is_not_kept_while_one_of_its_points_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless that is accepted."""
    for module, name in ((scoreboard, "scoreboard.json"), (points, "points.csv")):
        monkeypatch.setattr(module, "KEPT", tmp_path / name)
    monkeypatch.setattr(scoreboard, "PAGES", {})
    row = next(row for row in scoreboard.ROWS if row.source == "rtx4090")
    monkeypatch.setattr(scoreboard, "ROWS", (row,))
    monkeypatch.setattr("sys.argv", ["scoreboard", "--all", "--jobs", "1"])
    scoreboard.main()
    before = points.kept()["rtx4090"]
    first = next(one for one in before if one.within_limit)
    then = [replace(one, by_seed=(float(one.measured),)) if one is first else one for one in before]
    (tmp_path / "points.csv").write_text(points.text([then]), encoding="utf-8")
    capsys.readouterr()
    monkeypatch.setattr(points, "LIMIT", abs(first.gap()) / 2)
    with pytest.raises(SystemExit, match="1 points that were inside their limit are outside"):
        scoreboard.main()
    assert f"has left its limit: rtx4090: {first.name} was +0.00 points off" in capsys.readouterr().out
    assert points.kept()["rtx4090"] == then
    monkeypatch.setattr("sys.argv", ["scoreboard", "--all", "--jobs", "1", "--accept-outside"])
    scoreboard.main()
    assert points.kept()["rtx4090"] == before
