"""Conservation over random graphs that fork, join, branch, go back and call tools."""

from __future__ import annotations

from collections import Counter

import pytest
from graphs import POLICIES, World, worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Edge, RunFolder
from servetwin.core.invariants.record_checker import check_records


def visits(simulation, request) -> Counter[str]:
    return Counter(t.stage.name for t in request.tasks)


@given(worlds())
@settings(max_examples=250)
def test_every_request_ends_once_and_no_invariant_is_broken(world: World) -> None:
    simulation = world.run()  # raises InvariantBroken otherwise: joins wait for all, pools keep to their threads
    assert all(r.outcome is not None for r in simulation.requests)


@given(worlds())
def test_joins_wait_for_all_their_inputs(world: World) -> None:
    simulation = world.run()
    for request in simulation.requests:
        seen: Counter[str] = Counter()
        for task in request.tasks:
            stage = task.stage
            seen[stage.name] += 1
            jumped = any(isinstance(e, Edge) and e.target == stage.name for e in world.graph.edges)
            if stage.inputs > 1 and not jumped:
                for feeder in world.pipeline.predecessors[stage.name]:
                    done = [t for t in request.tasks if t.stage.name == feeder and t.finished is not None]
                    assert sum(t.finished <= task.queued for t in done) >= seen[stage.name]


@given(worlds(budgets=False))
def test_bounded_loops_end(world: World) -> None:
    for request in world.run().requests:
        for edge in world.graph.edges:
            if isinstance(edge, Edge) and edge.most is not None:
                others = sum(e.most or 0 for e in world.graph.edges if isinstance(e, Edge))
                assert visits(None, request)[edge.target] <= 1 + others


@given(worlds(budgets=False), st.sampled_from(["fcfs", "edf-keep"]))
def test_no_policy_and_no_order_changes_which_way_a_request_goes(world: World, policy: str) -> None:
    keeps = dict.fromkeys(POLICIES, "fcfs")
    one = world.run(policies={m.name: keeps["fcfs"] for m in world.graph.modules})
    other = world.run(policies={m.name: policy for m in world.graph.modules})
    for a, b in zip(one.requests, other.requests, strict=True):
        assert visits(one, a) == visits(other, b)


@given(worlds())
def test_no_time_is_made_by_sharing_it_out(world: World) -> None:
    for request in world.run().requests:
        for task in request.tasks:
            assert task.deadline <= request.deadline
        if world.budget is not None and world.budget[0] == "proportional" and world.budget[1]:
            _allowances_fit(request)


def _allowances_fit(request) -> None:
    """Along the way that a request took, as far as it is without retries, the shares are no more than the SLO."""
    first = {}
    for task in request.tasks:
        first.setdefault(task.stage.name, task.deadline)
    assert max(first.values()) - request.arrival <= request.slo * (1 + 1e-9)


@given(worlds())
def test_the_same_seed_gives_the_same_records(tmp_path_factory, world: World) -> None:
    records = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("run")
        recorder = RunFolder(folder, {})
        world.run(recorder)
        recorder.close()
        check_records(folder)
        records.append([(folder / f).read_bytes() for f in ("requests.jsonl", "batches.jsonl")])
    assert records[0] == records[1]


@pytest.mark.parametrize("chance", [0.2, 0.7])
def test_ways_are_taken_as_often_as_their_probability_says(chance: float) -> None:
    from servetwin.core import Module, Pipeline, Request
    from servetwin.core.serving.branching import Branching

    pipeline = Pipeline([Module("a"), Module("b"), Module("c")], [("a", "b"), Edge("a", "c", chance)])
    stages = pipeline.stages([["a"], ["b"], ["c"]])
    ways = Branching(stages, seed=3)
    went = Counter(ways.after(Request(i, 0.0, 1.0, {}), stages[0])[0][0].name for i in range(20_000))
    assert went["c"] / 20_000 == pytest.approx(chance, abs=0.01)
