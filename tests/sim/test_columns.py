"""An engine that goes on by itself, under a policy's standing word, gives what asking at every step gives."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest
from engines import Linear, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Outcome, Recorder, ServingLoop
from servetwin.core.token_columns import TokenColumns
from servetwin.core.token_latencies import TokenLatencies
from servetwin.core.token_worker import TokenWorker
from servetwin.core.tokens import ALL, EngineLimits, Step, TokenPolicy, TokenRequest, TokenTask, TokenView
from servetwin.policies.vllm import VLLM
from servetwin.sim import SimExecutor
from servetwin.sim.fused import play
from servetwin.sim.tokens import TokenTiming
from test_fused import Crooked
from test_token_laws import engines, noise, rows

gaps = st.one_of(st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3, 2.0]), st.floats(0.0, 1.0))
lengths = st.tuples(gaps, st.integers(1, 60), st.integers(1, 40))
odd = st.tuples(gaps, st.sampled_from([101, 150, 700]), st.integers(1, 5))
workloads = st.lists(st.one_of(lengths, lengths, lengths, lengths, odd), min_size=1, max_size=30)


def seen_of(task: TokenTask) -> tuple[object, ...]:
    request = task.request
    assert isinstance(request, TokenRequest)
    return (
        task.id, task.arrival, task.deadline, task.queued, task.admitted, task.started, task.finished, task.prompt,
        task.limit, task.budget, task.preemptions, task.first_token, task.generated, task.computed, task.pending,
        task.decoding, task.left, task.stage.name, task.worker is not None, request.tasks == [task], request.outcome,
        request.arrival, dict(request.tokens), request.outputs, dict(request.work),
    )  # fmt: skip


class Watches(TokenPolicy):
    """*inner*, and all that it is shown, by the number of batches before. Now and then it keeps back its word."""

    def __init__(self, inner: TokenPolicy, seed: int | None = None) -> None:
        self.inner = inner
        self.dice = random.Random(seed) if seed is not None else None
        self.shown: dict[int, list[object]] = {}

    def decide(self, view: TokenView, now: float) -> Step:
        shown = self.shown.setdefault(self.loop._batches, [])
        shown.append((
            now, [seen_of(t) for t in view.waiting], [seen_of(t) for t in view.running], view.free_blocks,
            view.decoding, view.context, view.last_step, view.last_decode, [*self.loop.live],
        ))  # fmt: skip
        step = self.inner.decide(view, now)
        if step.standing and self.dice is not None and self.dice.random() < 0.5:
            return Step(decode=ALL, repeat=step.repeat)
        return step


def columns(sent: Iterable[tuple[float, int, int]], limit: int, slo: float) -> TokenColumns:
    at, prompts, outputs = zip(*sent, strict=True)
    return TokenColumns("llm", at, prompts, [limit] * len(at), outputs, slo=slo)


def serve(sent, fused, *, recorder=TokenLatencies, seed=None, crooked=False, gap=0.0, dice=None, limit=50,
          slo=float("inf"), stop=None, steps=None, preparing=0.0, **limits):  # fmt: skip
    steps = steps or (Crooked if crooked else Linear)(gap=gap)
    view = view_of(steps, EngineLimits(**limits))
    policy = Watches(VLLM(), dice)
    worker = TokenWorker(view.stage, policy, view)
    executor = SimExecutor(lambda _: TokenTiming(steps, noise(seed), lambda n: 0.001 * n, None, preparing))
    log = recorder()
    loop = policy.loop = ServingLoop([view.stage], [worker], executor, log)
    source = columns(sent, limit, slo)
    if stop is None:
        play(loop, executor, source, fused=fused)
    else:

        def stopped():
            yield from source
            executor.call_at(executor.now() + stop, loop.stop)

        play(loop, executor, stopped(), fused=fused)
    kept = [[*getattr(log, name, ())] for name in ("ids", "ttft", "tpot")]
    found = (log.summary.as_dict(), [*log.summary.e2el], kept, executor.now(), loop._batches, [*loop.live],
             view.free_blocks, view.decoding, view.context, view.last_step, view.last_decode)  # fmt: skip
    return found, policy.shown


def same(sent, **world) -> int:
    """Compare the two ways; how many fewer times the policy was asked on the short one."""
    short, shown = serve(sent, True, **world)
    long, all_shown = serve(sent, False, **world)
    assert short == long
    for batches, what in shown.items():
        assert all_shown[batches] == what
    return len(all_shown) - len(shown)


worlds = st.fixed_dictionaries(
    {
        "crooked": st.booleans(),
        "gap": st.sampled_from([0.0, 0.002]),
        "seed": st.none() | st.integers(0, 9),
        "dice": st.none() | st.integers(0, 99),
        "slo": st.sampled_from([float("inf"), 1.0, 3.0]),
        "limit": st.sampled_from([50, 7]),
        "recorder": st.sampled_from([TokenLatencies, Recorder]),
        "preparing": st.sampled_from([0.0, 0.0, 0.0, 0.003]),
        "max_batched_tokens": st.sampled_from([60, 100, 1000]),
    }
)


@given(workloads, engines, worlds, st.none() | st.sampled_from([0.0, 0.3]))
@settings(max_examples=400)
def test_both_ways_come_to_the_same(workload, engine, world, stop) -> None:
    same(rows(workload), stop=stop, **{**world, **engine})


@given(workloads, worlds, st.integers(40, 400))
@settings(max_examples=200)
def test_also_where_memory_is_short_now_and_then(workload, world, blocks) -> None:
    same(rows(workload), blocks=blocks, **world)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=30),
       st.none() | st.integers(0, 9), st.sampled_from([2, 4, 100]))  # fmt: skip
@settings(max_examples=300)
def test_ties_in_time_go_the_same_way(workload, dice, most) -> None:
    """Steps of a whole second, arrivals at whole seconds: nearly everything falls together."""
    steps = Linear(c0=1.0, c1=0.0, d0=1.0, d1=0.0)
    sent = rows([(float(g), p, o) for g, p, o in workload])
    same(sent, steps=steps, dice=dice, blocks=30, max_sequences=3, max_batched_tokens=most)


def test_the_policy_is_asked_only_where_its_word_does_not_hold() -> None:
    sent = [(0.3 * i, 30, 20) for i in range(200)]
    _, shown = serve(sent, True, blocks=1000)
    assert len(shown) == 2  # for the first request: to prefill, and to decode
    _, shown = serve(sent, False, blocks=1000)
    assert len(shown) > 400
    sent[100] = (30.0, 700, 20)  # longer than a step: that is for the policy to see to
    (summary, *_), shown = serve(sent, True, blocks=1000, max_batched_tokens=600)
    assert 2 < len(shown) < 10
    assert summary[Outcome.DROPPED.value] == 1
    assert same(sent, blocks=1000, max_batched_tokens=600) > 300


def test_it_takes_a_standing_word_numbers_and_somebody_who_wants_no_more() -> None:
    class Counts(TokenLatencies):
        def ended(self, request, now) -> None:
            assert len(request.tasks) == 1
            super().ended(request, now)

    sent = [(0.3 * i, 30, 20) for i in range(50)]
    for world in ({"recorder": Counts}, {"stop": 1000.0}, {"stamp": "seen"}, {"preparing": 0.001}):
        _, shown = serve(sent, True, blocks=1000, **world)
        assert len(shown) > 90
        assert same(sent, blocks=1000, **world) == 0


def test_columns_are_requests_as_well() -> None:
    made = [*columns([(0.0, 5, 2), (0.5, 5, 2), (1.5, 6, 3)], 9, 4.0)]
    assert [(r.id, r.arrival, r.slo, r.tokens, r.outputs) for r in made] == [
        (0, 0.0, 4.0, {"llm": (5, 9)}, {"llm": 2}),
        (1, 0.5, 4.0, {"llm": (5, 9)}, {"llm": 2}),
        (2, 1.5, 4.0, {"llm": (6, 9)}, {"llm": 3}),
    ]
    arrays = TokenColumns("llm", np.array([0.5]), np.array([5]), np.array([9]), np.array([2]))
    (one,) = arrays
    assert (type(one.arrival), type(one.tokens["llm"][0]), type(one.outputs["llm"])) == (float, int, int)
    source = columns([(0.0, 5, 2)], 9, 4.0)
    assert source.row is None
    next(source)
    assert source.row == (0, 0.0, 5, 9, 2)
    with pytest.raises(StopIteration):
        next(source)
    assert source.row is None
