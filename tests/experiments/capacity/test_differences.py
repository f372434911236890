"""Differences in capacity: on curves whose difference is known, of seeds that agree by chance, of simulated runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.capacity import search as capacity
from servetwin.experiments.capacity.differences import difference
from servetwin.experiments.capacity.root_search import QUANTITIES, Capacity, Curve, Quantity, search
from servetwin.experiments.capacity.targets import Target, attainment, parse
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.statistics import Interval

RATE, SLO = QUANTITIES["rate"], QUANTITIES["slo"]
REQUESTS = 4000
SEVENTY = attainment(0.7)


def searched(curve: Curve, target: Target, start: float = 4.0) -> Capacity:
    (found,) = search(curve.sample, curve.quantity, [target], start=start, curve=curve)
    return found


def system(at: float, luck: Sequence[float], noise: np.random.Generator | None = None, quantity: Quantity = RATE):
    """A curve of attainment that is 70 % *at* a place; each seed has its *luck* everywhere, and runs have *noise*."""

    def share(x: float, own: float) -> float:
        chance = float(noise.normal(0.0, 0.004)) if noise is not None else 0.0
        steep = 3.0 * quantity.harder * math.log(x / at)
        return 1 / (1 + math.exp(steep) * 3 / 7) + own + chance

    def sample(places: Sequence[float]) -> list[list[tuple[int, int]]]:
        return [[(round(min(max(share(x, e), 0.0), 1.0) * REQUESTS), REQUESTS) for e in luck] for x in places]

    return Curve(sample, quantity, 0.95)


def beside(first: Curve, second: Curve, target: Target = SEVENTY) -> Interval:
    for curve in (first, second):
        searched(curve, target)
    found = difference(first, second, target)
    assert found is not None
    return found


@pytest.mark.parametrize("quantity", [RATE, SLO])
def test_the_interval_holds_as_often_as_it_says_and_is_narrower_than_that_of_two_alone(quantity: Quantity):
    held, told, widths = 0, 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        common = rng.normal(0.0, 0.02, 8)
        curves = [system(at, common + rng.normal(0.0, 0.005, 8), rng, quantity) for at in (4.1, 4.0)]
        gap = beside(*curves)
        held += 0.1 in gap
        told += gap.low > 0.0
        first = searched(curves[0], SEVENTY)
        assert first.low is not None
        assert first.high is not None
        widths.append((gap.high - gap.low) / (first.high - first.low))
    assert held >= 53  # of 60, of which 57 are expected
    assert told >= 30
    assert sum(widths) / len(widths) < 0.7


def test_a_policy_beside_itself_is_told_apart_by_no_more_than_the_steps_of_the_search():
    luck = np.random.default_rng(3).normal(0.0, 0.02, 6).tolist()
    gap = beside(system(4.0, luck), system(4.0, luck))
    assert gap.mean == 0.0
    assert 0.0 < gap.high < 0.05
    assert gap.low == -gap.high


def test_seeds_that_agree_by_chance_tell_nothing_apart():
    # every seed alike; the first meets one request more up to a place a little further on
    def one(until: float):
        return Curve(lambda xs: [[(9 + (x < until), 10)] * 3 for x in xs], RATE, 0.95)

    gap = beside(one(4.4), one(4.0), attainment(0.95))
    assert gap.mean == pytest.approx(0.4, abs=0.05)
    assert gap.low < 0.0 < gap.high  # three requests of thirty could be luck
    many = beside(
        *(Curve(lambda xs, at=at: [[(900 + 100 * (x < at), 1000)] * 3 for x in xs], RATE, 0.95) for at in (4.4, 4.0)),
        attainment(0.95),
    )
    assert many.mean == pytest.approx(0.4, abs=0.05)
    assert many.low > 0.0


def test_limits_on_mean_latencies_have_differences_too():
    luck = np.random.default_rng(1).normal(0.0, 4.0, 6).tolist()
    own = np.random.default_rng(2).normal(0.0, 0.5, 6).tolist()

    def curve(per_rate: float, extra: Sequence[float]) -> Curve:
        def sample(places: Sequence[float]) -> list[list[dict[str, tuple[float, int]]]]:
            both = list(zip(luck, extra, strict=True))
            return [[{"mean_e2el_ms<=100": (per_rate * x + a + b, 1000)} for a, b in both] for x in places]

        return Curve(sample, RATE, 0.95)

    gap = beside(curve(20.0, own), curve(25.0, [0.0] * 6), parse("mean_e2el_ms<=100"))
    assert gap.mean == pytest.approx(1.0, abs=0.2)
    assert gap.low > 0.5


def test_one_seed_or_other_seeds_give_no_interval():
    one = beside(system(4.4, [0.0]), system(4.0, [0.0]))
    assert one.mean == pytest.approx(0.4, abs=0.05)
    assert math.isinf(one.high)
    assert math.isinf(beside(system(4.4, [0.0] * 3), system(4.0, [0.0] * 4)).high)


# -- simulated ------------------------------------------------------------------------------------------


def test_answers_are_compared_in_runs_of_one_length(toy: Path, tmp_path: Path, servetwin):
    code, text, problem = servetwin(
        *(
            "search",
            toy,
            "--policy",
            "fcfs",
            "--policy",
            "edf",
            "--target",
            50,
            "--versus",
            "fcfs",
            "--json",
            "-j",
            1,
        ),
        *("-j", 1, "--seeds", 3, "--requests", 60, "--longest", 120, "--out", tmp_path / "found.csv"),
    )
    assert code == 0, problem
    fcfs, edf = json.loads(text)["answers"]
    assert "versus" not in fcfs
    assert edf["versus"] == "fcfs"
    assert edf["more_in_runs_of"] == max(fcfs["requests"], edf["requests"])
    if fcfs["requests"] == edf["requests"]:
        assert edf["more"] == pytest.approx(edf["value"] - fcfs["value"], abs=0.02 * edf["value"])
    if fcfs["low"] is None or edf["low"] is None:
        assert edf["more_low"] is None
    assert "versus,more,more_low,more_high,more_in_runs_of" in (tmp_path / "found.csv").read_text().splitlines()[0]


def test_a_capacity_is_found_again_in_longer_runs(toy: Path):
    asked = capacity.Asked("rate", [0.5], seeds=2, requests=60, longest=60)
    finder = capacity.Finder(load(toy), asked, [attainment(0.5)], jobs=1, cache=None, progress=None)
    (answer,) = finder.answers()
    longer = finder.at_length(answer, 180)
    assert longer == pytest.approx(answer.found.value, rel=0.5)
    assert longer in finder.curves[180].samples
    assert finder.at_length(answer, answer.requests) == answer.found.value


@pytest.mark.parametrize(
    ("policies", "more", "told"),
    [
        (["edf"], {}, "0 of 1 policies"),
        (["fcfs"], {}, "1 of 1 policies"),
        (["edf", "fcfs", "fcfs"], {}, "2 of 3 policies"),
        (["edf", "fcfs"], {"find": "replicas"}, "whole numbers"),
    ],
)
def test_what_cannot_be_compared(toy: Path, policies: list[str], more: dict[str, str], told: str):
    asked = capacity.Asked(more.get("find", "rate"), [0.9], seeds=2)
    with pytest.raises(BadInput, match=told):
        capacity.answers([toy], policies, asked, versus="fcfs", jobs=1)
