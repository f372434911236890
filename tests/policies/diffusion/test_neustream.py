"""NeuStream's decisions: given these requests and this time, this batch and these drops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from servetwin.core import BadInput, Module, Pipeline
from servetwin.policies.diffusion.neustream import NeuStream
from servetwin.profiles import load
from views import Desk, ids

FLAT = {"dit": [0.1], "vae": [0.02]}  # an iteration takes 0.1 s whatever the batch


def desk(bound: int = 2, **kwargs) -> Desk:
    return Desk(NeuStream(bound=bound, **kwargs), FLAT)


# -- the bound of a batch -------------------------------------------------------------------------------

BOUNDS = [
    ("rtx4090/dit-s2-256", 0.95, 20, {1.2: 4, 1.5: 10, 2: 20, 3: 20}),
    ("rtx4090/dit-xl2-256", 1.0, 20, {1.2: 3, 1.5: 4, 2: 6, 2.5: 7, 3: 10, 3.5: 12, 4: 12, 5: 17}),
    ("rtx4090/palette-256", 0.95, 11, {1.2: 2, 1.5: 3, 2: 4, 2.5: 5, 3: 6, 3.5: 7, 4: 8, 5: 10}),
    ("rtx4090/sd15-256", 0.95, 40, {1.2: 6, 1.5: 10, 2: 12, 3: 21, 4: 28, 5: 36, 6: 40, 7: 40}),
    ("rtx4090/sd15-512", 0.95, 15, {1.2: 1, 1.5: 2, 2: 3, 3: 4, 4: 6, 5: 8, 6: 11, 7: 12}),
]


@pytest.mark.parametrize(
    ("profile", "step_delta", "cap", "factor", "bound"),
    [(name, delta, cap, factor, b) for name, delta, cap, bounds in BOUNDS for factor, b in bounds.items()],
)
def test_bounds_of_the_artifact(profile: str, step_delta: float, cap: int, factor: float, bound: int) -> None:
    measured = load(profile)
    loop = next(m for m in measured.modules if measured.is_loop(m))
    table = measured.table(loop, "scheduler")
    policy = NeuStream(step_delta=step_delta)
    pipeline = Pipeline.chain(Module(loop, loop=True))
    tables = {loop: [table(n) for n in range(1, cap + 1)]}
    Desk(policy, tables, pipeline=pipeline, placement=[[loop]], at=loop, limit=cap, slo_factor=factor)
    assert policy.bound == bound


def test_the_bound_is_strict() -> None:
    policy = NeuStream(step_delta=1.0)
    Desk(policy, {"dit": [0.25, 0.5, 0.75], "vae": [0.02]}, slo_factor=3.0, limit=3)
    assert policy.bound == 2  # a batch of 3 takes exactly 3 times as long, which is not less


def test_the_scan_stops_at_the_first_size_that_fails() -> None:
    policy = NeuStream(step_delta=1.0)
    Desk(policy, {"dit": [0.1, 0.15, 0.4, 0.2], "vae": [0.02]}, slo_factor=3.0, limit=4)
    assert policy.bound == 2  # 4 would do, but 3 does not


def test_a_stage_of_several_modules_is_bounded_by_their_sum() -> None:
    policy = NeuStream(step_delta=1.0)
    pipeline = Pipeline.chain(Module("unet", loop=True), Module("vae"), Module("safety"))
    tables = {"unet": [0.1], "vae": [0.1, 0.2, 0.3], "safety": [0.1, 0.3, 0.5]}
    Desk(policy, tables, pipeline=pipeline, placement=[["unet"], ["vae", "safety"]], at="vae", slo_factor=2.6)
    assert policy.bound == 2  # 0.2, 0.5, 0.8 against 0.52


def test_without_an_slo_factor_it_asks_for_one() -> None:
    with pytest.raises(BadInput, match="slo_factor or bound"):
        Desk(NeuStream(), FLAT, slo_factor=None)
    assert Desk(NeuStream(slo_factor=2.0), FLAT, slo_factor=None).policy.bound == 20


# -- who runs -------------------------------------------------------------------------------------------


def test_high_is_first_in_first_out() -> None:
    d = desk(bound=3)
    for _ in range(3):
        d.request()
    assert d.rounds(0.0, 0.1) == [[0, 1, 2], [0, 1, 2]]


def test_what_overflows_waits_and_takes_the_place_of_one_that_ends() -> None:
    d = desk()
    d.request(steps=2)
    for _ in range(2):
        d.request(steps=9)
    assert d.rounds(0.0, 0.1, 0.2) == [[0, 1], [0, 1], [1, 2]]


def test_newcomers_go_before_those_that_had_to_wait() -> None:
    d = desk()
    d.request(steps=2)
    for _ in range(2):
        d.request(steps=9)
    assert d.rounds(0.0, 0.1) == [[0, 1], [0, 1]]  # 2 overflows; 0 ends
    d.request(arrival=0.15)
    assert d.rounds(0.2) == [[1, 3]]


def test_the_one_that_waited_least_goes_first() -> None:
    d = desk(bound=1)
    d.request(steps=3)
    d.request()
    assert d.rounds(0.0, 0.1) == [[0], [0]]
    d.request(arrival=0.15)
    assert d.rounds(0.2) == [[0]]
    assert d.rounds(0.3) == [[2]]  # it overflowed later than 1


def test_overflow_counts_as_two_waits() -> None:
    d = desk(bound=1)
    d.request()
    d.request()
    d.decide(0.0)
    (waiting,) = d.policy.low
    assert (waiting.task.id, waiting.key + d.policy.over) == (1, 2)


def test_sticky_one_that_waited_is_displaced_by_any_newcomer() -> None:
    d = desk(bound=1, requeue="sticky")
    d.request(steps=1)
    d.request(steps=9)
    assert d.rounds(0.0, 0.1) == [[0], [1]]
    d.request(arrival=0.15)
    assert d.rounds(0.2) == [[2]]  # though 1 is under way


def test_front_one_that_waited_goes_ahead_of_all() -> None:
    d = desk(bound=1, requeue="front")
    d.request(steps=1)
    d.request(steps=9)
    assert d.rounds(0.0, 0.1) == [[0], [1]]
    d.request(arrival=0.15)
    assert d.rounds(0.2, 0.3) == [[1], [1]]


# -- who is dropped -------------------------------------------------------------------------------------


def test_admission_counts_the_rest_of_the_way() -> None:
    # 10 steps of 0.1 s, a transfer of 0.035 s and the VAE's 0.02 s: 1.055 s
    d = desk(handover=0.035)
    assert d.admitted(slo=1.06)
    assert not d.admitted(slo=1.05)


def test_the_last_stage_admits_what_it_can_still_do() -> None:
    d = Desk(NeuStream(bound=2, handover=0.035), FLAT, at="vae")
    assert d.admitted(slo=0.03)
    assert not d.admitted(slo=0.01)


def test_a_looped_stage_drops_what_could_not_make_it_even_alone() -> None:
    d = desk(handover=0.035)
    d.request(slo=2.0, steps=10)
    d.request(slo=9.0, steps=10)
    assert d.decide(0.0).drop == []
    d.done(0.4)
    # 9 steps left, 0.9 s, and 0.055 s for what follows: at 1.045 s it is too late for a deadline of 2.0 s
    decision = d.decide(1.05)
    assert (ids(decision.drop), ids(decision.run)) == ([0], [1])


def test_tests_are_optimistic_a_crowded_batch_keeps_what_alone_would_make_it() -> None:
    d = Desk(NeuStream(bound=2), {"dit": [0.1, 0.19], "vae": [0.0]})
    d.request(slo=1.2, steps=10)
    d.request(slo=1.2, steps=10)
    assert ids(d.decide(0.0).drop) == []  # together they take 1.9 s


def test_a_stage_without_a_loop_drops_nothing_later() -> None:
    d = Desk(NeuStream(bound=1), FLAT, at="vae")
    d.request(slo=1.0)
    d.request(slo=1.0)
    assert ids(d.decide(0.0).run) == [0]
    d.done(2.0)
    decision = d.decide(2.0)
    assert (ids(decision.run), decision.drop) == ([1], [])


# -- taking iterations together -------------------------------------------------------------------------


def test_it_offers_to_repeat_a_batch_that_keeps_its_place() -> None:
    d = desk(bound=2)
    d.request()
    d.request()
    assert d.decide(0.0).repeat is not None
    d.done(0.1)
    d.request(arrival=0.15)
    assert d.decide(0.2).repeat is not None


def test_it_does_not_offer_to_repeat_a_batch_that_will_be_ordered_anew() -> None:
    d = desk(bound=2, requeue="front")
    d.request(steps=1)
    d.request()
    d.request()
    assert ids(d.decide(0.0).run) == [0, 1]
    d.done(0.1)
    decision = d.decide(0.1)  # 2 comes from the low queue, and will stand before 1 then
    assert (ids(decision.run), decision.repeat) == ([1, 2], None)
    d.done(0.2)
    decision = d.decide(0.2)
    assert ids(decision.run) == [2, 1]
    assert decision.repeat is not None


@pytest.mark.parametrize("arrivals", [(0.0, 0.1, 0.2, 0.3), (0.0, 0.0, 0.0, 0.0)], ids=["in turn", "together"])
def test_after_a_repeat_those_left_out_have_waited_as_often(arrivals: Sequence[float]) -> None:
    orders = []
    for together in (False, True):
        d = desk(bound=1)
        d.request(steps=6)
        for at in arrivals:
            d.request(arrival=at, steps=1)
            d.rounds(at)
        if together:
            assert d.decide(0.5).repeat is not None
            d.done(0.7, count=2)
        else:
            d.rounds(0.5, 0.6)
        orders.append(d.rounds(*(0.7 + 0.1 * i for i in range(4))))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == [[1], [2], [3], [4]]


def test_the_offer_ends_before_a_drop_could_fall_due() -> None:
    d = desk(bound=2)
    d.request(slo=3.0, steps=10)
    repeat = d.decide(0.0).repeat
    assert repeat is not None
    assert repeat.limit == pytest.approx(3.0 - 1.0 - 0.02)


def test_equally_long_waits_come_as_a_heap_gives_them() -> None:
    d = desk(bound=1)
    for _ in range(5):
        d.request(steps=1)
    # 1 to 4 overflow together. Python's heap gives equal keys in this order, and so it was in the logs.
    assert d.rounds(*(0.1 * i for i in range(5))) == [[0], [1], [3], [2], [4]]


def test_a_key_is_kept_while_a_request_runs_from_low() -> None:
    d = desk(bound=2)
    d.request(steps=1)
    for _ in range(3):
        d.request(steps=9)
    assert d.rounds(0.0, 0.1) == [[0, 1], [1, 2]]  # 2 and 3 overflow; 2 runs with the key that it got then
    d.request(arrival=0.15, steps=1)
    d.request(arrival=0.15, steps=1)
    assert d.rounds(0.2) == [[1, 4]]  # 5 overflows, with the least of waits
    assert d.rounds(0.3) == [[1, 5]]


def test_expiry_strikes_those_that_wait_as_well() -> None:
    d = desk(bound=1)
    d.request(slo=9.0)
    d.request(slo=1.5)  # needs 1.02 s
    assert ids(d.decide(0.0).run) == [0]
    d.done(0.1)
    assert d.decide(0.1).drop == []
    d.done(0.5)
    assert ids(d.decide(0.5).drop) == [1]


def test_the_test_for_expiry_includes_equality_the_one_for_admission_does_not() -> None:
    d = Desk(NeuStream(bound=2), {"dit": [0.5], "vae": [0.25]})
    assert d.admitted(slo=4 * 0.5 + 0.25, steps=4)
    assert ids(d.decide(0.0).drop) == [0]


def test_what_was_taken_away_by_others_is_forgotten() -> None:
    d = desk(bound=1)
    running, waiting = d.request(), d.request()
    assert ids(d.decide(0.0).run) == [0]
    for task in (running, waiting):
        d.policy.removed(task, d.view, 0.05)
    d.done(0.1)
    assert not d.decide(0.1).run


def test_a_wrong_requeue_is_said_in_one_line() -> None:
    with pytest.raises(BadInput, match="'sticky' or 'front'"):
        NeuStream(requeue="back")  # type: ignore[arg-type]
