"""The loop for a single engine gives what the calendar gives, to the bit, whatever the policy does."""

from __future__ import annotations

import gc
import math
from itertools import pairwise

import pytest
from engines import Anything, Linear, requests, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Recorder, ServingLoop
from servetwin.core.records import request_record
from servetwin.core.token_worker import TokenWorker
from servetwin.core.tokens import ALL, EngineLimits, Step, TokenPolicy, TokenRequest, TokenView
from servetwin.experiments import resolve
from servetwin.experiments.build import build
from servetwin.policies.vllm import VLLM
from servetwin.sim import SimExecutor
from servetwin.sim.fused import play
from servetwin.sim.tokens import TokenTiming
from test_token_laws import POLICIES, SLO, engines, noise, rows

gaps = st.one_of(st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3, 2.0]), st.floats(0.0, 1.0))
workloads = st.lists(st.tuples(gaps, st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=25)


class Ends(Recorder):
    """What became of each request, in the order in which they ended, and what the summary held then."""

    def __init__(self, times: bool) -> None:
        super().__init__()
        self.wants_token_times = times
        self.seen: list[object] = []

    def arrived(self, request) -> None:
        super().arrived(request)
        self.seen.append(("came", request.id))

    def ended(self, request, now) -> None:
        super().ended(request, now)
        self.seen.append((now, request_record(request), len(self.summary.e2el)))


class Crooked(Linear):
    """Decode steps whose slope changes with the context."""

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        part = int(context // 64)
        return self.d0 + 0.001 * part, self.d1, 64.0 * (part + 1)

    def decode(self, batch: int, context: float) -> float:
        a, b, _ = self.straight(batch, context)
        return a + b * context


def serve(policy, sent, fused, *, crooked=False, gap=0.0, seed=None, times=True, slo=None, stop=None, late=None,
          preparing=0.0, **limits):  # fmt: skip
    steps = (Crooked if crooked else Linear)(gap=gap)
    view = view_of(steps, EngineLimits(**limits), slo)
    worker = TokenWorker(view.stage, policy, view)
    timing = TokenTiming(steps, noise(seed), lambda n: 0.001 * n, None, preparing)
    executor = SimExecutor(lambda _: timing)
    log = Ends(times)
    loop = ServingLoop([view.stage], [worker], executor, log)

    def source():
        yield from sent
        if stop is not None:
            executor.call_at(executor.now() + stop, loop.stop)

    if late is not None:
        executor.call_at(late, lambda: None)
    play(loop, executor, source(), fused=fused)
    found = (log.seen, log.summary.as_dict(), executor.now(), loop._batches, len(loop.live), view.free_blocks)
    return found, executor


common = {
    "crooked": st.booleans(),
    "gap": st.sampled_from([0.0, 0.002]),
    "seed": st.none() | st.integers(0, 9),
    "times": st.booleans(),
    "stop": st.none() | st.sampled_from([0.0, 0.1, 1.7]),
    "preparing": st.sampled_from([0.0, 0.0, 0.003]),
    "max_batched_tokens": st.sampled_from([60, 100, 1000]),
}


@pytest.mark.parametrize("name", POLICIES)
@given(workloads, engines, st.fixed_dictionaries(common), st.booleans())
@settings(max_examples=60)
def test_both_ways_come_to_the_same(name, workload, engine, world, deadlines) -> None:
    slo = SLO if deadlines or name.startswith(("neustream", "edf")) else None
    found = [
        serve(POLICIES[name](), requests(*rows(workload), limit=50), fused, slo=slo, **{**world, **engine})[0]
        for fused in (True, False)
    ]
    assert found[0] == found[1]


@given(workloads, engines, st.fixed_dictionaries(common), st.integers(0, 10**6))
@settings(max_examples=150)
def test_also_when_the_policy_does_anything(workload, engine, world, seed) -> None:
    """It drops, preempts, decodes some, and idles until a time: then the calendar takes over on the way."""
    found = [
        serve(Anything(seed), requests(*rows(workload), limit=50), fused, **{**world, **engine})[0]
        for fused in (True, False)
    ]
    assert found[0] == found[1]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=25),
       st.none() | st.integers(0, 8), st.booleans())  # fmt: skip
@settings(max_examples=200)
def test_ties_in_time_go_the_same_way(workload, stop, times) -> None:
    """Steps of a whole second, arrivals at whole seconds: nearly everything falls together."""
    found = []
    for fused in (True, False):
        steps = Linear(c0=1.0, c1=0.0, d0=1.0, d1=0.0)
        view = view_of(steps, EngineLimits(30, max_sequences=3))
        executor = SimExecutor(lambda _, steps=steps: TokenTiming(steps))
        log = Ends(times)
        loop = ServingLoop([view.stage], [TokenWorker(view.stage, VLLM(), view)], executor, log)

        def source(executor=executor, loop=loop):
            yield from requests(*rows([(float(g), p, o) for g, p, o in workload]))
            if stop is not None:
                executor.call_at(executor.now() + stop, loop.stop)

        play(loop, executor, source(), fused=fused)
        found.append((log.seen, log.summary.as_dict(), loop._batches))
    assert found[0] == found[1]


def test_a_run_of_one_engine_does_without_the_calendar_and_a_busy_one_does_not() -> None:
    sent = [(0.1 * i, 30, 20) for i in range(40)]
    _, executor = serve(VLLM(), requests(*sent), True, blocks=1000)
    assert next(executor.calendar._eid) == 0
    _, executor = serve(VLLM(), requests(*sent), False, blocks=1000)
    assert next(executor.calendar._eid) > 40
    a, executor = serve(VLLM(), requests(*sent), True, blocks=1000, late=2.0)  # something stands there already
    assert next(executor.calendar._eid) > 40
    assert a[0] == serve(VLLM(), requests(*sent), True, blocks=1000)[0][0]


def test_a_policy_that_nobody_has_heard_of_takes_the_short_way_too() -> None:
    class LastFirst(TokenPolicy):
        def decide(self, view: TokenView, now: float) -> Step:
            order = [(task, task.pending) for task in reversed(view.waiting)]
            prefill = view.admissible(order[:1])
            return Step(prefill) if prefill else Step(decode=ALL)

    sent = [(0.01 * i, 30, 20) for i in range(30)]
    fused, executor = serve(LastFirst(), requests(*sent), True, blocks=40)
    assert next(executor.calendar._eid) == 0
    assert fused == serve(LastFirst(), requests(*sent), False, blocks=40)[0]
    ends = [entry[1]["id"] for entry in fused[0] if isinstance(entry[0], float)]
    assert any(a > b for a, b in pairwise(ends))
    assert fused[2] < math.inf


@pytest.mark.parametrize("holds", ["requests", "tasks", "nothing"])
def test_requests_that_somebody_holds_stay_whole(holds: str) -> None:
    class Holds(Recorder):
        held: list = []  # noqa: RUF012

        def ended(self, request, now) -> None:
            super().ended(request, now)
            if holds != "nothing":
                self.held.append(request if holds == "requests" else request.tasks[0])

    gc.collect()
    gc.disable()
    try:
        view = view_of(Linear(), EngineLimits(100))
        executor = SimExecutor(lambda _: TokenTiming(Linear()))
        log = Holds()
        log.held = []
        loop = ServingLoop([view.stage], [TokenWorker(view.stage, VLLM(), view)], executor, log)
        play(loop, executor, (r for r in requests(*[(0.1 * i, 30, 20) for i in range(50)])))
        left = sum(isinstance(thing, TokenRequest) for thing in gc.get_objects())
    finally:
        gc.enable()
    kept = log.held if holds == "requests" else [task.request for task in log.held]
    assert len(kept) == (0 if holds == "nothing" else 50)
    assert all(len(request.tasks) == 1 and request.tasks[0].request is request for request in kept)
    assert left >= len(kept)


@pytest.mark.parametrize("policy", ["neustream-llm", "vllm", "vllm-v1", "sarathi", "edf-llm"])
@pytest.mark.parametrize("more", [[], [("time.noise", False)], [("system.stop_after", 3.0)]])
def test_experiments_come_to_the_same(policy: str, more: list) -> None:
    experiment = resolve.load("opt-13b-a6000", [("policy", policy), ("rate", 3.0), ("requests", 150), *more])
    short, long = build(experiment).play(), build(experiment).play(fused=False)
    assert short.as_dict() == long.as_dict()
    assert short.e2el == long.e2el
