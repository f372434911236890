"""Pipelines that branch and go back, pools of threads, and budgets of slack."""

from __future__ import annotations

import doctest
import importlib

import pytest
from harness import Script, WorkerSetup, simulate
from servetwin.core import BadInput, Decision, Edge, Module, Pipeline, Request
from servetwin.core.errors import PolicyFault
from servetwin.core.serving.budget import Alone, Budget, equal, fixed, proportional
from servetwin.core.serving.pool import Pool
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.sim.pool_lane import CallTimes


def agent(chance: float = 1.0, most: int = 2) -> Pipeline:
    """Code is written, executed, written again if that fails, and judged."""
    modules = [Module("write"), Module("execute"), Module("judge")]
    edges = [("write", "execute"), Edge("execute", "write", chance, most), ("execute", "judge")]
    return Pipeline(modules, edges)


def served(pipeline: Pipeline, requests, **more):
    setups = [WorkerSetup([m], FCFS(), [1.0]) for m in pipeline.modules]
    return simulate(pipeline, setups, requests, **more)


def way(request: Request) -> str:
    return " ".join(f"{t.stage.name}@{t.queued:g}" for t in request.tasks)


def test_docstrings_run() -> None:
    for name in ("pipeline", "serving.budget"):
        result = doctest.testmod(importlib.import_module(f"servetwin.core.{name}"))
        assert not result.failed


def test_a_failed_execution_is_tried_again_a_bounded_number_of_times() -> None:
    run = served(agent(most=2), [Request(0, 0.0, 9.0, {})])
    assert way(run.requests[0]) == "write@0 execute@1 write@2 execute@3 write@4 execute@5 judge@6"
    assert run.outcomes() == ["met"]


def test_what_is_left_of_the_way_takes_no_retry_into_account() -> None:
    write, execute, judge = agent(0.9).stages([["write"], ["execute"], ["judge"]])
    assert (write.rest, execute.rest, judge.rest) == (("execute", "judge"), ("judge",), ())
    assert (write.inputs, write.again, judge.again) == (0, True, False)


def test_the_likelier_of_two_ways_is_the_one_that_is_reckoned_with() -> None:
    modules = [Module("route"), Module("small"), Module("large"), Module("end", join="any")]
    edges = [Edge("route", "large", 0.7), ("route", "small"), ("small", "end"), ("large", "end")]
    pipeline = Pipeline(modules, edges)
    assert pipeline.likely == ("route", "large", "end")
    assert pipeline.stages([[m.name] for m in modules])[0].rest == ("large", "end")


def test_a_request_that_forks_ends_when_all_its_branches_have() -> None:
    modules = [Module("a"), Module("b"), Module("c")]
    pipeline = Pipeline(modules, [("a", "b"), ("a", "c"), Edge("c", "c", 1.0, 3)])
    run = served(pipeline, [Request(0, 0.0, 99.0, {})])
    assert way(run.requests[0]) == "a@0 b@1 c@1 c@2 c@3 c@4"
    assert run.requests[0].finished == 5.0


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (
            [("a", "b"), Edge("b", "a", 0.5)],
            r"edge b -> a leads back without a bound \(right would be: most: 3, say\)",
        ),
        ([Edge("a", "b", 0.0)], "edge a -> b has probability 0"),
        ([Edge("a", "b", 0.7), Edge("a", "c", 0.7)], "the edges that leave a have probabilities of 1.4 together"),
        ([("a", "b"), Edge("a", "b", 0.3)], "edge a -> b stands twice"),
        ([("a", "b"), Edge("b", "a", 0.5, 0)], "edge b -> a is taken 0 times at most"),
        (
            [Edge("a", "b", 0.5), ("a", "c"), ("b", "d"), ("c", "d")],
            "d waits for 2 inputs and gets 1 on the way by a -> b .right would be: join: any at d",
        ),
    ],
)
def test_a_wrong_branch_is_told_in_one_line(edges, message: str) -> None:
    with pytest.raises(BadInput, match=f"^{message}"):
        Pipeline([Module(m) for m in "abcd"], edges)


def test_nothing_shares_a_stage_across_a_branch() -> None:
    with pytest.raises(BadInput, match="execute and judge cannot share a stage"):
        agent().stages([["write"], ["execute", "judge"]])


# -- pools of threads -----------------------------------------------------------------------------------------


def tool(threads: int, requests, *, policy=None, values=(1.0,), **more):
    calls = CallTimes("tool", "list", values=values)
    setup = WorkerSetup(["tool"], policy or FCFS(), threads=threads, calls=calls)
    return simulate(Pipeline([Module("tool")], []), [setup], requests, **more)


def test_a_pool_runs_as_many_calls_as_it_has_threads() -> None:
    run = tool(2, [Request(i, 0.0, 9.0, {}) for i in range(5)], values=[1.0, 3.0, 1.0, 0.5, 1.0])
    assert run.stamps("tool") == [(0, 0, 1), (0, 0, 3), (0, 1, 2), (0, 2, 2.5), (0, 2.5, 3.5)]


def test_the_policy_of_a_pool_orders_its_queue() -> None:
    last_first = Script(lambda view, now: Decision(list(view.waiting)[-1:]))
    last_first.pools = True
    run = tool(1, [Request(i, 0.0, 9.0, {}) for i in range(4)], policy=last_first)
    assert [start for _, start, _ in run.stamps("tool")] == [3.0, 2.0, 1.0, 0.0]


def test_the_policy_of_a_pool_hears_of_each_call_that_is_over() -> None:
    one_by_one = Script(lambda view, now: Decision(list(view.waiting)[:1]))
    one_by_one.pools = True
    tool(2, [Request(i, 0.0, 9.0, {}) for i in range(3)], policy=one_by_one, values=[1.0, 3.0, 1.0])
    assert one_by_one.told("ended") == [([0], 1.0), ([2], 2.0), ([1], 3.0)]


@pytest.mark.parametrize(("what", "value"), [("iterations", 7), ("started", 0.5), ("deadline", 99.0)])
def test_the_policy_of_a_pool_writes_to_no_call_that_runs(what: str, value: float) -> None:
    def write(view, now):
        for task in view.running:
            setattr(task, what, value)
        return Decision(list(view.waiting)[:1])

    writes = Script(write)
    writes.pools = True
    with pytest.raises(PolicyFault, match=f"{what} of task 0"):
        tool(2, [Request(0, 0.0, 9.0, {}), Request(1, 0.25, 9.0, {})], policy=writes)


def test_a_batching_policy_serves_no_pool_and_a_pool_no_loop() -> None:
    (stage,) = Pipeline.chain(Module("tool")).stages([["tool"]])
    with pytest.raises(BadInput, match="policy EDF cannot serve a pool of threads"):
        Pool(stage, EDF(), lambda m, n: 1.0, threads=2)
    (loop,) = Pipeline.chain(Module("unet", loop=True)).stages([["unet"]])
    with pytest.raises(BadInput, match="unet is a loop, which no pool of threads serves"):
        Pool(loop, FCFS(), lambda m, n: 1.0, threads=2)


def test_what_is_stopped_leaves_the_queue_and_calls_run_out() -> None:
    run = tool(1, [Request(i, 0.0, 9.0, {}) for i in range(3)], stop_at=0.5)
    assert run.outcomes() == ["failed"] * 3
    assert [t.started for r in run.requests for t in r.tasks] == [0.0, None, None]


# -- budgets --------------------------------------------------------------------------------------------------

THREE = Pipeline.chain(Module("a"), Module("b"), Module("c"))


def deadlines(rule, slo: float = 12.0, *, carry: bool = True, forward="always", seconds=(1.0, 2.0, 3.0), took=None):
    alone_seconds = dict(zip("abc", seconds, strict=True))
    setups = [WorkerSetup([m], FCFS(), [t]) for m, t in zip("abc", took or seconds, strict=True)]

    def budget(stages):
        alone = Alone(stages, alone_seconds)
        return Budget(rule(alone), carry=carry, forward=forward, left=lambda t: alone.after(t.request, t.stage))

    run = simulate(THREE, setups, [Request(0, 10.0, slo, {})], budget=budget)
    return [t.deadline - 10.0 for t in run.requests[0].tasks], run.requests[0]


def test_slack_goes_on_with_the_request() -> None:
    assert deadlines(proportional)[0] == [2.0, 6.0, 12.0]
    assert deadlines(equal)[0] == [3.0, 7.0, 12.0]
    assert deadlines(lambda _: fixed({"a": 1.5, "b": 2.5, "c": 5.0}))[0] == [1.5, 4.0, 9.0]


def test_or_is_lost_at_the_hand_over() -> None:
    assert deadlines(proportional, carry=False)[0] == [2.0, 1.0 + 4.0, 3.0 + 6.0]


def test_what_overdrew_its_budget_is_not_forwarded() -> None:
    # a takes 3 s where it was to take 1, and had 2.
    seen, request = deadlines(proportional, took=(3.0, 2.0, 3.0))
    assert (len(seen), request.outcome) == (3, "met")
    seen, request = deadlines(proportional, took=(3.0, 2.0, 3.0), forward="budget")
    assert (len(seen), request.outcome, request.reason) == (1, "dropped", "not forwarded from a")
    seen, request = deadlines(proportional, took=(3.0, 2.0, 3.0), forward="left")
    assert (len(seen), request.outcome) == (3, "met")
    seen, request = deadlines(proportional, took=(7.5, 2.0, 3.0), forward="left")
    assert (len(seen), request.outcome) == (1, "dropped")


def test_a_join_goes_by_the_later_of_its_inputs() -> None:
    modules = [Module(m) for m in "abcd"]
    pipeline = Pipeline(modules, [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    seconds = {"a": 1.0, "b": 1.0, "c": 4.0, "d": 1.0}
    run = simulate(
        pipeline,
        [WorkerSetup([m], FCFS(), [t]) for m, t in seconds.items()],
        [Request(0, 0.0, 12.0, {})],
        budget=lambda stages: Budget(proportional(Alone(stages, seconds))),
    )
    assert {t.stage.name: t.deadline for t in run.requests[0].tasks} == {"a": 2.0, "b": 4.0, "c": 10.0, "d": 12.0}
