"""An engine that decides ahead and goes on by itself with requests as numbers gives what the calendar gives."""

from __future__ import annotations

import random

import pytest
import servetwin.core.llm.metric_blocks
import servetwin.sim.llm.ahead_columns
import servetwin.sim.llm.column_requests
from engines import Linear, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Outcome, Recorder, ServingLoop
from servetwin.core.llm import EngineLimits, TokenPolicy
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.profiles.llm.recent_load import Curves, RecentLoad
from servetwin.sim import SimExecutor
from servetwin.sim.llm.columns import play
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.llm.latency_columns import TokenLatencies
from servetwin.sim.llm.request_columns import ClassTerms, TokenColumns
from servetwin.sim.time.noise import Slowdown, Stalls
from test_ahead_runs import Watches, hosts
from test_columns import POLICIES, REPORTS, Crooked, counted, stamps, stops, ties, workloads
from test_engine_invariants import noise, rows

TERMS = {"a": ClassTerms(0.6), "b": ClassTerms(2.0, 1, "t", 0.5)}


class Takes(Watches):
    """As that, and it takes in whatever comes."""

    admit, removed = TokenPolicy.admit, TokenPolicy.removed


def timing_of(steps, seed=None, prefill_seed=None, each=False, stalls=False, changing=False, slow=False, lately=False,
              preparing=0.0):  # fmt: skip
    even = random.Random(5).random
    return TokenTiming(
        steps, noise(seed), prefills=noise(prefill_seed), counted=each, preparing=preparing,
        stalls=Stalls(lambda: 0.2 + even(), lambda: 0.05 * even(), (lambda: 0.3 + even()) if changing else None)
        if stalls or changing else None,
        slowdown=Slowdown(lambda: 0.8 + even(), lambda: even() + 0.1, 0.3) if slow else None,
        recent_load=RecentLoad({
            "decode": Curves([8], [[0, 300]], [[1.0, 2.0]]), "mixed": Curves([60], [[0, 900]], [[1.0, 1.5]])
        }, memory=1.0) if lately else None,
    )  # fmt: skip


def serve(sent, columns_too, *, policy="vllm-v1", host=None, steps=None, crooked=False, recorder=TokenLatencies,
          dice=None, limit=50, slo=float("inf"), stop=None, report=None, classes=False, trim=8192, timing=None,
          **limits):  # fmt: skip
    steps = steps or (Crooked if crooked else Linear)()
    host = host or Host(lambda n: 0.001, 0.0, ahead=True, begins=0.002)
    promise = REPORTS[report] if report is not None else None
    view = view_of(steps, EngineLimits(**{"blocks": 1000, **limits}), promise)
    shown: dict = {}
    policy = Takes(POLICIES[policy](), shown, random.Random(dice) if dice is not None else None)
    worker = TokenWorker(view.stage, policy, view, host=host)
    executor = SimExecutor(lambda _: timing_of(steps, **(timing or {})))
    log = recorder()
    if report is not None:
        log.summary = TokenSummary({view.stage.name: promise})
        log.wants_token_times = True
    loop = policy.loop = ServingLoop([view.stage], [worker], executor, log)
    worker.engine.trim_at = trim
    at, prompts, outputs = zip(*sent, strict=True)
    names = ["ab"[i % 2] for i in range(len(at))] if classes else [""] * len(at)
    terms = TERMS if classes else {}
    source = TokenColumns("llm", at, prompts, [limit] * len(at), outputs, names, slo=slo, terms=terms)
    if stop is None:
        play(loop, executor, source, columns=columns_too)
    else:

        def stopped():
            yield from source
            executor.call_at(executor.now() + stop, loop.stop)

        play(loop, executor, stopped(), columns=columns_too)
    kept = [[*getattr(log, name, ())] for name in ("ids", "ttft", "tpot")]
    found = (log.summary.as_dict(), [*log.summary.e2el], kept, counted(log), executor.now(), loop.batches,
             [*loop.live], view.free_blocks, view.decoding, view.context, view.last_step,
             view.last_decode)  # fmt: skip
    return found, shown, policy.asked


def same(sent, **world) -> int:
    """Compare the two ways; how many fewer times the policy was asked on the short one."""
    short, shown, asked = serve(sent, True, **world)
    long, all_shown, always = serve(sent, False, **world)
    assert short == long
    for at, what in shown.items():
        # While the host waits for what is in flight the calendar's way asks again between two steps.
        others = iter(all_shown[at])
        assert all(any(seen == other for other in others) for seen in what)
    return always - asked


timings = st.fixed_dictionaries(
    {
        "seed": st.none() | st.integers(0, 9),
        "prefill_seed": st.none() | st.integers(0, 9),
        "each": st.booleans(),
        "stalls": st.booleans(),
        "changing": st.booleans(),
        "slow": st.booleans(),
        "lately": st.booleans(),
        "preparing": st.sampled_from([0.0, 0.003]),
    }
)
engines = st.fixed_dictionaries(
    {
        "blocks": st.sampled_from([12, 40, 100, 1000]),
        "headroom": st.sampled_from([0, 1]),
        "watermark": st.sampled_from([0.0, 0.1]),
        "max_sequences": st.sampled_from([1, 3, 64]),
        "max_batched_tokens": st.sampled_from([60, 100, 1000]),
        "whole_prompt": st.booleans(),
        "stamp": stamps,
    }
)
worlds = st.fixed_dictionaries(
    {
        "policy": st.sampled_from([*POLICIES]),
        "host": hosts,
        "timing": timings,
        "crooked": st.booleans(),
        "dice": st.none() | st.integers(0, 99),
        "slo": st.sampled_from([float("inf"), 1.0, 3.0]),
        "limit": st.sampled_from([50, 7]),
        "recorder": st.sampled_from([TokenLatencies, Recorder]),
        "report": st.none() | st.sampled_from([*REPORTS]),
        "classes": st.booleans(),
        "trim": st.sampled_from([1, 20, 8192]),
    }
)


@given(workloads, engines, worlds, stops)
@settings(max_examples=150)
def test_both_ways_come_to_the_same(workload, engine, world, stop) -> None:
    same(rows(workload), stop=stop, **{**world, **engine})


@pytest.mark.slow
@given(workloads, engines, worlds, stops)
@settings(max_examples=6000)
def test_many_more_come_to_the_same(workload, engine, world, stop) -> None:
    same(rows(workload), stop=stop, **{**world, **engine})


@given(workloads, worlds, engines, st.integers(1, 5), st.sampled_from([1, 3, 9]))
@settings(max_examples=60)
def test_also_where_few_are_read_and_noted_down_at_once(workload, world, engine, block, few) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servetwin.sim.llm.ahead_columns, "BLOCK", block)
        patch.setattr(servetwin.sim.llm.ahead_columns, "FEW", few)
        patch.setattr(servetwin.sim.llm.column_requests, "AHEAD", 1)
        patch.setattr(servetwin.sim.llm.column_requests, "FAR_AHEAD", block)
        patch.setattr(servetwin.core.llm.metric_blocks, "_ROOM", 16 * block)
        same(rows(workload), **{**world, **engine})


@given(ties, st.none() | st.integers(0, 9), st.sampled_from([4, 7, 100]), st.none() | st.sampled_from([*REPORTS]),
       stamps, st.sampled_from([*POLICIES]), st.booleans(), st.sampled_from([0.0, 1.0]),
       st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 2.0]))  # fmt: skip
@settings(max_examples=100)
def test_ties_in_time_go_the_same_way(
    workload, dice, most, report, stamp, policy, whole, between, begins, intake, pieces
) -> None:
    """Steps, the host's work and arrivals at whole seconds: nearly everything falls together."""
    steps = Linear(c0=1.0, c1=0.0, d0=1.0, d1=0.0)
    host = Host(lambda n: between, intake, ahead=True, begins=begins, pieces=pieces, graph_tokens=4)
    sent = rows([(float(g), p, o) for g, p, o in workload])
    limits = {"blocks": 30, "max_sequences": 3, "max_batched_tokens": most, "whole_prompt": whole}
    same(sent, steps=steps, host=host, dice=dice, report=report, stamp=stamp, policy=policy, **limits)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_is_asked_for_the_first_request_alone(policy: str) -> None:
    """While nothing else happens it prefills that one, in as many steps as its budget takes, and says its word twice:
    the first time the first token is in flight still."""
    sent = [(0.3 * i, 30, 20) for i in range(60)]
    assert same(sent, policy=policy, report="deadlines") > 300
    _, _, asked = serve(sent, True, policy=policy, report="deadlines")
    assert asked == {"sarathi of 8": 6}.get(policy, 3)


def test_the_policy_is_asked_only_where_its_word_does_not_hold() -> None:
    sent = [(0.3 * i, 30, 20) for i in range(200)]
    sent[100] = (30.0, 700, 20)  # longer than a step: that is for the policy to see to
    (summary, *_), _, asked = serve(sent, True, policy="vllm", max_batched_tokens=600)
    assert 3 < asked < 20
    assert summary[Outcome.DROPPED.value] == 1
    assert same(sent, policy="vllm", max_batched_tokens=600) > 300


def test_it_takes_numbers_and_somebody_who_wants_no_more() -> None:
    class Counts(TokenLatencies):
        def ended(self, request, now) -> None:
            assert len(request.tasks) == 1
            super().ended(request, now)

    sent = [(0.3 * i, 30, 20) for i in range(50)]
    for world in ({"recorder": Counts}, {"keep_freed": True}, {"stop": 1000.0}):
        _, _, asked = serve(sent, True, **world)
        assert asked > 90
        same(sent, **world)
    for world in ({}, {"recorder": Recorder}, {"classes": True, "report": "deadlines"}, {"report": "limits"}):
        _, _, asked = serve(sent, True, **world)
        assert asked == 3
