"""Decode steps on end of engines that decide ahead: what the short ways give is what the calendar gives."""

from __future__ import annotations

import random

import pytest
from engines import Linear, Log, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Recorder, ServingLoop
from servetwin.core.errors import PolicyFault
from servetwin.core.llm import ALL, EngineLimits, Step, TokenDeadlines, TokenLimits, TokenPolicy, TokenView
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.policy import Repeat
from servetwin.core.records import request_record
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.profiles.llm.recent_load import Curves, RecentLoad
from servetwin.sim import SimExecutor
from servetwin.sim.llm import ahead_runs
from servetwin.sim.llm.columns import play
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.time.noise import Slowdown, Stalls
from test_columns import Crooked, seen_of
from test_engine_invariants import POLICIES, noise, rows, sent_with_predictions

SLO = TokenDeadlines(3.0, 1.5, 0.011, 1e-5, lambda prompt: 0.01 + 0.001 * prompt, limits=TokenLimits(ttft=0.5))


class Ends(Recorder):
    """What became of each request, and when its tokens came out."""

    wants_token_times = True

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict] = []

    def ended(self, request, now) -> None:
        super().ended(request, now)
        self.records.append({**request_record(request), "tokens": [list(t.times()) for t in request.tasks]})


class Watches(TokenPolicy):
    """*inner*, and what it is shown at each engine, by the batches before; now and then it keeps back its word."""

    def __init__(self, inner: TokenPolicy, shown: dict, dice: random.Random | None) -> None:
        self.inner, self.shown, self.dice = inner, shown, dice
        self.asked = 0

    def start(self, view: TokenView) -> None:
        self.inner.start(view)

    def admit(self, task, view, now: float) -> bool:
        return self.inner.admit(task, view, now)

    def removed(self, task, view, now: float) -> None:
        self.inner.removed(task, view, now)

    def decide(self, view: TokenView, now: float) -> Step:
        self.asked += 1
        flying = [
            (b.id, b.decode, b.context, b.start, b.free, b.launched, [p[0].id for p in b.prefill])
            for b in (view.in_flight, *view.backlog)
            if b is not None
        ]
        self.shown.setdefault((self.loop.batches, view.name), []).append((
            now, [seen_of(t) for t in view.waiting], [seen_of(t) for t in view.running], view.free_blocks,
            view.decoding, view.context, view.last_step, view.last_decode, flying,
        ))  # fmt: skip
        step = self.inner.decide(view, now)
        if step.repeat is not None and self.dice is not None and self.dice.random() < 0.3:
            return Step(decode=ALL)
        return step


def serve(sent, short, *, policy="vllm-v1", host=None, seed=None, crooked=False, counted=False, stalls=False,
          slow=False, lately=False, stop=None, engines=1, report=False, recorder=Ends, dice=None,
          **limits):  # fmt: skip
    steps = (Crooked if crooked else Linear)()
    host = host or Host(lambda n: 0.001, 0.0, ahead=True, begins=0.002)
    shown: dict = {}
    log = recorder()

    def timing(worker):
        even = random.Random(5).random
        return TokenTiming(
            steps, noise(seed), counted=counted,
            stalls=Stalls(lambda: 0.2 + even(), lambda: 0.05 * even(), lambda: 0.3 + even()) if stalls else None,
            slowdown=Slowdown(lambda: 0.8 + even(), lambda: even() + 0.1, 0.3) if slow else None,
            recent_load=RecentLoad({"decode": Curves([8], [[0, 300]], [[1.0, 2.0]])}, memory=1.0) if lately else None,
        )  # fmt: skip

    workers = []
    for number in range(engines):
        view = view_of(steps, EngineLimits(**{"blocks": 1000, **limits}), SLO)
        if engines > 1:
            view.name = f"engine {number}"
        word = random.Random(dice + number) if dice is not None else None
        workers.append(TokenWorker(view.stage if not workers else workers[0].stage,
                                   Watches(POLICIES[policy](), shown, word), view, host=host))  # fmt: skip
    if report:
        log.summary = TokenSummary({workers[0].stage.name: SLO})
    executor = SimExecutor(timing)
    loop = ServingLoop([workers[0].stage], workers, executor, log,
                       router=lambda request, them, now: them[request.id % len(them)])  # fmt: skip
    for worker in workers:
        worker.policy.loop = loop
    if stop is not None:
        executor.call_at(stop, loop.stop)
    play(loop, executor, iter(sent_with_predictions(sent)), columns=short)
    found = (log.summary.as_dict(), log.records, getattr(log, "steps", None), executor.now(), loop.batches,
             [(w.view.free_blocks, w.view.decoding, w.view.context, w.view.last_step, w.view.last_decode)
              for w in workers])  # fmt: skip
    return found, shown, sum(worker.policy.asked for worker in workers)


def same(sent, **world) -> int:
    """Compare the two ways; how many fewer times policies were asked on the short one."""
    short, shown, asked = serve(sent, True, **world)
    long, all_shown, always = serve(sent, False, **world)
    assert short == long
    for at, what in shown.items():
        assert all_shown[at] == what
    return always - asked


hosts = st.builds(
    Host,
    st.sampled_from([lambda n: 0.0, lambda n: 0.001, lambda n: 0.001 * n, lambda n: 0.3]),
    st.sampled_from([0.0, 0.002]),
    ahead=st.just(True),
    begins=st.sampled_from([0.0, 0.005, 0.2]),
    begins_each=st.sampled_from([0.0, 0.0001]),
    launch=st.sampled_from([0.0, 0.25]),
    pieces=st.sampled_from([0.0, 0.06]),
    each=st.sampled_from([0.0, 0.002]),
    left=st.sampled_from([0.0, 0.003]),
    back=st.sampled_from([0.0, 0.001]),
    graph_tokens=st.sampled_from([None, 6, 512]),
)
gaps = st.one_of(st.sampled_from([0.0, 0.1, 0.3, 1.0, 4.0]), st.floats(0.0, 1.0))
workloads = st.lists(st.tuples(gaps, st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=20)
worlds = st.fixed_dictionaries(
    {
        "host": hosts,
        "seed": st.none() | st.integers(0, 9),
        "crooked": st.booleans(),
        "counted": st.booleans(),
        "stalls": st.booleans(),
        "slow": st.booleans(),
        "lately": st.booleans(),
        "stop": st.none() | st.sampled_from([0.35, 2.0]),
        "engines": st.sampled_from([1, 1, 2]),
        "report": st.booleans(),
        "recorder": st.sampled_from([Ends, Ends, Log]),
        "dice": st.none() | st.integers(0, 9),
        "blocks": st.sampled_from([12, 40, 1000]),
        "headroom": st.sampled_from([0, 1]),
        "max_sequences": st.sampled_from([3, 64]),
        "max_batched_tokens": st.sampled_from([60, 100]),
        "keep_freed": st.sampled_from([False, False, True]),
    }
)


@pytest.mark.parametrize("policy", POLICIES)
@given(workloads, worlds)
@settings(max_examples=6)
def test_both_ways_come_to_the_same(policy, workload, world) -> None:
    same(rows(workload), policy=policy, **world)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@given(workloads, worlds)
@settings(max_examples=150)
def test_many_more_come_to_the_same(policy, workload, world) -> None:
    same(rows(workload), policy=policy, **world)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=20))
@settings(max_examples=25)
def test_ties_in_time_go_the_same_way(workload) -> None:
    even = Host(lambda n: 0.0, 0.0, ahead=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Linear, "prefill", lambda self, tokens, squares=None: 1.0)
        patch.setattr(Linear, "decode", lambda self, batch, context: 1.0)
        patch.setattr(Linear, "straight", lambda self, batch, context: (1.0, 0.0, float("inf")))
        same(rows([(float(gap), *more) for gap, *more in workload]), host=even)


def test_the_policy_is_asked_a_few_times_only_while_all_decode() -> None:
    sent = [(0.0, 10, 50), (3.0, 10, 50)]
    assert same(sent) > 80
    assert same(sent, engines=2) > 80
    assert same(sent, recorder=Log) == 0  # who hears of batches hears of each


@pytest.mark.parametrize("repeat", [Repeat(0), Repeat(2.5), Repeat(3, float("nan")), 3])
def test_a_word_that_is_none_is_the_policys_fault(repeat) -> None:
    class Wrong(VLLMV1):
        def decide(self, view: TokenView, now: float) -> Step:
            step = super().decide(view, now)
            return step if step.repeat is None else Step(decode=ALL, repeat=repeat)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(POLICIES, "wrong", Wrong)
        with pytest.raises(PolicyFault):
            serve([(0.0, 10, 40)], True, policy="wrong")


def test_short_runs_are_left_to_the_calendar() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead_runs, "FEW", 1000)
        assert same([(0.0, 10, 40)], policy="edf-llm") == 0
