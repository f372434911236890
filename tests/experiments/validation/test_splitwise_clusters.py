"""Splitwise's clusters (ISCA'24, Figures 16 and 18), a tenth of their machines: who keeps the paper's nine limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.validation import splitwise
from servetwin.experiments.validation.splitwise import A100, CLUSTERS, COST, H100, POWER, Cluster, broken

#: What the report says of a tenth of the machines; each run is some seconds.
SCALE, SECONDS = 0.2, 40.0


def cluster(name: str, trace: str) -> Cluster:
    (found,) = (c for c in CLUSTERS["power", trace] if c.name == name)
    return found.scaled(SCALE)


def test_clusters_have_the_same_power_or_cost_as_the_paper_says() -> None:
    for (budget, _), clusters in CLUSTERS.items():
        of = POWER if budget == "power" else COST
        known = 40 * of[H100]
        for one in clusters:  # the paper's own rounding down, and its table of cost for machines of less power
            assert 0.85 < one.total(of) / known <= 1.07, (budget, one)
    a100, aa = (c for c in CLUSTERS["power", "conversation"] if c.total(COST) == 70 * COST[A100])
    assert (a100.machines, aa.machines) == ("70P/T", "45P, 25T")
    assert all(
        one.total(POWER) <= aa.total(POWER) + 1e-9 and one.prefill[0] and one.decode and one.decode[0]
        for one in aa.splits(5, POWER)
    )


@pytest.mark.parametrize(
    ("trace", "rate", "keep", "not_keep"),
    [
        # As Figure 16a: Splitwise-HH is better than both baselines.
        ("code", 14.0, ["Splitwise-HH"], ["Baseline-A100", "Baseline-H100"]),
        # As Figure 18a: Splitwise-AA has more throughput than Baseline-A100, of the same cost and power.
        ("conversation", 18.0, ["Splitwise-AA"], ["Baseline-A100"]),
    ],
)
def test_the_winners_are_the_papers_with_decode_steps_as_its_simulator_takes_them(
    tmp_path: Path, trace: str, rate: float, keep: list[str], not_keep: list[str]
) -> None:
    profiles = splitwise.looked_up(tmp_path)
    for name in (*keep, *not_keep):
        asked = splitwise.experiment(cluster(name, trace), trace, rate, SECONDS, profiles=profiles)
        wrong = broken(splitwise.slowdowns(asked))
        assert bool(wrong) == (name in not_keep), (name, wrong)


def test_with_decode_steps_as_measured_its_split_of_a100s_is_too_few_that_decode() -> None:
    """And of the same machines another split holds more."""
    published = cluster("Splitwise-AA", "conversation")
    other = Cluster("Splitwise-AA", (5, A100), (9, A100))
    assert published.machines == "9P, 5T"
    wrong = {
        one: broken(splitwise.slowdowns(splitwise.experiment(one, "conversation", 10.0, SECONDS)))
        for one in (published, other)
    }
    assert wrong[published]
    assert not wrong[other]


def test_a_request_alone_on_an_a100_has_a_slowdown_of_one() -> None:
    one = Cluster("alone", (1, A100))
    found = splitwise.slowdowns(splitwise.experiment(one, "conversation", 0.001, 3000.0))
    for name, values in found.items():
        assert values == pytest.approx((1.0, 1.0, 1.0), rel=0.02), name


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    splitwise.main(["--scale", "0.05", "--seconds", "3", "--budget", "power", "--trace", "code"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "same power, code; decode steps: as measured"
    assert [line.split()[0] for line in lines[2:8]] == [c.name for c in CLUSTERS["power", "code"]]
    same = 2 * splitwise.POWER[splitwise.H100]
    off = {c.name: c.scaled(0.05).total(splitwise.POWER) / same - 1.0 for c in CLUSTERS["power", "code"]}
    told = [line.split()[0] for line in lines if "has not the same power" in line]
    assert told == [name for name, by in off.items() if abs(by) > 0.1] != []


def test_splits_below_none_are_refused() -> None:
    with pytest.raises(BadInput, match="--splits: is -1"):
        splitwise.main(["--splits", "-1"])
