"""No schedule meets more than a bound says: held against brute force, and against every policy in random systems."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
from harness import WorkerSetup, simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Module, Pipeline, Request
from servetwin.experiments.bound import exact
from servetwin.experiments.bound.linear_program import Program
from servetwin.experiments.bound.relaxation import lines_below, relax
from servetwin.experiments.bound.schedules import of_plan
from servetwin.experiments.bound.stage_loads import Place, stage_loads
from servetwin.sim import TableTiming
from worlds import PIPELINES, World, worlds

CHAINS = ("single", "chain", "two loops")


def loads_of(world: World, factor: float = 1.0):
    """What every schedule spends in *world* at least, with all times *factor* times as long."""
    simulation = replace(world, arrivals=world.arrivals[:0]).run(requests=[])
    places = []
    for i, worker in enumerate(simulation.loop.workers):
        timing = world._timing(i, worker.name)
        drawn = factor * (0.8 if world.noise is not None else 1.0)
        places.append(Place(worker, timing, drawn, alone=not world.contention))
    names = [worker.name for worker in simulation.loop.workers]
    ways = {(a, b): s for b, s in zip(names, world.delays, strict=False) for a in (None, *names)}
    stop = math.inf if world.stop_at is None else world.stop_at
    return stage_loads(places, ways, world.requests(), stop)


@given(worlds().filter(lambda world: world.pipeline in CHAINS))
@settings(max_examples=60, deadline=None)
def test_no_policy_meets_more_than_the_relaxation_allows(world: World) -> None:
    met = world.run().summary.met
    for load in loads_of(world):
        assert met <= relax(load).value + 1e-6
        assert met <= relax(load, slots=5).value + 1e-6  # fewer slots make it weaker, not wrong


@given(worlds(most=12, stops=False).filter(lambda world: world.pipeline in CHAINS), st.sampled_from([1.1, 2.0]))
@settings(max_examples=20, deadline=None)
def test_a_slower_system_has_no_higher_bound(world: World, factor: float) -> None:
    for fast, slow in zip(loads_of(world), loads_of(world, factor), strict=True):
        assert relax(slow).value <= relax(fast).value + 1e-6


def brute_force(tables: list[list[float]], requests: list[Request], works: list[list[int]]) -> int:
    """The most requests that are met at a chain of stages, each with its table: every choice of batches is tried, at
    each time at which something comes or ends. (To wait for anything else gains nothing.)"""
    stages, count = range(len(tables)), range(len(requests))

    @cache
    def best(now: float, where: tuple[tuple[int, int], ...], busy: tuple[tuple[float, tuple[int, ...]], ...]) -> int:
        # *where*: of each request the stage that it is at, and the iterations that are left there.
        over = sum(stage == len(tables) for stage, _ in where)
        free = [s for s in stages if not busy[s][1]]
        found = 0
        for choice in itertools.product(*([*batches(s, now, where)] if s in free else [()] for s in stages)):
            lanes = tuple(
                (now + tables[s][len(batch)], batch) if batch else busy[s]
                for s, batch in zip(stages, choice, strict=True)
            )
            times = [end for end, batch in lanes if batch] + [r.arrival for r in requests if r.arrival > now]
            if not times:
                continue
            then = min(times)
            after, rest = list(where), list(lanes)
            for s, (end, batch) in enumerate(lanes):
                if batch and end == then:
                    rest[s] = (0.0, ())
                    for i in batch:
                        stage, left = after[i]
                        if left > 1:
                            after[i] = (stage, left - 1)
                        else:
                            nxt = stage + 1
                            late = nxt == len(tables) and end > requests[i].deadline + 1e-9
                            after[i] = (-1, 0) if late else (nxt, works[nxt][i] if nxt < len(tables) else 0)
            if all(
                stage == -1 or requests[i].deadline < then
                for i, (stage, _) in enumerate(after)
                if stage < len(tables)
            ):
                found = max(found, sum(stage == len(tables) for stage, _ in after))
                continue
            found = max(found, best(then, tuple(after), tuple(rest)))
        return max(found, over)

    def batches(s: int, now: float, where):
        # Who is late already may still fill a batch, where larger ones are quicker.
        here = [i for i in count if where[i][0] == s and requests[i].arrival <= now]
        for size in range(min(len(here), len(tables[s]) - 1) + 1):
            yield from itertools.combinations(here, size)

    start = tuple((0, works[0][i]) for i in count)
    return best(0.0, start, tuple((0.0, ()) for _ in stages))


def system(tables: list[list[float]], requests: list[Request], policies=None):
    names = "abc"[: len(tables)]
    modules = [Module(name, loop=name == "a") for name in names]
    kinds = policies or [of_plan({name: [] for name in names})] * len(names)
    setups = [
        WorkerSetup([name], kind(), limit=len(table) - 1, timing=TableTiming(table), device=name)
        for name, table, kind in zip(names, tables, kinds, strict=True)
    ]
    return simulate(Pipeline(modules, list(itertools.pairwise(names))), setups, requests)


ticks = st.sampled_from([0.0, 1.0, 1.5, 3.0])


@given(
    st.lists(st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.5, 4.0]), min_size=1, max_size=2), min_size=1, max_size=2),
    st.lists(
        st.tuples(ticks, st.sampled_from([1.5, 2.5, 4.0, 6.0, 9.0]), st.integers(1, 2)), min_size=1, max_size=4
    ).map(sorted),
)
@settings(max_examples=30, deadline=None)
def test_small_systems_are_solved_exactly(seconds, asked) -> None:
    tables = [[float("nan"), *column] for column in seconds]
    make = lambda: [Request(i, a, slo, {"a": k}) for i, (a, slo, k) in enumerate(asked)]  # noqa: E731
    requests = make()
    works = [[k for _, _, k in asked], [1] * len(asked)]
    loads = stage_loads(
        [
            Place(worker, TableTiming(table))
            for worker, table in zip(system(tables, []).loop.workers, tables, strict=True)
        ],
        {},
        requests,
        math.inf,
    )
    assert all(load.times.bare for load in loads)
    solved = exact.solve(loads)
    most = math.floor(solved.value + 1e-6)
    assert most == brute_force(tables, requests, works)
    # The plan is a schedule: the simulator serves it, and as many requests are met.
    served = system(tables, make(), [of_plan(solved.plan)] * len(tables))
    assert served.summary.met == most
    assert all(relax(load).value >= most - 1e-6 for load in loads)


def test_lines_are_below_every_size_and_reach_the_hull() -> None:
    times = [float("nan"), 2.0, 1.9, 3.0, 3.5, 6.0]  # a batch of two is quicker than one: then one takes as long
    lines = lines_below(times)
    assert all(a + b * n <= times[n] + 1e-12 for n in range(1, 6) for a, b in lines)
    assert [max(a + b * n for a, b in lines) for n in (1, 2, 4, 5)] == pytest.approx([1.9, 1.9, 3.5, 6.0])


def test_the_value_of_a_program_is_proven_by_its_multipliers() -> None:
    program = Program()
    x = program.variables([3.0, 3.0], gain=1.0)
    program.at_most([4.0], (0, x, [1.0, 2.0]))
    program.equal([1.0], (0, x, [1.0, -1.0]))
    solved = program.solve()
    assert solved.value == pytest.approx(3.0)  # x = (2, 1)
    assert solved.at == pytest.approx([2.0, 1.0])


def test_graphs_that_are_no_chains_are_refused() -> None:
    from servetwin.core import BadInput

    modules, edges, _ = PIPELINES["diamond"]
    names = [m.name for m in modules]
    kind = of_plan({name: [] for name in names})
    setups = [WorkerSetup([name], kind(), limit=1) for name in names]
    workers = simulate(Pipeline(modules, edges), setups, []).loop.workers
    with pytest.raises(BadInput, match="chain"):
        stage_loads([Place(w, TableTiming([0.0, 1.0])) for w in workers], {}, [], math.inf)
