"""Orca and FastServe, step by step."""

from __future__ import annotations

import pytest
from servetwin.core.testing import FakeEngine
from servetwin.policies.llm.fastserve import FastServe
from servetwin.policies.llm.orca import Orca

# -- Orca ---------------------------------------------------------------------------------------------------------


def test_who_comes_joins_at_the_next_iteration_and_who_ends_leaves_at_once() -> None:
    """As in the paper's figure of iteration-level scheduling: three at once, two run, two come, one of them joins."""
    engine = FakeEngine(Orca(max_batch=3))
    engine.arrive(10, output=3)
    engine.arrive(12, output=9)
    step = engine.decide(0.0)
    assert step is not None
    assert step.prefill == [(0, 10), (1, 12)]
    engine.end(0.1)
    engine.arrive(14)
    engine.arrive(16)
    step = engine.decide(0.1)
    assert step is not None
    assert (step.prefill, step.decode) == ([(2, 14)], [0, 1])  # one batch of both kinds
    engine.end(0.2)
    engine.decide(0.2)
    engine.end(0.3)  # 0 has put out three tokens
    step = engine.decide(0.3)
    assert step is not None
    assert (step.prefill, step.decode) == ([(3, 16)], [1, 2])


@pytest.mark.parametrize(("blocks", "joins"), [(9, True), (8, False)])
def test_slots_for_all_that_may_come_are_reserved(blocks: int, joins: bool) -> None:
    # 10 + 50 tokens take 4 blocks of 16, 20 + 60 take 5, though at first 1 and 2 would do.
    engine = FakeEngine(Orca(), blocks=blocks)
    engine.arrive(10, output=2, limit=50)
    engine.arrive(20, output=2, limit=60)
    engine.arrive(1, output=1, limit=1)
    step = engine.decide(0.0)
    assert step is not None
    # Who does not fit keeps those after it waiting.
    assert step.prefill == ([(0, 10), (1, 20)] if joins else [(0, 10)])


def test_nobody_is_ever_preempted_for_memory() -> None:
    engine = FakeEngine(Orca(), blocks=12, headroom=1)
    for _ in range(6):
        engine.arrive(16, output=40, limit=48)
    now, preempted, most = 0.0, [], 0
    while step := engine.decide(now):
        preempted += step.preempted
        most = max(most, len(step.prefill) + len(step.decode))
        now += 0.1
        engine.end(now)
    assert preempted == []
    assert most == 2  # 4 blocks each, of 11
    assert engine.view.free_blocks == 12


def test_what_could_never_run_is_dropped() -> None:
    engine = FakeEngine(Orca(), blocks=10, max_batched_tokens=100)
    engine.arrive(101, limit=1, output=1)
    engine.arrive(100, limit=61, output=1)
    engine.arrive(100, limit=60, output=1)
    step = engine.decide(0.0)
    assert step is not None
    assert step.prefill == [(2, 100)]
    assert engine.dropped == [0, 1]


# -- FastServe ----------------------------------------------------------------------------------------------------


def served(engine: FakeEngine, until: float, prefill: float = 0.01, decode: float = 1.0) -> list[tuple[float, int]]:
    """When whose iteration began, one request at a time."""
    out, now = [], 0.0
    while now < until:
        step = engine.decide(now)
        assert step is not None
        ((who, tokens),) = step.prefill or [(step.decode[0], 0)]
        out.append((now, who))
        now = round(now + (prefill * tokens if tokens else decode), 6)
        engine.end(now)
    return out


def engine_of_one(**params: float) -> FakeEngine:
    return FakeEngine(FastServe(max_batch=1, quantum=1.0, **params), prefill=0.01, decode=1.0)


@pytest.mark.parametrize(("skip_join", "order"), [(True, [1, 2, 0]), (False, [0, 1, 2])])
def test_a_request_joins_the_queue_whose_quantum_lasts_for_its_prefill(skip_join: bool, order: list[int]) -> None:
    engine = engine_of_one(skip_join=skip_join)
    for prompt in (350, 90, 150):  # 3.5 s: queue 2 (4 s); 0.9 s: queue 0; 1.5 s: queue 1 (2 s)
        engine.arrive(prompt, output=1)
    assert [who for _, who in served(engine, 4.5)] == order


def test_who_has_used_its_quantum_goes_to_the_end_of_the_next_queue() -> None:
    engine = engine_of_one(starve=100.0)
    engine.arrive(50)
    engine.arrive(50)
    # 0: half a second of prefill, a second of decode: more than 1 s, so it is 1's turn, and then 0's for what is left
    # of 1 + 2 s, then 1's likewise, then 0's for 1 + 2 + 4 s.
    expected = [(0.0, 0), (0.5, 0), (1.5, 1), (2.0, 1), (3.0, 0), (4.0, 0), (5.0, 1), (6.0, 1), (7.0, 0), (8.0, 0)]
    assert served(engine, 9.0) == expected


def test_who_comes_passes_those_that_have_been_served_for_long() -> None:
    engine = engine_of_one(starve=100.0)
    engine.arrive(50)
    served(engine, 5.0)
    engine.arrive(50, output=2)
    assert [who for _, who in served_from(engine, 5.5, 3)] == [1, 1, 0]


def served_from(engine: FakeEngine, now: float, steps: int) -> list[tuple[float, int]]:
    out = []
    for _ in range(steps):
        step = engine.decide(now)
        assert step is not None
        ((who, tokens),) = step.prefill or [(step.decode[0], 0)]
        out.append((now, who))
        now += 0.01 * tokens if tokens else 1.0
        engine.end(now)
    return out


def test_who_was_not_served_for_long_goes_to_the_first_queue() -> None:
    order = {}
    for starve in (2.0, 100.0):
        engine = engine_of_one(starve=starve, every=1)
        engine.arrive(350, output=1)  # queue 2, where it waits behind what is shorter
        engine.arrive(90, output=3)
        engine.arrive(90, output=3)
        order[starve] = [who for _, who in served(engine, 4.0)]
    # At 3.8 both 1 and 2 have used their quantum, and stand in queue 1.
    assert order == {2.0: [1, 1, 2, 2, 0], 100.0: [1, 1, 2, 2, 1]}


def test_who_pauses_keeps_its_memory_unless_somebody_before_it_needs_it() -> None:
    for blocks, preempted in ((12, []), (10, [0])):
        engine = FakeEngine(FastServe(max_batch=1, quantum=1.0), prefill=0.01, decode=1.0, blocks=blocks)
        engine.arrive(95)  # 6 blocks, and a 7th from the second decode on
        served(engine, 1.9)
        engine.arrive(80, output=2)  # 5 blocks
        step = engine.decide(2.0)
        assert step is not None
        assert step.prefill == [(1, 80)]
        assert step.preempted == preempted
        engine.end(2.8)
        step = engine.decide(2.8)
        assert step is not None
        assert step.decode == [1]
        engine.end(3.8)
        step = engine.decide(3.8)
        assert step is not None
        assert (step.decode == [0]) == (not preempted)
        assert bool(step.prefill) == bool(preempted)  # computed anew


def test_nobody_loses_memory_for_one_that_does_not_fit_even_so() -> None:
    engine = FakeEngine(FastServe(max_batch=2, quantum=1.0), prefill=0.001, decode=1.0, blocks=10)
    engine.arrive(60, output=30)
    engine.arrive(40, output=30)
    engine.decide(0.0)
    engine.end(0.1)
    engine.arrive(155, output=2)  # all ten blocks, but 0 stands before it
    step = engine.decide(0.1)
    assert step is not None
    assert step.decode == [0, 1]
    assert step.preempted == []
