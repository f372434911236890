"""``servetwin bound`` on workloads and run folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servetwin.experiments.assembly.build import run as run_experiment
from servetwin.experiments.bound.most_met import most_met
from servetwin.experiments.spec.loading import load

QUIET = ["--set", "time.noise=false"]


def told(servetwin, *arguments: object) -> str:
    code, out, err = servetwin("bound", *arguments)
    assert code == 0, err
    return out


def test_of_a_workload_every_policy_is_within_the_bound(servetwin) -> None:
    said = json.loads(told(servetwin, "dit-xl2-256-rtx4090", "--rate", "0.8", "--requests", "60", *QUIET, "--json"))
    assert said["requests"] == 60
    assert not said["noise"]
    assert {"neustream", "edf", "fcfs", "clockwork", "EDF with hindsight"} <= said["met"].keys()
    assert 0 < max(said["met"].values()) == said["best_met"] <= said["bound"] < 60
    assert said["gap"] == said["bound"] - said["best_met"]
    assert said["share_of_bound"]["edf"] == said["met"]["edf"] / said["bound"]


def test_a_small_instance_is_solved_exactly_and_its_schedule_is_served(servetwin, tmp_path: Path) -> None:
    toy = tmp_path / "toy.yaml"
    toy.write_text(
        "extends: palette-256-rtx4090\nname: toy\nworkload: {requests: 5, draws: seeded, arrivals: {rate: 20.0},"
        " steps: {unet: {draw: constant, steps: 2}}}\nslo: {factor: 1.5}\ndeployment: whole\n"
        "time: {table: scheduler, noise: false, costs: false, whole: false, transport: false}\n"
    )
    said = json.loads(told(servetwin, str(toy), "--json"))
    assert said["method"] == "exact"
    assert said["optimal"]
    assert said["bound"] == said["best_met"] == said["met"]["the bound's own schedule"]


def test_of_a_run_folder_the_bound_is_of_its_own_requests(servetwin, tmp_path: Path) -> None:
    experiment = load("dit-xl2-256-rtx4090", [("rate", 0.8), ("requests", 40), ("time.noise", False)])
    met = run_experiment(experiment, tmp_path / "run").met
    said = json.loads(told(servetwin, str(tmp_path / "run"), "--json"))
    assert said["met"]["this run"] == met == said["met"]["neustream"] <= said["bound"]
    assert said["bound"] == most_met(experiment, policies=False).most


def test_with_noise_both_bounds_are_told(servetwin) -> None:
    text = told(servetwin, "dit-xl2-256-rtx4090", "--rate", "0.8", "--requests", "40", "--no-policies")
    assert "whatever times are drawn" in text
    found = most_met(load("dit-xl2-256-rtx4090", [("rate", 0.8), ("requests", 40)]), policies=False)
    assert found.at_mean <= found.most <= 40


@pytest.mark.parametrize(
    ("argument", "what"), [("no-such-thing", "no-such-thing"), ("matplotagent-rtx4090", "one language model")]
)
def test_what_has_no_bound_is_refused_in_one_line(argument: str, what: str, servetwin) -> None:
    code, out, error = servetwin("bound", argument)
    assert code == 2
    assert not out
    assert what in error
    assert error.count("\n") == 1
