"""The gate on runs of vLLM's own servers: two behind our router, and one asked by vLLM's own client
(docs/reports/2026-11-h200-servers.md)."""

import csv
from pathlib import Path

import numpy as np
import pytest
from held_points import hold
from servetwin.experiments.registry.catalog import MEASURED
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.replay import chat
from servetwin.experiments.validation.replay.packed_runs import routers
from servetwin.experiments.validation.score import score

FOLDER = MEASURED / "h200-servers"
ROUTED = FOLDER / "runs-llama-3.1-8b.json.gz"
SEEDS = 2


def test_two_servers_behind_a_router_are_within_what_the_report_says() -> None:
    """Over the limits of 1 and 3 points, and always too high: what the servers do is not modelled."""
    profile, runs = chat.read(ROUTED)
    assert len(runs) == 10
    assert all(len(run.requests) == 600 for run in runs)
    said = [chat.simulate(run, profile, SEEDS) for run in runs]
    met = {run.name: one.met for run, one in zip(runs, said, strict=True)}
    hold("h200-servers/runs-llama-3.1-8b.json.gz", met, SEEDS)
    gaps = np.array([chat.gap(run, one) for run, one in zip(runs, said, strict=True)])
    assert np.abs(gaps).mean() <= 2.3
    assert gaps.max() <= 5.2
    assert (np.abs(gaps) > 3.9).sum() <= 2
    for others in chat.trivial(runs).values():
        assert np.abs(gaps).mean() < 0.2 * np.abs(others).mean()


def test_a_router_of_a_users_comes_along() -> None:
    _, runs = chat.read(ROUTED)
    own = [run for run in runs if routers(run.experiment)]
    assert [run.name for run in own] == ["llama-3.1-8b-03-own", "llama-3.1-8b-07-own"]
    with own[0].spec("h200-servers/llama-3.1-8b") as experiment:
        file = Path(str(experiment.deployment.router))
        assert "class FewestBefore" in file.read_text()
    assert not file.exists()


@pytest.mark.parametrize("rate", [16, 19])
def test_what_vllms_own_client_measured(rate: int, tmp_path: Path) -> None:
    file = FOLDER / f"bench-llama-3.1-8b-{rate}.json"
    experiment = load(str(FOLDER / f"bench-llama-3.1-8b-{rate}.yaml"))
    scored = score(file, tmp_path / "out.csv", experiment=experiment, jobs=1)
    assert [abs(s.gap_met or 0.0) <= 0.2 for s in scored] == [True]
    with (tmp_path / "out.csv").open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    for name, most in (("tpot", 0.02), ("itl", 0.025), ("e2el", 0.045), ("ttft", 0.17)):
        off = float(row[f"sim_mean_{name}_ms"]) / float(row[f"mean_{name}_ms"]) - 1.0
        assert -most <= off <= 0.005, name
