"""An engine that goes on by itself, under a policy's standing decision, gives what asking at every step gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import repeat

import numpy as np
import pytest
import servetwin.core.llm.metric_blocks
import servetwin.sim.llm.column_requests
import servetwin.sim.llm.column_steps
from engines import Linear, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput, Outcome, Recorder, ServingLoop
from servetwin.core.llm import (
    ALL,
    EngineLimits,
    Fill,
    LimitsSLO,
    Step,
    TokenDeadlines,
    TokenLimits,
    TokenPolicy,
    TokenRequest,
    TokenTask,
    TokenView,
)
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.sim import SimExecutor
from servetwin.sim.llm.columns import play
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.llm.latency_columns import TokenLatencies
from servetwin.sim.llm.request_columns import ClassTerms, TokenColumns
from test_engine_invariants import engines, noise, rows

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
        request.arrival, dict(request.tokens), request.outputs, dict(request.work), [*(task.token_times or ())],
    )  # fmt: skip


class Crooked(Linear):
    """Decode steps whose slope changes with the context."""

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        part = int(context // 64)
        return self.d0 + 0.001 * part, self.d1, 64.0 * (part + 1)

    def decode(self, batch: int, context: float) -> float:
        a, b, _ = self.straight(batch, context)
        return a + b * context


class Watches(TokenPolicy):
    """*inner*, and all that it is shown, by the number of batches before. Now and then it keeps back its word."""

    def __init__(self, inner: TokenPolicy, seed: int | None = None) -> None:
        self.inner = inner
        self.dice = random.Random(seed) if seed is not None else None
        self.shown: dict[int, list[object]] = {}

    def start(self, view: TokenView) -> None:
        self.inner.start(view)

    def decide(self, view: TokenView, now: float) -> Step:
        shown = self.shown.setdefault(self.loop.batches, [])
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


def alone(prompt: int) -> float:
    return 0.01 + 0.001 * prompt


#: What an engine promises, with what the summary counts beside that.
REPORTS: dict[str, TokenDeadlines | None] = {
    "nothing": None,
    "deadlines": TokenDeadlines(3.0, 1.5, 0.011, 1e-5, alone),
    "tight": TokenDeadlines(1.2, 1.1, 0.011, 1e-5, alone, limits=TokenLimits(ttft=0.05, tpot=0.012)),
    "last": TokenDeadlines(2.0, 1.2, 0.011, 1e-5, alone, "last", TokenLimits(itl=0.03)),
    "limits": LimitsSLO.of(TokenLimits(ttft=0.08, itl=0.03)),
    "late limits": LimitsSLO.of(TokenLimits(e2el=0.4, tpot=0.013)),
}


def counted(log: Recorder) -> list[object]:
    """What a `TokenSummary` holds of its only stage, to the bit."""
    if not isinstance(log.summary, TokenSummary):
        return []
    (tokens,) = log.summary.stages.values()
    plain = {k: v for k, v in vars(tokens).items() if k not in ("itl", "promise", "slo", "limits")}
    return [plain, tokens.itl.statistics(), tokens.itl.count + tokens.itl.held]


#: The policies that give their word, and how.
POLICIES: dict[str, Callable[[], TokenPolicy]] = {
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "vllm-v1 of 64": lambda: VLLMV1(64),
    "vllm-v1 in whole prompts": lambda: VLLMV1(90, chunked=False),
    "sarathi": lambda: Sarathi(48),
    "sarathi of 8": lambda: Sarathi(8),
}


def serve(sent, columns_too, *, policy="vllm", recorder=TokenLatencies, seed=None, crooked=False, gap=0.0,
          dice=None, limit=50, slo=float("inf"), stop=None, steps=None, preparing=0.0, report=None,
          trim=8192, most_gaps=1 << 20, **limits):  # fmt: skip
    steps = steps or (Crooked if crooked else Linear)(gap=gap)
    promise = REPORTS[report] if report is not None else None
    view = view_of(steps, EngineLimits(**limits), promise)
    watched = Watches(POLICIES[policy](), dice)
    worker = TokenWorker(view.stage, watched, view)
    executor = SimExecutor(lambda _: TokenTiming(steps, noise(seed), lambda n: 0.001 * n, None, preparing))
    log = recorder()
    if report is not None:
        log.summary = summary = TokenSummary({view.stage.name: promise})
        summary.stages[view.stage.name].itl.most = most_gaps
        log.wants_token_times = True
    loop = watched.loop = ServingLoop([view.stage], [worker], executor, log)
    worker.engine.trim_at = trim
    source = columns(sent, limit, slo)
    if stop is None:
        play(loop, executor, source, columns=columns_too)
    else:

        def stopped():
            yield from source
            executor.call_at(executor.now() + stop, loop.stop)

        play(loop, executor, stopped(), columns=columns_too)
    kept = [[*getattr(log, name, ())] for name in ("ids", "ttft", "tpot")]
    found = (log.summary.as_dict(), [*log.summary.e2el], kept, counted(log), executor.now(), loop.batches,
             [*loop.live], view.free_blocks,
             view.decoding, view.context, view.last_step, view.last_decode)  # fmt: skip
    return found, watched.shown


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
        "policy": st.sampled_from([*POLICIES]),
        "whole_prompt": st.booleans(),
        "crooked": st.booleans(),
        "gap": st.sampled_from([0.0, 0.002]),
        "seed": st.none() | st.integers(0, 9),
        "dice": st.none() | st.integers(0, 99),
        "slo": st.sampled_from([float("inf"), 1.0, 3.0]),
        "limit": st.sampled_from([50, 7]),
        "recorder": st.sampled_from([TokenLatencies, Recorder]),
        "preparing": st.sampled_from([0.0, 0.003]),
        "report": st.none() | st.sampled_from([*REPORTS]),
        "trim": st.sampled_from([1, 20, 8192]),
        "most_gaps": st.sampled_from([10, 1 << 20]),
        "max_batched_tokens": st.sampled_from([60, 100, 1000]),
    }
)


stops = st.none() | st.sampled_from([0.0, 0.3])
stamps = st.sampled_from(["sent", "seen"])
ties = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=30)


@given(workloads, engines, worlds, stops)
@settings(max_examples=90)
def test_both_ways_come_to_the_same(workload, engine, world, stop) -> None:
    same(rows(workload), stop=stop, **{**world, **engine})


@given(workloads, worlds, st.integers(40, 400), stamps)
@settings(max_examples=60)
def test_also_where_memory_is_short_now_and_then(workload, world, blocks, stamp) -> None:
    same(rows(workload), blocks=blocks, stamp=stamp, **world)


@pytest.mark.slow
@given(workloads, engines, worlds, stops, st.none() | st.integers(40, 400))
@settings(max_examples=4000)
def test_many_more_come_to_the_same(workload, engine, world, stop, blocks) -> None:
    more = {} if blocks is None else {"blocks": blocks}
    same(rows(workload), stop=stop, **{**world, **engine, **more})


@given(workloads, worlds, engines, st.integers(1, 5))
@settings(max_examples=40)
def test_also_where_few_are_read_and_noted_down_at_once(workload, world, engine, block) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servetwin.sim.llm.column_steps, "BLOCK", block)
        patch.setattr(servetwin.sim.llm.column_requests, "AHEAD", 1)
        patch.setattr(servetwin.sim.llm.column_requests, "FAR_AHEAD", block)
        patch.setattr(servetwin.core.llm.metric_blocks, "_ROOM", 16 * block)
        same(rows(workload), **{**world, **engine, "blocks": 40 * block})


@given(ties, st.none() | st.integers(0, 9), st.sampled_from([2, 4, 7, 100]), st.none() | st.sampled_from([*REPORTS]),
       stamps, st.sampled_from([*POLICIES]), st.booleans())  # fmt: skip
@settings(max_examples=80)
def test_ties_in_time_go_the_same_way(workload, dice, most, report, stamp, policy, whole) -> None:
    """Steps of a whole second, arrivals at whole seconds: nearly everything falls together."""
    steps = Linear(c0=1.0, c1=0.0, d0=1.0, d1=0.0)
    sent = rows([(float(g), p, o) for g, p, o in workload])
    limits = {"blocks": 30, "max_sequences": 3, "max_batched_tokens": most, "whole_prompt": whole}
    same(sent, steps=steps, dice=dice, report=report, stamp=stamp, policy=policy, **limits)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_is_asked_for_the_first_request_alone(policy: str) -> None:
    """While nothing else happens it prefills that one, in as many steps as its budget takes, and says its word."""
    sent = [(0.3 * i, 30, 20) for i in range(60)]
    first = {"sarathi of 8": 5}.get(policy, 2)
    _, shown = serve(sent, True, policy=policy, blocks=1000, report="deadlines")
    assert len(shown) == first
    assert same(sent, policy=policy, blocks=1000, report="deadlines") > 100
    long = [*sent[:20], (6.0, 700, 20), *sent[21:]]
    _, shown = serve(long, True, policy=policy, blocks=1000)
    assert (len(shown) == first) == (policy != "vllm-v1 in whole prompts")  # only there it is longer than a step


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

    class Times(TokenLatencies):
        wants_token_times = True

    sent = [(0.3 * i, 30, 20) for i in range(50)]
    for world in ({"recorder": Counts}, {"recorder": Times}, {"stop": 1000.0}):
        _, shown = serve(sent, True, blocks=1000, **world)
        assert len(shown) > 90
        assert same(sent, blocks=1000, **world) == 0
    for world in (
        {},
        {"recorder": Recorder},
        {"stamp": "seen"},
        {"preparing": 0.001},
        *({"report": report} for report in REPORTS),
    ):
        assert same(sent, blocks=1000, **world) > 90


def test_a_summary_or_a_promise_of_a_kind_of_its_own_is_shown_each_request() -> None:
    class Mine(TokenSummary):
        pass

    class Patient(TokenDeadlines):
        def met(self, task: TokenTask) -> bool:
            return True

    steps = Linear()
    for summary, promise, asked in ((TokenSummary, TokenDeadlines, 2), (Mine, TokenDeadlines, 90),
                                    (TokenSummary, Patient, 90)):  # fmt: skip
        slo = promise(1.0, 1.0, 1e-6, 0.0, alone)
        view = view_of(steps, EngineLimits(1000), slo)
        policy, log = Watches(VLLM()), Recorder()
        log.summary, log.wants_token_times = summary({view.stage.name: slo}), True
        executor = SimExecutor(lambda _: TokenTiming(steps))
        policy.loop = ServingLoop([view.stage], [TokenWorker(view.stage, policy, view)], executor, log)
        play(policy.loop, executor, columns([(0.3 * i, 30, 20) for i in range(50)], 50, float("inf")))
        assert len(policy.shown) == 2 if asked == 2 else len(policy.shown) > asked
        assert log.summary.met == (50 if promise is Patient else 0)


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
    assert source.row == (0, 0.0, 5, 9, 2, "")
    with pytest.raises(StopIteration):
        next(source)
    assert source.row is None
    at, prompts, names = zip(*[(0.1 * i, 5 + i, "ab"[i % 2]) for i in range(5)], strict=True)
    terms = {"a": ClassTerms(2.0), "b": ClassTerms(3.0, 1, "t", 0.5)}
    source = TokenColumns("llm", at, prompts, repeat(9), repeat(2), names, slo=4.0, terms=terms)
    next(source)
    assert source.row == (0, 0.0, 5, 9, 2, "a")
    *read, classes = source.read(3)
    assert (read[1:3], classes) == ([[6, 7, 8], [9, 9, 9]], ["b", "a", "b"])
    source.put_back(*[column[1:] for column in (*read, classes)])
    said = [(r.id, r.tokens["llm"][0], r.slo, r.class_name, r.priority, r.tenant, r.weight) for r in source]
    a, b = (2.0, "a", 0, "", 1.0), (3.0, "b", 1, "t", 0.5)
    assert said == [(2, 7, *a), (3, 8, *b), (4, 9, *a)]
    assert source.read(3) == ([], [], [], [], [])


@pytest.mark.parametrize("tokens", [0, True, 1.5])
def test_a_rule_of_no_tokens_is_refused(tokens) -> None:
    with pytest.raises(BadInput, match="a whole number, 1 or more"):
        Fill(tokens)
