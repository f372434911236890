"""The scoreboard in the documents is what was scored, of the recordings that are here, and comes out so again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.validation import points, scoreboard
from servetwin.experiments.validation.baselines import PREDICTORS, baselines
from servetwin.experiments.validation.comparison import run_table
from servetwin.experiments.validation.score import Scored
from servetwin.experiments.validation.scoreboard import MARKERS, ROWS, Kept, Row

AGAIN = "python -m servetwin.experiments.validation.scoreboard"

of_the_checkout = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]


def test_what_is_kept_is_of_the_recordings_that_are_here() -> None:
    assert [row.name for row in scoreboard.stale()] == [], AGAIN
    assert list(scoreboard.kept()) == [row.name for row in ROWS], AGAIN


@pytest.mark.parametrize("page", [pytest.param(page, marks=of_the_checkout) for page in scoreboard.PAGES])
def test_pages_show_what_is_kept(page: str) -> None:
    text = (scoreboard.ROOT / page).read_text()
    assert text == scoreboard.with_table(text, scoreboard.PAGES[page](scoreboard.everything())), AGAIN


@pytest.mark.parametrize("name", ["rtx4090", "h200-compiled/diffusion", "h200-compiled-whole/diffusion"])
def test_rows_come_out_as_they_are_kept(name: str) -> None:
    """A cheap part, live: a change of the simulation that moves scores must not leave the tables behind."""
    row = next(row for row in ROWS if row.name == name)
    scored = scoreboard.scored_of(row, jobs=1)
    assert scoreboard.of(row, scored) == scoreboard.kept()[name], f"{AGAIN} --all"
    assert scoreboard.points_of(row, scored) == points.kept()[name], f"{AGAIN} --all"


def test_rows_within_the_limit_stay_there() -> None:
    """Which are: no row is listed that is not kept, and none of them may leave its limit."""
    kept = scoreboard.kept()
    assert scoreboard.lost(kept) == []
    assert set(scoreboard.WITHIN) <= set(kept)
    name = scoreboard.WITHIN[0]
    assert scoreboard.lost({**kept, name: replace(kept[name], gap=(1.0, 3.0))}) == []
    for gap in ((1.01, 2.0), (0.5, 3.01)):
        (line,) = scoreboard.lost({**kept, name: replace(kept[name], gap=gap)})
        assert line == f"{name} was within 1.00 / 3.00 points, and is {gap[0]:.2f} / {gap[1]:.2f} off"


def test_the_artifact_is_predicted_as_it_is_kept() -> None:
    """Predictors look at what was measured alone. That the runs are simulated as well as ever is `test_fidelity`."""
    _, runs = run_table.read(scoreboard.MEASURED / "neustream_ae.csv")
    measured = [Scored(run, {"met": run.met, "finished": run.finished, "mean_batch_size": None}) for run in runs]
    simpler = [b for b in baselines(Path("nowhere"), measured, seeds=1) if b.name in PREDICTORS]
    kept = scoreboard.kept()["neustream_ae.csv"]
    assert (kept.runs, kept.scores) == (len(runs), len(runs))
    assert kept.others == {b.name: scoreboard._gap(b.scored) for b in simpler}


def test_another_recording_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("runs.csv", "made here", "index.md", "no")
    (tmp_path / "runs.csv").write_text("one")
    monkeypatch.setattr(scoreboard, "MEASURED", tmp_path)
    monkeypatch.setattr(scoreboard, "KEPT", tmp_path / "scoreboard.json")
    monkeypatch.setattr(points, "KEPT", tmp_path / "points.csv")
    monkeypatch.setattr(scoreboard, "ROWS", (row,))
    assert scoreboard.stale((row,)) == [row]
    result = scoreboard.Result(
        scoreboard.digest("runs.csv"), 1, 1, (0.5, 1.0), (1, 1), (0, 0), (2, 3), {"x": (1.0, 2.0)}
    )
    scoreboard.keep(row, result, [points.Point(row.name, "one", "no", 100, 50, (50.5,))])
    assert scoreboard.kept() == {"runs.csv": result}
    assert scoreboard.stale((row,)) == []
    (tmp_path / "runs.csv").write_text("two")
    assert scoreboard.stale((row,)) == [row]


def test_tables_are_put_between_the_markers() -> None:
    page = f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n"
    new = scoreboard.with_table(page, "new")
    assert new == f"before\n{MARKERS[0]}\n\nnew\n\n{MARKERS[1]}\nafter\n"
    assert scoreboard.with_table(new, "new") == new
    with pytest.raises(BadInput, match="no place"):
        scoreboard.with_table("nothing", "new")


def test_a_row_that_says_it_was_predicted_blind_says_how_far_off() -> None:
    for row in ROWS:
        assert ("predicted" in row.blind) == (row.predicted is not None), row.name


def test_cells_that_decide_nothing_are_empty() -> None:
    kept = scoreboard.kept()
    row = next(row for row in ROWS if row.name == "rtx4090")
    own = [points.Point(row.name, "one", "no", 100, 50, (50.5,)), points.Point(row.name, "two", "no", 100, 50, (60,))]
    found = Kept({r.name: kept[row.name] for r in ROWS}, {r.name: own for r in ROWS})
    lines = scoreboard.short_table(found).splitlines()
    line = next(x for x in lines if row.what in x)
    assert line.endswith(f"| {kept['rtx4090'].gap[0]:.2f} / {kept['rtx4090'].gap[1]:.2f} | 1/2 |  |  |")
    assert scoreboard.ROWS[1].name == "neustream_ae.csv, dates unknown" == replace(ROWS[0], dates=False).name
