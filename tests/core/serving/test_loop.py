"""The serving loop, with policies that do as they are told and time that passes when the test says so."""

from __future__ import annotations

import pytest
from harness import Script, WorkerSetup, one_stage, simulate
from servetwin.core import Decision, InvariantBroken, Module, Pipeline, Request

CHAIN = Pipeline.chain(Module("a", loop=True), Module("b"))


def request(i: int, arrival: float, *, slo: float = 100.0, steps: int = 1) -> Request:
    return Request(i, arrival, slo, {"m": steps, "a": steps})


def batches(policy: Script) -> list[tuple[float, list[int]]]:
    """(time, ids) of the batches that the policy decided."""
    return [(now, ids) for now, ids in policy.told("decide") if ids]


def test_what_arrives_during_an_iteration_is_in_the_next_if_taken_in_before() -> None:
    policy = Script()
    one_stage(policy, [request(0, 0.0, steps=4), request(1, 0.5, steps=4)], intake="before")
    assert batches(policy)[:3] == [(0.0, [0]), (1.0, [0, 1]), (2.0, [0, 1])]


def test_what_arrives_during_an_iteration_is_in_the_one_after_next_if_taken_in_after() -> None:
    policy = Script()
    one_stage(policy, [request(0, 0.0, steps=4), request(1, 0.5, steps=4)], intake="after")
    assert batches(policy)[:3] == [(0.0, [0]), (1.0, [0]), (2.0, [0, 1])]


def test_an_idle_worker_takes_in_at_once() -> None:
    for intake in ("before", "after"):
        policy = Script()
        one_stage(policy, [request(0, 0.0), request(1, 5.25)], intake=intake)
        assert batches(policy) == [(0.0, [0]), (5.25, [1])]


def test_a_request_is_met_up_to_its_very_deadline() -> None:
    run = one_stage(Script(), [request(0, 0.0, slo=2.0, steps=2), request(1, 10.0, slo=1.5, steps=2)])
    assert run.outcomes() == ["met", "late"]
    assert run.summary.attainment == 0.5


def test_a_refused_request_is_dropped() -> None:
    run = one_stage(Script(admit=lambda task, view, now: task.id != 1), [request(i, 0.0) for i in range(3)])
    assert run.outcomes() == ["met", "dropped", "met"]


def test_a_policy_drops_what_waits_and_what_runs() -> None:
    def drop_at_two(view, now):
        if now == 2.0:
            return Decision(drop=[*view.running, *view.waiting])
        return Decision([*view.running, *view.waiting][:1])

    run = one_stage(Script(drop_at_two), [request(0, 0.0, steps=9), request(1, 0.0, steps=9)])
    assert run.outcomes() == ["dropped", "dropped"]
    assert run.summary.last_end == 2.0


def test_a_whole_batch_runs_as_long_as_its_longest() -> None:
    def whole(view, now):
        return Decision(list(view.waiting), whole=True)

    requests = [request(0, 0.0), request(1, 0.5, steps=2), request(2, 0.5, steps=5)]
    assert [r.finished for r in one_stage(Script(whole), requests).requests] == [1.0, 6.0, 6.0]


def test_the_stop_cuts_off_what_is_in_flight() -> None:
    setups = [WorkerSetup(["m"], Script())]
    requests = [request(0, 0.0, steps=2), request(1, 1.5, steps=9)]
    run = simulate(Pipeline([Module("m", loop=True)], []), setups, requests, stop_at=4.0)
    assert run.outcomes() == ["met", "failed"]
    assert run.requests[1].reason == "cut off by the stop"


def test_a_policy_that_looks_ahead_fills_the_backlog() -> None:
    def whole_each(view, now):
        if view.waiting and len(view.backlog) < 2:
            return Decision([next(iter(view.waiting))], whole=True)
        return Decision()

    policy = Script(whole_each, ahead=True)
    run = one_stage(policy, [request(i, 0.0, steps=2) for i in range(3)])
    assert [ids for _, ids in batches(policy)] == [[0], [1], [2]]
    assert run.stamps("m") == [(0.0, 0.0, 2.0), (0.0, 2.0, 4.0), (0.0, 4.0, 6.0)]


def test_a_policy_may_wait_for_a_time() -> None:
    def from_three(view, now):
        return Decision(list(view.waiting)) if now >= 3.0 else Decision(idle_until=3.0)

    run = one_stage(Script(from_three), [request(0, 0.0)])
    assert run.stamps("m") == [(0.0, 3.0, 4.0)]


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (lambda view, now: Decision([*view.waiting, *view.running] * 2), "over the limit|twice|not"),
        (lambda view, now: Decision(idle_until=now), "not in the future"),
    ],
    ids=["too many", "no time"],
)
def test_nonsense_is_refused(decide, message: str) -> None:
    with pytest.raises(InvariantBroken, match=message):
        one_stage(Script(decide), [request(0, 0.0)], limit=1)


def test_requests_go_from_stage_to_stage() -> None:
    setups = [WorkerSetup(["a"], Script()), WorkerSetup(["b"], Script(), seconds=(0.5,))]
    run = simulate(CHAIN, setups, [request(0, 1.0, steps=3)])
    assert run.stamps("a") == [(1.0, 1.0, 4.0)]
    assert run.stamps("b") == [(4.0, 4.0, 4.5)]


def test_a_join_waits_for_all_its_inputs() -> None:
    diamond = Pipeline([Module(m) for m in "abcd"], [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    setups = [WorkerSetup([m], Script(), seconds=(s,)) for m, s in (("a", 1.0), ("b", 2.0), ("c", 5.0), ("d", 1.0))]
    run = simulate(diamond, setups, [request(0, 0.0)])
    assert run.stamps("d") == [(6.0, 6.0, 7.0)]
    assert run.outcomes() == ["met"]


def test_a_drop_in_one_branch_withdraws_the_other() -> None:
    fork = Pipeline([Module(m) for m in "abc"], [("a", "b"), ("a", "c")])
    waiting = Script(lambda view, now: Decision(idle_until=now + 1.0) if view.waiting else Decision())
    refusing = Script(admit=lambda task, view, now: False)
    setups = [WorkerSetup(["a"], Script()), WorkerSetup(["b"], waiting), WorkerSetup(["c"], refusing)]
    run = simulate(fork, setups, [request(0, 0.0)])
    assert run.outcomes() == ["dropped"]
    assert waiting.told("removed") == [(0, 1.0)]
