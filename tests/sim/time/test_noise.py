"""The slowdown of a host: what is drawn lasts, and is as frequent as it was measured."""

import numpy as np
import pytest
from servetwin.profiles import load
from servetwin.profiles.tables.costs import HOST_SLOWDOWN, HOST_SLOWDOWN_LASTS
from servetwin.sim.measured import slowdown_of
from servetwin.sim.time.noise import Slowdown


def test_a_slowdown_lasts_and_then_another_is_drawn():
    drawn = iter([0.8, 1.2, 1.0])
    slowdown = Slowdown(lambda: next(drawn), iter([1.0, 2.0, 0.5, 1.0, 1.0]).__next__, 0.4)
    assert [slowdown(now) for now in (0.0, 0.39, 0.4, 1.1, 1.25)] == [0.8, 0.8, 1.2, 1.2, 1.0]


def test_slowdowns_of_a_profile_have_the_mean_one_and_last_as_long_as_it_says():
    profile = load("h200-chat/llama-3.1-8b")
    assert slowdown_of(profile, None, "llm") is None
    assert slowdown_of(load("h200-long/opt-13b-tp1-0"), 1, "llm") is None
    slowdown = slowdown_of(profile, 1, "llm")
    assert slowdown is not None
    drawn = np.array([slowdown(0.01 * i) for i in range(100_000)])
    assert drawn.mean() == pytest.approx(1.0, abs=0.02)
    quantiles = profile.cost(HOST_SLOWDOWN()).quantiles
    assert quantiles is not None
    assert np.quantile(drawn, 0.9) == pytest.approx(np.interp(0.9, quantiles.p, quantiles.values), abs=0.04)
    changes = int(np.sum(np.diff(drawn) != 0.0))
    assert 1000.0 / changes == pytest.approx(profile.cost(HOST_SLOWDOWN_LASTS()).scalar(), rel=0.1)
