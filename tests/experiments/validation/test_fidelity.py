"""The fidelity gate: the measured runs in this repository, simulated; it fails when a gap grows.

Limits are what the product promises (README), in percentage points of requests; they are not to be loosened to let a
change pass.
"""

from __future__ import annotations

import pytest
from held_points import hold_scored
from servetwin.experiments.validation.comparison import run_table
from servetwin.experiments.validation.score import Gaps, Scored, gaps_of, score

# workload, policy -> mean gap of met requests, largest, mean gap of finished requests
LIMITS = {
    ("dit-s2-256-rtx4090", "neustream"): (1.0, 5.0, 1.0),
    ("dit-xl2-256-rtx4090", "neustream"): (0.6, 3.0, 0.6),
    ("palette-256-rtx4090", "neustream"): (0.2, 1.0, 0.2),
    ("sd15-256-rtx4090", "neustream"): (0.3, 2.0, 0.3),
    ("sd15-512-rtx4090", "neustream"): (0.5, 3.0, 0.5),
    ("dit-s2-256-rtx4090", "clockwork"): (3.5, 9.0, 1.0),  # see the README: its met count says little
    ("dit-xl2-256-rtx4090", "clockwork"): (2.0, 5.0, 1.0),
    ("palette-256-rtx4090", "clockwork"): (1.2, 3.0, 1.0),
    ("sd15-256-rtx4090", "clockwork"): (1.2, 3.0, 1.0),
    ("sd15-512-rtx4090", "clockwork"): (1.2, 3.0, 1.0),
}


@pytest.fixture(scope="module")
def scored() -> list[Scored]:
    return score(run_table.NEUSTREAM, seeds=4, jobs=1)


@pytest.fixture(scope="module")
def gaps(scored: list[Scored]) -> dict[tuple[str, str], Gaps]:
    return {(p.workload, p.policy): p for p in gaps_of(scored)}


def test_every_part_has_a_limit(gaps: dict[tuple[str, str], Gaps]) -> None:
    assert set(gaps) == {*LIMITS, ("all", "")}
    assert sum(gaps[k].runs for k in LIMITS) == 167


@pytest.mark.parametrize("part", LIMITS, ids=lambda p: "-".join(p))
def test_gaps_stay_within_their_limits(part: tuple[str, str], gaps: dict[tuple[str, str], Gaps]) -> None:
    mean, largest, finished = LIMITS[part]
    found = gaps[part]
    assert found.met is not None
    assert found.finished is not None
    assert found.met[0] <= mean
    assert found.met[1] <= largest
    assert found.finished[0] <= finished


def test_each_run_stays_within_its_limit(scored: list[Scored]) -> None:
    hold_scored("neustream_ae.csv", scored, 4)


def test_the_seed_example(scored: list[Scored]) -> None:
    """DiT-S/2 at 4 requests per second: NeuStream met 463 of 500, Clockwork finished 88, within 2 points."""
    example = {s.run.policy: s for s in scored if s.run.workload == "dit-s2-256-rtx4090" and s.run.rate == 4.0}
    assert (example["neustream"].run.met, example["clockwork"].run.finished) == (463, 88)
    assert abs(example["neustream"].gap_met or 0.0) <= 2.0
    assert abs(example["clockwork"].gap_finished or 0.0) <= 2.0


def test_mean_batch_sizes_of_neustream(scored: list[Scored]) -> None:
    found = [s.gap_batch for s in scored if s.run.policy == "neustream" and s.gap_batch is not None]
    assert len(found) > 30
    assert max(abs(g) for g in found) <= 2.5
    assert sum(abs(g) for g in found) / len(found) <= 1.0


def test_neustream_wins_wherever_it_was_measured_to_win(scored: list[Scored]) -> None:
    """Decision fidelity: at each point measured under both, the simulation names the same winner."""
    points: dict[tuple[str, float, float, float], dict[str, Scored]] = {}
    for s in scored:
        points.setdefault((s.run.workload, s.run.rate, s.run.cv, s.run.slo_factor), {})[s.run.policy] = s
    both = [p for p in points.values() if len(p) == 2]
    assert len(both) > 70
    for p in both:
        measured = (p["neustream"].run.met or 0) - (p["clockwork"].run.met or 0)
        simulated = p["neustream"].result["met"] - p["clockwork"].result["met"]
        if abs(measured) > 20:  # repeats of one setting differ by less under NeuStream
            assert (simulated > 0) == (measured > 0), p
