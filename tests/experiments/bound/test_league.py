"""``servetwin league``: the order, who is told apart, the bound, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import run
from servetwin.experiments.bound.league import DIFFUSION, LANGUAGE, _ranked, league
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps import sweep

WORKLOADS = ("palette-256-rtx4090", "dit-xl2-256-rtx4090")


def test_the_league_counts_what_runs_give_and_no_policy_passes_the_bound(servetwin, tmp_path: Path) -> None:
    asked = ["--rate", "0.9", "--requests", "60", "--seeds", "2", "--set", "time.noise=false", "--jobs", "1"]
    asked += ["--policy", "fcfs", "--policy", "neustream", "--json", "--out", tmp_path / "league.parquet"]
    code, out, error = servetwin("league", *WORKLOADS, *asked)
    assert code == 0, error
    said = json.loads(out)
    assert [s["policy"] for s in said["standings"]] == ["neustream", "fcfs"]
    by_hand = []
    for seed in (0, 1):
        sets = [("policy", "fcfs"), ("rate", 0.9), ("requests", 60), ("seed", seed), ("time.noise", False)]
        by_hand.append(run(load(WORKLOADS[0], [*sets, ("workload.draws", "seeded")])).attainment)
    fcfs = said["standings"][1]["workloads"]
    assert fcfs[WORKLOADS[0]]["attainment"] == pytest.approx(sum(by_hand) / 2)
    for standing in said["standings"]:
        for name, own in standing["workloads"].items():
            assert own["attainment"] <= said["bounds"][name]["bound"]
            assert 0.0 <= own["attainment_low"] <= own["attainment"] <= own["attainment_high"] <= 1.0
        assert 0.0 < standing["share_of_bound"] <= 1.0
    table = parquet.read_table(tmp_path / "league.parquet").to_pylist()
    assert [(r["place"], r["policy"], r["workload"]) for r in table] == [
        (place, policy, name) for place, policy in enumerate(("neustream", "fcfs"), 1) for name in WORKLOADS
    ]


def test_without_a_bound_nothing_is_said_of_one(servetwin) -> None:
    asked = ["--requests", "5", "--seeds", "2", "--jobs", "1", "--policy", "edf", "--no-bound"]
    code, out, error = servetwin("league", "dit-s2-256-rtx4090", *asked)
    assert code == 0, error
    assert "not told apart from" in out
    assert "bound" not in out


def test_policies_are_told_apart_by_differences_seed_by_seed() -> None:
    met = {
        "a": {"w": [0.90, 0.50, 0.70]},
        "b": {"w": [0.88, 0.48, 0.68]},  # far fewer seeds' spread apart from a, and always by the same
        "c": {"w": [0.70, 0.66, 0.69]},
    }
    found = _ranked(met, {"w": [1.0, 0.5, 1.0]}, {"w": 5000}, {}, range(3))
    assert [(s.policy, list(s.alike)) for s in found.standings] == [("a", ["c"]), ("c", ["b"]), ("b", [])]
    assert found.standings[0].share == pytest.approx((0.9 + 1.0 + 0.7) / 3)


def test_seeds_that_agree_by_chance_say_no_more_than_their_requests() -> None:
    met = {"a": {"w": [0.98, 0.98, 0.98]}, "b": {"w": [0.96, 0.96, 0.96]}}  # of 50 each: one more under each seed
    first, second = _ranked(met, {}, {"w": 50}, {}, range(3)).standings
    assert list(first.alike) == ["b"]
    for interval in (first.attainment, first.by_workload["w"], second.attainment):
        assert interval.low < interval.mean - 0.01
        assert interval.mean + 0.005 < interval.high <= 1.0
    # Two workloads tell the mean of both as closely as so many more requests.
    met = {p: {"w": own["w"], "v": own["w"]} for p, own in met.items()}
    assert _ranked(met, {}, {"w": 50, "v": 50}, {}, range(3)).standings[0].attainment.low > first.attainment.low


def test_the_rates_of_the_leagues_are_those_of_the_figures() -> None:
    ends = {}
    for name in ("figure11", "figure12"):
        for block in sweep.read(sweep.find(name)).sweeps:
            ends[block.extends] = max(block.vary["rate"])
    assert ends == DIFFUSION
    bases = {b.extends: b.set["rate"] for b in sweep.read(sweep.find("figure14")).sweeps}
    assert bases == LANGUAGE


def test_workloads_of_two_kinds_are_refused() -> None:
    with pytest.raises(BadInput, match="do not serve the same workloads"):
        league({"palette-256-rtx4090": [], "opt-13b-a6000": []})


def test_a_policy_that_was_asked_for_has_to_fit() -> None:
    with pytest.raises(BadInput, match="language models"):
        league({"palette-256-rtx4090": []}, ["vllm"], bounds=False)


def test_a_policy_that_lacks_something_of_the_requests_is_left_out() -> None:
    found = league({"opt-13b-a6000": [("requests", 12)]}, seeds=2, bounds=False, jobs=1)
    assert sorted(found.left_out) == ["sjf", "srpt-llm"]
    assert "needs predicted output lengths" in found.left_out["sjf"]
    assert len(found.standings) >= 10


def test_quality_stands_beside_attainment_where_steps_may_be_left_out(servetwin) -> None:
    policies = ["--policy", "edf", "--policy", "fewer-steps"]
    asked = ["sdxl-actions-synthetic", "--rate", "0.9", "--requests", "40", "--seeds", "2", "--jobs", "1", *policies]
    code, _, error = servetwin("league", *asked)
    assert code == 2
    assert "steps that are left out" in error
    assert "--no-bound" in error
    code, out, error = servetwin("league", *asked, "--no-bound", "--json")
    assert code == 0, error
    own = {s["policy"]: s["workloads"]["sdxl-actions-synthetic"] for s in json.loads(out)["standings"]}
    of_each = []
    for seed in (0, 1):
        sets = [("policy", "fewer-steps"), ("rate", 0.9), ("requests", 40), ("seed", seed)]
        summary = run(load("sdxl-actions-synthetic", [*sets, ("workload.draws", "seeded")])).as_dict()
        of_each.append(summary["quality"])
    for key in ("mean_quality", "quality_goodput"):
        assert own["fewer-steps"][key] == pytest.approx(sum(q[key] for q in of_each) / 2)
    assert own["edf"]["mean_quality"] == 1.0
    code, out, error = servetwin("league", *asked, "--no-bound")
    assert "quality in time is highest with fewer-steps (sdxl-actions-synthetic)" in out
