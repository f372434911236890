"""Two 7B models and a code executor on one H200: each recorded run is repeated in simulation. No GPU is needed."""

from __future__ import annotations

import statistics

import pytest
from held_points import hold
from servetwin.experiments.validation.replay import agents as replay_agents


@pytest.fixture(scope="module")
def recording():
    return replay_agents.read()


@pytest.fixture(scope="module")
def compared(recording):
    return replay_agents.compare(recording)


def test_each_run_is_as_measured(compared):
    assert len(compared) == 8
    hold("h200/agents.json.gz", {run.name: run.met[1] for run in compared}, 1)
    assert max(abs(run.gap) for run in compared) <= 0.1
    assert statistics.fmean(abs(run.gap) for run in compared) <= 0.05
    for run in compared:
        real, simulated = run.latency
        assert simulated == pytest.approx(real, rel=0.05), run


def test_where_one_policy_is_best_it_is_so_for_real_too(compared):
    found = replay_agents.winners(compared)
    assert len(found) == 4
    assert not [pair for pair in found.values() if "" not in pair and pair[0] != pair[1]]
    assert sum("" not in pair for pair in found.values()) >= 2


def test_it_is_contention_that_makes_them_agree(recording):
    """Were the engines on devices of their own, requests would take half as long."""
    free = replay_agents.compare(recording, contention=False)
    assert max(run.latency[1] / run.latency[0] for run in free) < 0.6
    assert max(abs(run.gap) for run in free) > 0.4


def test_the_rows_of_table_2(recording):
    found = replay_agents.table2(recording)
    assert abs(found["switching"]) < 0.02
    assert 0.0 < found["scheduling"] < found["adapter"] < 0.05
    assert 0.0 < found["communication"] < 0.02


def test_the_table_can_be_printed():
    text = replay_agents.table()
    assert "vllm-1.2" in text
    assert "communication" in text
