"""Quality beside goodput where policies may leave steps out: of two runs, of two collections, and in reports."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from servetwin.experiments.assembly import build
from servetwin.experiments.reporting import report
from servetwin.experiments.reporting.document import Table
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.compare_grids import compare_grids, read_collection
from servetwin.experiments.validation.comparison.compare_runs import compare

from servetwin import compare as compare_results

KEYS = ("mean_quality", "quality_goodput", "attainment_at_full_steps", "steps_run")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Folders and summaries of the same requests with all steps, with fewer, and without a word of steps."""
    found = {}
    for name, policy, sets in (
        ("all", "edf", []),
        ("fewer", "fewer-steps", []),
        ("other", "fewer-steps", [("seed", 7)]),
        ("silent", "edf", [("pipeline.modules.unet.actions", None)]),
    ):
        folder = tmp_path_factory.mktemp(name) / "run"
        asked = [("requests", 60), ("rate", 0.9), ("policy", policy), ("workload.draws", "seeded"), *sets]
        found[name] = folder, build.run(load("sdxl-actions-synthetic", asked), folder).as_dict()
    return found


def test_two_runs_show_quality_beside_goodput(runs, servetwin):
    (one, first), (other, second) = runs["all"], runs["fewer"]
    found = compare(one, other)["quality"]
    assert list(found) == [*KEYS]
    mean, timely, full, steps = found.values()
    assert mean["first"] == 1.0 > mean["second"] == second["quality"]["mean_quality"]
    assert timely["gap"] == second["quality"]["quality_goodput"] - first["quality"]["quality_goodput"]
    assert full["second"] == pytest.approx(100 * second["quality"]["attainment_at_full_steps"])
    assert steps["first"] == 100.0
    assert steps["second"] == pytest.approx(
        100 * second["quality"]["steps_run"] / (second["quality"]["steps_run"] + second["quality"]["steps_skipped"])
    )
    code, out, err = servetwin("compare", one, other)
    assert code == 0, err
    (line,) = [line.split() for line in out.splitlines() if line.startswith(" quality, mean")]
    assert line[2:] == ["1.000", f"{mean['second']:.3f}", f"{mean['gap']:+.3f}"]
    rows = {row["metric"]: row for row in compare_results(one, other)}
    assert rows["quality_goodput"]["gap"] == timely["gap"]


def test_a_run_without_actions_has_no_quality(runs, servetwin):
    (silent, _), (fewer, summary) = runs["silent"], runs["fewer"]
    pair = compare(silent, fewer)["quality"]["mean_quality"]
    assert pair == {"first": None, "second": summary["quality"]["mean_quality"], "gap": None}
    assert "quality" not in compare(silent, silent)
    code, out, _ = servetwin("compare", silent, silent)
    assert code == 0
    assert "quality" not in out


def test_two_collections_show_quality_in_each_cell(runs, servetwin, tmp_path: Path):
    for side, names in (("a", ("all", "fewer")), ("b", ("all", "other"))):
        for name in names:
            copytree(runs[name][0], tmp_path / side / name)
    rows, _ = compare_grids(*(read_collection(tmp_path / side) for side in "ab"))
    worth = {name: summary["quality"] for name, (_, summary) in runs.items() if name != "silent"}
    cell = {row["policy"]: row for row in rows}["fewer-steps"]
    assert cell["quality_second"] == worth["other"]["mean_quality"]
    gap = worth["other"]["quality_goodput"] - worth["fewer"]["quality_goodput"]
    assert cell["quality_goodput_gap"] == pytest.approx(gap)
    code, out, err = servetwin("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0, err
    assert f"quality in time, per second: |B - A| mean {abs(gap) / 2:.3f}, max {abs(gap):.3f}" in out
    code, out, err = servetwin("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert code == 0, err
    assert json.loads(out)["cells"] == rows


def test_reports_of_one_run_and_of_two_show_quality(runs):
    folders = [runs[name][0] for name in ("all", "fewer")]
    alone = report.document(folders[1:])
    mean = f"{runs['fewer'][1]['quality']['mean_quality']:.3f}"
    assert ("quality, mean", mean) in alone.facts
    both = report.document(folders)
    tables = {t.caption: t for s in both.sections for t in s.content if isinstance(t, Table)}
    assert tables["Quality, by the experiment's table"].rows[0] == ["quality, mean", "1.000", mean]
    (side,) = [s for s in both.sections if s.title == "Side by side"]
    assert [row[:3] for row in side.content[0].rows if row[0] == "quality, mean"] == [
        ["quality, mean", "1.000", mean]
    ]
    assert all(
        "uality" not in t.caption
        for s in report.document([runs["silent"][0]]).sections
        for t in s.content
        if isinstance(t, Table)
    )
