"""What the simulation must be better than: run dates unknown, tables alone, predictors that simulate nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.baselines import (
    TABLES_ALONE,
    baselines,
    between_neighbours,
    favourite,
    mean_of_others,
    nearest,
)
from servetwin.experiments.validation.comparison.run_table import NEUSTREAM, MeasuredRun, read
from servetwin.experiments.validation.score import Scored, gaps_of
from servetwin.experiments.validation.score import score as score_table


def run(rate, met, policy="edf", *, cv=1.0, slo=2.0, finished=None, axis="", requests=100, workload="w"):
    cells = {"axis": axis, "seed": ""}
    done = met if finished is None else finished
    return MeasuredRun(1, cells, workload, policy, rate, cv, slo, requests, met, done, None, None)


def scored(*runs):
    return [Scored(r, {"met": r.met or 0, "finished": r.finished, "mean_batch_size": None}) for r in runs]


# -- predictors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "others", "expected"),
    [
        (2.0, [(1.0, 80), (4.0, 20)], 60.0),  # a third of the way down
        (2.0, [(1.0, 80), (1.5, 70), (4.0, 20), (9.0, 0)], 60.0),  # only the next ones
        (4.0, [(1.0, 80), (2.0, 60)], 20.0),  # beyond the end
        (9.0, [(1.0, 80), (2.0, 60)], 0.0),  # but no less than nothing
        (0.1, [(1.0, 99), (2.0, 60)], 100.0),  # and no more than all
        (4.0, [(1.0, 80)], 80.0),
        (2.0, [(1.0, 80), (1.0, 60), (3.0, 10)], 40.0),  # repeats are averaged
    ],
)
def test_a_line_through_the_neighbours(rate, others, expected):
    assert between_neighbours(run(rate, 0), [run(*other) for other in others])["met"] == pytest.approx(expected)


def test_only_one_axis_counts_the_one_that_is_named():
    others = [run(1.0, 80), run(3.0, 40), run(2.0, 10, cv=0.5), run(2.0, 30, cv=1.5), run(2.0, 50, cv=2.0)]
    assert between_neighbours(run(2.0, 0, axis="rate"), others)["met"] == pytest.approx(60.0)
    assert between_neighbours(run(2.0, 0, axis="cv"), others)["met"] == pytest.approx(20.0)
    assert between_neighbours(run(2.0, 0), others)["met"] == pytest.approx(20.0)  # most settings lie on it
    assert between_neighbours(run(2.0, 0, axis="slo"), [*others, run(2.0, 70, slo=3.0)])["met"] == pytest.approx(70.0)
    assert between_neighbours(run(7.0, 0, cv=9.0), others) == {}


def test_the_nearest_by_ratios():
    others = [run(1.0, 10), run(4.0, 50), run(3.0, 30), run(2.0, 77)]
    assert nearest(run(2.0, 0), others)["met"] == 30.0  # its own setting does not count; 3 is nearer than 1
    assert nearest(run(2.0, 0), [run(1.0, 10), run(4.0, 50)])["met"] == 30.0  # as near as each other
    assert mean_of_others(run(2.0, 0), [run(1.0, 10), run(4.0, 50, finished=70)]) == {"met": 30.0, "finished": 40.0}


def test_a_run_without_rate_or_factor_is_placed_all_the_same():
    others = [run(math.nan, 20), run(math.nan, 40, cv=2.0)]
    assert nearest(run(math.nan, 0, cv=1.5), others)["met"] == 40.0
    assert between_neighbours(run(math.nan, 0, cv=1.5), others)["met"] == pytest.approx(30.0)


def test_a_run_is_left_out_of_what_predicts_it(tmp_path: Path):
    runs = scored(run(1.0, 90), run(2.0, 50), run(3.0, 40), run(1.0, 60, "fcfs"), run(2.0, 10, "fcfs"))
    found = {b.name: b for b in baselines(tmp_path / "runs.parquet", runs, seeds=1)}
    mean = [s.result["met"] for s in found["the mean of the others"].scored]
    assert mean == pytest.approx([45.0, 65.0, 70.0, 10.0, 60.0])
    line = [s.result["met"] for s in found["a line through the neighbours"].scored]
    assert line == pytest.approx([60.0, 65.0, 10.0, 10.0, 60.0])
    assert found["this simulation"].scored == runs


# -- bets -----------------------------------------------------------------------------------------------


def test_who_always_wins():
    rates = {1.0: (90, 50), 2.0: (80, 80), 3.0: (60, 61), 4.0: (70, 10)}
    runs = scored(*(run(r, m, p) for r, both in rates.items() for p, m in zip(("a", "b"), both, strict=True)))
    found = favourite(runs, floor=5.0)
    assert found is not None
    assert (found.policy, found.won, found.tied, found.settings) == ("a", 2, 1, 4)
    assert (found.decided, found.settings_decided) == (2, 2)
    assert favourite(scored(run(1.0, 5), run(2.0, 5))) is None
    assert favourite(scored(run(1.0, 5, "a"), run(1.0, 5, "b"))) is None


# -- the artifact's runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact() -> list[Scored]:
    """The 167 runs as they were measured: predictors need no simulation."""
    _, runs = read(NEUSTREAM)
    return scored(*runs)


def test_what_the_readme_says_of_predictors(artifact):
    found = {b.name: gaps_of(b.scored)[-1] for b in baselines(Path("nowhere"), artifact, seeds=1)}
    assert {name: part.runs for name, part in found.items()} == dict.fromkeys(found, 167)
    gaps = {name: tuple(round(x, 2) for x in part.met) for name, part in found.items()}
    assert gaps["a line through the neighbours"] == (1.87, 31.88)
    assert gaps["the nearest other setting"] == (4.34, 37.40)
    assert gaps["the mean of the others"] == (9.59, 53.52)
    best = favourite(artifact)
    assert best is not None
    assert (best.policy, best.decided, best.settings_decided) == ("neustream", 68, 68)
    assert (best.won, best.tied, best.settings) == (73, 1, 75)


def few(tmp_path: Path) -> Path:
    """Three of the runs that a session's factor moves, and one that had no Clockwork."""
    lines = NEUSTREAM.read_text().splitlines()
    chosen = [
        x for x in lines if x.startswith(("dit-s2-256-rtx4090,clockwork,3,2,3", "dit-s2-256-rtx4090,neustream,3,2,3"))
    ]
    path = tmp_path / "few.csv"
    path.write_text("\n".join([lines[0], *chosen]) + "\n")
    return path


def test_the_command_shows_them(servetwin, tmp_path: Path):
    code, out, err = servetwin(
        "score", few(tmp_path), "--out", tmp_path / "out.csv", "--seeds", 1, "-j", 1, "--baselines"
    )
    assert (code, err) == (0, "")
    for line in ("this simulation", "without run dates", "schedulers' tables alone", "'neustream always wins' names"):
        assert line in out


def test_without_dates_no_session_counts(tmp_path: Path):
    path = few(tmp_path)
    with_dates, without = (score_table(path, seeds=1, jobs=1, dates=dates) for dates in (True, False))
    assert [s.run.start is None for s in without] == [True] * len(without)
    assert [s.result["met"] for s in with_dates] != [s.result["met"] for s in without]
    plain = load("dit-s2-256-rtx4090", without[0].run.overrides())
    assert plain.time.session is None
    assert (
        without[0].result["met"]
        == score_table(path, None, [("time.session", None)], seeds=1, jobs=1)[0].result["met"]
    )


def test_tables_alone_have_no_other_term():
    time = load("dit-s2-256-rtx4090", TABLES_ALONE).time
    off = {name for name, value in time.model_dump().items() if value is False}
    assert off >= {"costs", "whole", "contention", "transport", "noise"}
    assert time.table == "scheduler"
