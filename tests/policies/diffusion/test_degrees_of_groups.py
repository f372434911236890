"""Fixed degrees, and degrees by deadline in rounds: decision by decision, and the plans against all others."""

from __future__ import annotations

import doctest
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.testing import Job, Played, play
from servetwin.core.testing.timeline import on_degree
from servetwin.policies.diffusion import _degrees
from servetwin.policies.diffusion._degrees import cheapest
from servetwin.policies.diffusion.deadline_degree import DeadlineDegree
from servetwin.policies.diffusion.fixed_degree import FixedDegree

#: Seconds of a step of a second on 1, 2, 4 and 8 devices: 1, 0.6, 0.4, 0.3.
STEP = {degree: on_degree(1.0, degree) for degree in (1, 2, 4, 8)}


def degrees(run: Played, request: int) -> list[int]:
    return [len(bar.devices) for bar in run.bars if bar.run == (request,)]


# -- fixed degrees ------------------------------------------------------------------------------------------------


def test_as_many_requests_as_fit_run_side_by_side_to_the_end() -> None:
    run = play(FixedDegree(4), [Job(5), Job(5), Job(5)], seconds=1.0, gpus=8)
    lasts = pytest.approx(5 * STEP[4])
    assert [(bar.run, bar.devices, bar.end - bar.start) for bar in run.bars] == [
        ((0,), (0, 1, 2, 3), lasts),
        ((1,), (4, 5, 6, 7), lasts),
        ((2,), (0, 1, 2, 3), lasts),
    ]


def test_a_degree_that_nobody_measured_is_refused() -> None:
    with pytest.raises(BadInput, match=r"on 3 devices of model .right would be: 1, 2, 4"):
        play(FixedDegree(3), [Job(1)], seconds=1.0, gpus=4)


# -- degrees by deadline ------------------------------------------------------------------------------------------


def test_who_has_time_runs_on_one_device_and_who_has_not_on_as_many_as_it_takes() -> None:
    run = play(DeadlineDegree(elastic=False), [Job(10, slo=40.0), Job(10, slo=5.0)], seconds=1.0, gpus=8, change=0.0)
    assert run.outcomes == ["met", "met"]
    assert set(degrees(run, 0)) == {1}
    assert max(degrees(run, 1)) == 4


def test_devices_that_are_left_over_make_somebody_quicker() -> None:
    calm = [Job(10, slo=40.0)]
    plain, elastic = (play(DeadlineDegree(elastic=e), calm, seconds=1.0, gpus=8, change=0.0) for e in (False, True))
    assert (set(degrees(plain, 0)), set(degrees(elastic, 0))) == ({1}, {8})


def test_who_cannot_be_in_time_takes_nothing_from_who_can() -> None:
    hopeless, urgent = [Job(40, slo=1.0) for _ in range(7)], [Job(10, slo=4.0)]
    run = play(DeadlineDegree(), [*hopeless, *urgent], seconds=1.0, gpus=8, change=0.0)
    assert run.outcomes == ["late"] * 7 + ["met"]


def test_it_meets_what_no_fixed_degree_meets() -> None:
    """One request needs half of the devices, four are in time on one each: TetriServe's figure 1, in small."""
    jobs = [Job(10, slo=4.4), *[Job(3, slo=3.2)] * 4]
    met = [play(FixedDegree(degree), jobs, seconds=1.0, gpus=8).met for degree in (1, 2, 4, 8)]
    assert met == [4, 3, 3, 1]
    assert play(DeadlineDegree(round_steps=10), jobs, seconds=1.0, gpus=8, change=0.0).met == 5


@pytest.mark.parametrize("change", [0.0, None])
def test_a_request_keeps_its_devices_while_it_needs_as_many(change: float | None) -> None:
    run = play(
        DeadlineDegree(elastic=False),
        [Job(20, slo=60.0), Job(4, slo=60.0)],
        seconds=1.0,
        gpus=2,
        change=change,
    )
    assert len({bar.devices for bar in run.bars if bar.run == (0,)}) == 1


@pytest.mark.parametrize("change", [0.0, 1e-9, 0.1, 5.0])
def test_a_round_has_its_steps_whatever_a_change_takes(change: float) -> None:
    """A request alone on all devices does five steps before another one is let in, and pays for no change."""
    run = play(
        DeadlineDegree(round_steps=5),
        [Job(7, slo=60.0), Job(3, at=0.01, slo=60.0)],
        seconds=1.0,
        gpus=8,
        change=change,
    )
    assert min(bar.start for bar in run.bars if bar.run == (1,)) == pytest.approx(5 * STEP[8])


@pytest.mark.parametrize("round_steps", [1, 2, 5])
@pytest.mark.parametrize("change", [0.0, 0.1, 0.31, 5.0])  # a step takes 0.3 s on eight devices
def test_a_change_that_takes_longer_than_a_step_ends_nothing(round_steps: int, change: float) -> None:
    jobs = [Job(7, slo=60.0), Job(3, at=0.01, slo=60.0), Job(3, at=0.7, slo=1.0)]
    run = play(DeadlineDegree(round_steps), jobs, seconds=1.0, gpus=8, change=change)
    assert [len(degrees(run, request)) for request in range(3)] == [7, 3, 3]


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 12), within=st.floats(0.1, 14.0))
def test_no_plan_of_two_degrees_is_cheaper(steps: int, within: float) -> None:
    found = cheapest(STEP, steps, within)
    fit = {
        (slow, fast, n): (steps - n) * slow * STEP[slow] + n * fast * STEP[fast]
        for slow, fast, n in product(STEP, STEP, range(steps + 1))
        if (steps - n) * STEP[slow] + n * STEP[fast] <= within
    }
    if found is None:
        assert not fit
    else:
        slow, fast = found[0], found[-1]
        costs = [cost for (a, b, _), cost in fit.items() if {a, b} <= {slow, fast}]
        assert min(costs, default=min(fit.values(), default=0.0)) == pytest.approx(min(fit.values(), default=0.0))


def test_the_examples_in_the_docstring() -> None:
    assert doctest.testmod(_degrees) == (0, 3)  # failed, tried
