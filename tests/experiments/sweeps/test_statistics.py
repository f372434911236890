"""Intervals: coverage on known distributions, edge cases, stopping."""

from __future__ import annotations

import math

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.sweeps.statistics import (
    Interval,
    attainment_interval,
    bootstrap,
    mean_interval,
    narrow_enough,
    paired,
    paired_attainment,
    parse_until,
    wilson,
)


def test_t_intervals_hold_the_mean_as_often_as_they_say() -> None:
    draws = np.random.default_rng(1).normal(3.0, 2.0, (4000, 6)).tolist()
    held = sum(3.0 in mean_interval(row, 0.9) for row in draws) / 4000
    assert held == pytest.approx(0.9, abs=0.02)


def test_wilson_holds_the_share_about_as_often_as_it_says() -> None:
    met = np.random.default_rng(2).binomial(200, 0.95, 4000).tolist()
    held = sum(0.95 in wilson(m, 200) for m in met) / 4000
    assert held == pytest.approx(0.95, abs=0.025)


def test_attainment_goes_by_the_spread_between_seeds() -> None:
    calm = attainment_interval([450, 451, 449, 450], [500] * 4)
    wild = attainment_interval([500, 300, 480, 420], [500] * 4)
    assert wild.half > 5 * calm.half
    assert calm.half >= wilson(1800, 2000).half  # never narrower than the count of requests allows


def test_attainment_of_agreeing_seeds_is_not_certain() -> None:
    all_met = attainment_interval([500, 500], [500, 500])
    assert all_met.mean == 1.0
    assert all_met.high == 1.0
    assert 0.99 < all_met.low < 1.0


def test_one_seed_says_nothing() -> None:
    one = attainment_interval([400], [500])
    assert (one.low, one.high) == (0.0, 1.0)
    assert math.isinf(mean_interval([1.0]).half)


def test_pairs_cancel_what_seeds_share() -> None:
    luck = np.random.default_rng(3).normal(0.0, 0.2, 10)
    first, second = (0.7 + luck).tolist(), (0.72 + luck).tolist()
    assert paired(first, second).low > 0.0199
    assert mean_interval(second).low < mean_interval(first).high  # unpaired, they could not be told apart


def test_seeds_that_agree_by_chance_tell_no_policies_apart() -> None:
    """Two policies that are equally good are told apart in one of twenty comparisons, however few seeds."""
    draws = np.random.default_rng(5).binomial(60, 0.98, (4000, 2, 2)).tolist()
    apart = sum(0.0 not in paired_attainment(first, second, [60, 60]) for first, second in draws)
    zero = sum(0.0 not in paired([m / 60 for m in a], [m / 60 for m in b]) for a, b in draws)
    assert apart / len(draws) < 0.06 < zero / len(draws)


def test_a_difference_of_many_requests_is_told_by_seeds_that_agree() -> None:
    found = paired_attainment([50, 50], [56, 56], [60, 60])
    assert found.mean == pytest.approx(0.1)
    assert 0.0 < found.low < 0.1 < found.high


def test_bootstrap_of_a_median() -> None:
    values = np.random.default_rng(4).exponential(1.0, 200).tolist()
    found = bootstrap(values, lambda x: float(np.median(x)))
    assert math.log(2) in found


@pytest.mark.parametrize("text", ["0.5", "pp", "-1pp", "0pp", "x pp", "80pp"])
def test_widths_that_are_none(text: str) -> None:
    with pytest.raises(BadInput, match="is no width"):
        parse_until(text)


def test_stopping() -> None:
    assert narrow_enough(Interval(0.9, 0.896, 0.904, 5), 0.005)
    assert not narrow_enough(Interval(0.9, 0.89, 0.91, 5), 0.005)
    assert not narrow_enough(Interval(0.9, 0.9, 0.9, 2), 0.005)  # two seeds that agree are no proof
    assert narrow_enough(Interval(0.9, 0.0, 1.0, 1), None)


def test_no_share() -> None:
    with pytest.raises(BadInput, match="is no share"):
        wilson(3, 2)
