"""Capacity search: on curves that are known, on the M/D/1 queue, and from the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.capacity import search as capacity
from servetwin.experiments.capacity.root_search import QUANTITIES, Capacity, Curve, search

RATE, SLO, REPLICAS = QUANTITIES["rate"], QUANTITIES["slo"], QUANTITIES["replicas"]


def noisy(share: Callable[[float], float], seeds: int = 12, requests: int = 4000, spread: float = 0.01):
    """Counts around a curve, the same luck for a seed at every place."""
    luck = np.random.default_rng(5).normal(0.0, spread, seeds).tolist()

    def sample(places: Sequence[float]) -> list[list[tuple[int, int]]]:
        return [[(round(min(max(share(x) + e, 0.0), 1.0) * requests), requests) for e in luck] for x in places]

    return sample


def falling(x: float) -> float:
    """90 % at 4, 50 % at 5."""
    return 1 / (1 + math.exp((x - 5) * math.log(9)))


def test_finds_where_a_falling_curve_crosses():
    (found,) = search(noisy(falling), RATE, [0.9], start=1.0)
    assert 4.0 in found
    assert found.value == pytest.approx(4.0, rel=0.02)
    assert found.high - found.low < 0.3
    assert not found.notes


@pytest.mark.parametrize(("share", "quantity"), [(falling, RATE), (lambda n: 1 - 0.6 * 0.9**n, REPLICAS)])
def test_how_many_places_are_left_at_most_is_known_from_where_the_ends_are(share, quantity):
    curve = Curve(noisy(share, spread=0.002), quantity, 0.95)
    heard: list[tuple[float, float, int, int]] = []
    curve.hear = lambda holds, fails, tries: heard.append((holds, fails, tries, len(curve.samples)))
    (found,) = search(curve.sample, quantity, [0.9], start=1.0, curve=curve)
    first = heard[0]
    assert len(curve.samples) <= first[2] + first[3]
    if quantity is RATE:
        assert len(curve.samples) == heard[-1][2] + heard[-1][3]  # the last one said is the last one tried
    promised = [tries + done for _, _, tries, done in heard]
    assert promised == sorted(promised, reverse=True)  # what is left at most never grows
    assert min(first[:2]) <= found.value <= max(first[:2])


def test_several_targets_share_what_was_sampled():
    ninety, half = search(noisy(falling), RATE, [0.9, 0.5], start=30.0)
    assert 4.0 in ninety
    assert 5.0 in half
    assert set(ninety.tried) & set(half.tried)


def test_what_gets_easier_with_more():
    (found,) = search(noisy(lambda x: falling(10 - x)), SLO, [0.9], start=3.0)
    assert 6.0 in found
    assert found.value == pytest.approx(6.0, rel=0.02)


def test_the_fewest_replicas_are_a_whole_number():
    (found,) = search(noisy(lambda n: 1 - 0.6 * 0.5**n, spread=0.001), REPLICAS, [0.9], start=1.0)
    assert found.value == 3
    assert (found.low, found.high) == (3, 3)


def test_a_target_that_one_replica_holds():
    (found,) = search(noisy(lambda n: 1 - 0.01 * 0.5**n, spread=0.001), REPLICAS, [0.9], start=4.0)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_a_curve_that_rises_again_is_noticed():
    def dented(x: float) -> float:
        return 0.7 if 2 < x < 3 else falling(x)

    (found,) = search(noisy(dented), RATE, [0.9], start=1.0)
    assert "not monotone" in found.notes[0]
    assert found.value == pytest.approx(2.0, rel=0.02)


def test_targets_held_everywhere_or_nowhere():
    with pytest.raises(BadInput, match="met everywhere"):
        search(noisy(lambda _: 0.95), RATE, [0.9], start=1.0)
    with pytest.raises(BadInput, match=r"99 % is met nowhere: the most is 95\.\d %"):
        search(noisy(lambda _: 0.95, spread=0.001), RATE, [0.99], start=1.0)
    with pytest.raises(BadInput, match="is no attainment"):
        search(noisy(falling), RATE, [90.0], start=1.0)


def test_the_interval_holds_as_often_as_it_says():
    def one(seed: int) -> Capacity:
        luck = np.random.default_rng(seed).normal(0.0, 0.02, 8).tolist()
        curve = Curve(
            lambda xs: [[(round(min(max(falling(x) + e, 0.0), 1.0) * 4000), 4000) for e in luck] for x in xs],
            RATE,
            0.95,
        )
        (found,) = search(curve.sample, RATE, [0.7], start=4.0)
        return found

    truth = 5 - math.log(7 / 3) / math.log(9)
    held = sum(truth in one(seed) for seed in range(100))
    assert held >= 88  # of 100, of which 95 are expected


@pytest.mark.parametrize(("quantity", "turn"), [(RATE, lambda x: x), (SLO, lambda x: 16.0 / x)])
def test_near_a_place_that_holds_an_easier_one_that_fails_counts(quantity, turn: Callable[[float], float]):
    # holds up to 3, and between 3.9 and 4.5: what a single run does may be anything but monotone
    def sample(places: Sequence[float]) -> list[list[tuple[int, int]]]:
        return [[(100 if turn(x) < 3.0 or 3.9 < turn(x) < 4.5 else 0, 100)] for x in places]

    curve = Curve(sample, quantity, 0.95)
    curve.at([turn(3.8)])  # as a check of a shorter run's answer does
    (found,) = search(sample, quantity, [0.9], start=turn(4.0), near=True, curve=curve)
    assert 2.98 < turn(found.value) < 3.0
    nowhere = Curve(lambda xs: [[(0, 100)] for _ in xs], quantity, 0.95)
    with pytest.raises(BadInput, match=r"90 % is met nowhere: the most is 0\.0 %"):
        search(nowhere.sample, quantity, [0.9], start=1.0, near=True, curve=nowhere)


def test_few_requests_do_not_lead_the_search_away():
    # 40 of 40 requests are surely more than 91 % only, so no place is surely held; the search must not go on for ever
    curve = Curve(lambda xs: [[(20 if x < 3.0 else 0, 20)] * 2 for x in xs], RATE, 0.95)
    (found,) = search(curve.sample, RATE, [0.98], start=1.0, curve=curve)
    assert 2.9 < found.value < 3.0
    assert found.low == 0.0
    assert found.open
    assert min(curve.samples) > 1e-3  # 64 times less at the most, and the last step
    surely = search(lambda xs: [[(2000 if x < 3.0 else 0, 2000)] * 2 for x in xs], RATE, [0.98], start=1.0)
    assert not surely[0].open


# -- simulated ------------------------------------------------------------------------------------------

MD1_PROFILE = """
schema_version: 1
name: mine/md1
description: a server that takes 100 ms for each request, one at a time
device: {name: server, kind: cpu}
model: none
precision: none
batch_counts: requests
measured_when: never
origin: {repository: here}
modules:
  serve:
    tables:
      scheduler: {batch: [1], seconds: [0.1], statistic: exact, source: {file: this}}
"""
MD1 = """
name: md1
pipeline: {modules: {serve: {}}}
workload: {requests: 4000, arrivals: {process: poisson, rate: 5.0}}
slo: {seconds: 0.5}
policy: {name: fcfs}
deployment:
  devices: {server: profile.yaml}
  workers: [{modules: [serve], device: server, limit: 1}]
"""


@pytest.fixture
def md1(tmp_path: Path) -> Path:
    (tmp_path / "profile.yaml").write_text(MD1_PROFILE)
    (tmp_path / "md1.yaml").write_text(MD1)
    return tmp_path / "md1.yaml"


def md1_wait_within(t: float, rate: float, service: float) -> float:
    """P(wait <= t) in the M/D/1 queue (Erlang, 1909)."""
    terms = [
        (-rate * (t - k * service)) ** k / math.factorial(k) * math.exp(rate * (t - k * service))
        for k in range(int(t / service + 1e-9) + 1)
    ]
    return (1 - rate * service) * math.fsum(terms)


def md1_capacity(target: float, slo: float, service: float) -> float:
    """The rate at which just *target* of the requests end within *slo*: they wait for slo - service at most."""
    from scipy.optimize import brentq

    return float(brentq(lambda rate: md1_wait_within(slo - service, rate, service) - target, 0.01, 0.999 / service))


def test_finds_the_analytic_capacity_of_md1(md1: Path):
    asked = capacity.Asked("rate", [0.9, 0.99], seeds=6, requests=2000, longest=8000)
    ninety, most = capacity.answers([md1], None, asked, jobs=2)
    assert md1_capacity(0.9, 0.5, 0.1) == pytest.approx(7.577, abs=0.001)
    assert md1_capacity(0.9, 0.5, 0.1) in ninety.found
    assert md1_capacity(0.99, 0.5, 0.1) in most.found
    assert ninety.found.high / ninety.found.low < 1.2


def test_two_sets_of_seeds_agree_on_a_policy(toy: Path):
    first, second = (
        capacity.answers([toy], ["edf"], capacity.Asked("rate", [0.9], 4, seed, 500, 1000), jobs=2)[0].found
        for seed in (0, 100)
    )
    assert first.low <= second.high
    assert second.low <= first.high


def test_from_the_command_line(toy: Path, servetwin):
    out = toy.parent / "answers.csv"
    few = ("--seeds", 2, "--requests", 200, "--longest", 400, "--jobs", 1)
    options = ("--policy", "edf", "--policy", "fcfs", "--target", 90, "--target", 50, "--seeds", 2, "--requests", 200)
    options += ("--longest", 400)
    code, text, _ = servetwin("search", toy, *options, "--jobs", 1, "--out", out)
    assert code == 0
    assert "edf" in text
    assert len(out.read_text().splitlines()) == 5
    code, text, _ = servetwin("search", toy, "--find", "replicas", "--set", "rate=40.0", *few)
    assert code == 0
    assert "fewest replicas" in text


def test_an_answer_from_a_few_requests(md1: Path, servetwin):
    options = ("--target", 98, "--seeds", 2, "--requests", 20, "--longest", 20, "--jobs", 1)
    code, text, err = servetwin("search", md1, *options)
    assert (code, err) == (0, "")
    assert "there is no interval: more seeds or requests are needed to close it" in text


def test_the_first_seed_is_said_by_its_option(md1: Path, servetwin):
    code, _, err = servetwin("search", md1, "--set", "seed=5", "--seeds", 2)
    assert code == 2
    assert err == "servetwin: --set seed: the seeds of a search begin with 0 (right would be: --first-seed 5)\n"
    few = ("--seeds", 2, "--requests", 100, "--longest", 100, "--jobs", 1)
    code, text, _ = servetwin("search", md1, "--set", "seed=5", "--first-seed", 5, *few)
    assert code == 0
    assert "seeds 5 to 6, common to all" in text


def test_what_cannot_be_sought(toy: Path, servetwin):
    code, _, err = servetwin("search", toy, "--find", "rat")
    assert code == 2
    assert err == "servetwin: --find: 'rat' cannot be sought (right would be: rate)\n"
