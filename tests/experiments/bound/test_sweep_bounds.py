"""``servetwin sweep --bound``: what `most_met` says of each point, once for all policies of a place."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from servetwin.experiments.bound import sweep_bounds
from servetwin.experiments.bound.most_met import most_met
from servetwin.experiments.plotting.sweep_plot import draw
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.repeat import Repeated

SWEEP = """
extends: palette-256-rtx4090
set: {requests: 40, workload.draws: seeded, time.noise: false, seed: 5}
grid: {policy: [neustream, fcfs], rate: [0.8, 2.0]}
"""


def test_each_place_has_its_bound_once_and_policies_their_share_of_it(tmp_path: Path, servetwin, monkeypatch):
    asked: list[str] = []

    def counted(experiment, *rest, **more):
        asked.append(experiment.model_dump_json(exclude={"policy"}))
        return most_met(experiment, *rest, **more)

    monkeypatch.setattr("servetwin.experiments.bound.most_met.most_met", counted)
    (tmp_path / "near.yaml").write_text(SWEEP)
    options = ("--seeds", 2, "--bound", "--jobs", 1, "--out", tmp_path / "near.csv")
    code, text, problem = servetwin("sweep", tmp_path / "near.yaml", *options)
    assert code == 0, problem
    whole = [one for one in asked if '"requests":40' in one]
    assert len(whole) == len(set(whole)) == 4  # two rates and two seeds, whatever the policies
    with (tmp_path / "near.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        sets = [("requests", 40), ("workload.draws", "seeded"), ("time.noise", False), ("rate", float(row["rate"]))]
        most = [most_met(load("palette-256-rtx4090", [*sets, ("seed", s)]), policies=False).at_mean for s in (5, 6)]
        assert float(row["bound"]) == pytest.approx(sum(most) / 80)
        assert 0.0 < float(row["of_bound"]) <= 1.0
        assert float(row["of_bound_low"]) <= float(row["of_bound"]) <= float(row["of_bound_high"])
        if len(set(most)) == 1:
            assert float(row["of_bound"]) == pytest.approx(float(row["met"]) / most[0])
    said = [float(row["of_bound"]) for row in rows if row["policy"] == "fcfs"]
    lines = text[text.index("fcfs, in % of") :].splitlines()
    assert f"mean {50 * sum(said):.1f}, from {100 * min(said):.1f} to {100 * max(said):.1f}" in lines[1]

    draw(tmp_path / "near.csv", tmp_path / "near.png")
    with (tmp_path / "near.data.csv").open(newline="") as file:
        drawn = [point for point in csv.DictReader(file) if point["kind"] == "bound"]
    of_rates = {row["rate"]: float(row["bound"]) for row in rows}
    assert {point["x"]: float(point["y"]) for point in drawn} == of_rates

    asked.clear()
    again = servetwin("sweep", tmp_path / "near.yaml", *options)
    assert again[1] == text
    assert not [one for one in asked if '"requests":40' in one]  # from the cache


def test_where_no_bound_is_known_nothing_is_run_or_written(tmp_path: Path, servetwin):
    (tmp_path / "agents.yaml").write_text("extends: matplotagent-rtx4090\ngrid: {rate: [0.1, 0.2]}\n")
    code, text, problem = servetwin("sweep", tmp_path / "agents.yaml", "--bound", "--out", tmp_path / "a.csv")
    assert code == 2
    assert text == ""
    assert problem.startswith("servetwin: --bound: no bound of matplotagent-rtx4090")
    assert problem.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["agents.yaml"]


def test_seeds_that_agree_by_chance_are_not_sure_of_a_share():
    experiment = load("palette-256-rtx4090", [("requests", 20), ("workload.draws", "seeded")])
    rows = [{"met": 9, "requests": 20, "attainment": 0.45, "duration": d} for d in (1.0, 2.0, 3.0)]
    point = Repeated(experiment, rows)
    (row,) = sweep_bounds.columns([point], lambda every, _: [{"requests": 20, "at_mean": 18} for _ in every], 0.95)
    assert row["of_bound"] == pytest.approx(0.5)
    assert row["of_bound_high"] - row["of_bound_low"] > 0.2
    (none,) = sweep_bounds.columns([point], lambda every, _: [{"requests": 20, "at_mean": 0} for _ in every], 0.95)
    assert none["bound"] == 0.0
    assert none["of_bound"] is None


def test_a_bound_is_of_simulated_points(tmp_path: Path, servetwin):
    (tmp_path / "near.yaml").write_text(SWEEP)
    options = ("--backend", "real", "--bound", "--out", tmp_path / "runs")
    code, _, problem = servetwin("sweep", tmp_path / "near.yaml", *options)
    assert code == 2
    assert "--bound" in problem
