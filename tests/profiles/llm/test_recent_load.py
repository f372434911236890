"""How much was computed lately, and what steps then take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.profiles import load
from servetwin.profiles.llm.recent_load import Curves, Density, RecentLoad, recent_load_of
from servetwin.profiles.tables.field_types import Fault


def test_density_nears_what_goes_on_and_fades_when_nothing_does():
    density = Density(0.05)
    for i in range(100):
        density.add(0.01 * i, 0.01 * (i + 1), 80)
    assert density.at(1.0) == pytest.approx(8000)
    assert density.at(1.05) == pytest.approx(8000 / 2.71828, rel=1e-4)
    assert density.at(3.0) == pytest.approx(0.0, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 0.2), st.floats(0.001, 0.2), st.integers(1, 1000)), min_size=1, max_size=20))
def test_density_lies_between_nothing_and_the_densest_step(steps):
    density, now = Density(), 0.0
    for idle, seconds, tokens in steps:
        now += idle
        density.add(now, now + seconds, tokens)
        now += seconds
    assert 0.0 <= density.at(now) <= max(tokens / seconds for _, seconds, tokens in steps) * (1 + 1e-9)


def test_recent_load_is_that_of_the_step_s_size_and_of_what_came_before():
    def first_and_second(tokens):
        curves = Curves([64, 512], [[100, 5000], [100, 5000]], [[1.0, 1.1], [0.9, 1.3]])
        load_then = RecentLoad({"prefill": curves}, memory=0.01)
        first = load_then(0.0, 0.1, tokens, tokens)
        return first, load_then(first, 0.1, tokens, tokens)

    assert first_and_second(600) == (0.1, 0.1)  # larger than any that was measured
    assert first_and_second(500) == pytest.approx((0.09, 0.13))  # 5556 tokens a second
    assert first_and_second(1) == pytest.approx((0.1, 0.1))


ONE = Curves([64], [[100, 1000]], [[1.0, 2.0]])


def test_steps_of_kinds_that_nothing_is_known_of_count_but_take_what_they_take():
    load_then = RecentLoad({"prefill": ONE})
    assert [load_then(0.1 * i, 0.1, 0, 100) for i in range(5)] == [0.1] * 5
    assert load_then(0.5, 0.1, 10, 10) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize(
    ("known", "prompt", "takes"),
    [
        ({"decode": ONE}, 0, 0.2),
        ({"decode": ONE}, 5, 0.1),
        ({"decode": ONE}, 10, 0.1),
        ({"mixed": ONE}, 0, 0.1),
        ({"mixed": ONE}, 5, 0.2),
        ({"mixed": ONE}, 10, 0.1),
        ({"prefill": ONE}, 5, 0.2),  # better than nothing
        ({"prefill": ONE, "mixed": Curves([64], [[1]], [[1.5]])}, 5, 0.15),
    ],
)
def test_each_kind_of_step_has_its_own(known, prompt, takes):
    load_then = RecentLoad(known)
    load_then.density.add(0.0, 1.0, 1000)
    assert load_then(1.0, 0.1, prompt, 10) == pytest.approx(takes, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("h200-long/opt-13b-tp1-0", {"prefill"}), ("h100-long/opt-13b-tp1-0", {"prefill", "mixed", "decode"})],
)
def test_recent_load_comes_from_a_profile(name, kinds):
    load_then = recent_load_of(load(name).costs)
    assert set(load_then.curves) == kinds
    assert load_then.density.memory == 0.05
    assert list(load_then.curves["prefill"].limits)[:4] == [64, 128, 384, 1024]
    for curves in load_then.curves.values():
        for densities, ratios in zip(curves.densities, curves.ratios, strict=True):
            assert list(densities) == sorted(densities)
            assert all(0.9 < ratio < 1.12 for ratio in ratios)
            assert max(ratios[-2:]) > min(ratios)  # the denser, the slower
    assert recent_load_of(load("h200-long/opt-66b-tp2").costs) is None


@pytest.mark.parametrize(
    "name", ["prefill.recent_load.many", "prefill.recent_load.", "decode.recent_load.x", "mixed.recent_load.0"]
)
def test_a_curve_is_for_steps_of_so_many_tokens(name):
    data = load("h200-long/opt-13b-tp1-0").data
    costs = {**data.costs, name: data.costs["prefill.recent_load.64"]}
    with pytest.raises(Fault) as error:
        data.check_costs(costs)
    assert str(error.value) == f"unknown cost {name!r}"
    assert ".recent_load" in error.value.right


def test_a_curve_is_a_table():
    costs = dict(load("h200-long/opt-13b-tp1-0").costs)
    costs["prefill.recent_load.64"] = costs["prefill.recent_load"]
    with pytest.raises(BadInput, match="is no table"):
        recent_load_of(costs)
