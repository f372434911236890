"""LLM engines beside others: stages in a row, and the short way of a lone engine against the long one."""

from __future__ import annotations

import math

import pytest
from engines import Linear, Log, SteppingTokens, requests, serve
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import BadInput, BatchWorker, Module, Pipeline, Request, ServingLoop, Worker, WorkerView
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import EngineLimits, TokenRequest, TokenView
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.policies.routing.round_robin import RoundRobin
from servetwin.sim import SimExecutor, TableTiming
from servetwin.sim.llm.lane import TokenTiming

#: A step takes 1 s for each prefilled token; a decode step 1 s.
SLOW = Linear(c0=0.0, c1=1.0, d0=1.0, d1=0.0)


def chain(
    sent: list[Request], *modules: str, times: Linear = SLOW, replicas: int = 1, policy=VLLM, **limits
) -> tuple[Log, ServingLoop]:
    """Requests through stages in a row: LLMs, but for "tool", which takes 2 s."""
    pipeline = Pipeline.chain(*[Module(m, loop=m != "tool") for m in modules])
    workers: list[Worker] = []
    stages = pipeline.stages([[m] for m in modules])
    for stage in stages:
        for i in range(replicas):
            if stage.name == "tool":
                view = WorkerView(stage, lambda m, n: 2.0, limit=1, name=f"tool{i}")
                workers.append(BatchWorker(stage, FCFS(), view, device=f"cpu{i}"))
                continue
            engine = TokenView(
                stage,
                EngineLimits(**{"blocks": 100, **limits}),
                estimate_prefill=times.prefill,
                estimate_decode=times.decode,
                name=f"{stage.name}{i}",
            )
            workers.append(TokenWorker(stage, policy(), engine, device=f"{stage.name}{i}"))
    timings = {w: TokenTiming(times) if isinstance(w, TokenWorker) else TableTiming([0.0, 2.0]) for w in workers}
    executor = SimExecutor(lambda worker: timings[worker])
    log = Log()
    checker = InvariantChecker(log)
    loop = ServingLoop(stages, workers, executor, checker, router=Dispatcher(workers, RoundRobin()))
    checker.watch(loop)
    play(loop, iter(sent))
    while executor.calendar.peek() < math.inf:
        executor.calendar.step()
    checker.finish()
    return log, loop


def test_when_its_output_is_done_a_request_goes_on_to_the_next_stage():
    tokens = {"plan": (4, 8), "code": (2, 8)}
    log, loop = chain([TokenRequest(0, 1.0, tokens, {"plan": 3, "code": 2})], "plan", "tool", "code")
    # 4 s prefill, 2 decode steps, 2 s of the tool, 2 s prefill, 1 decode step.
    assert log.tokens[0] == [[5.0, 6.0, 7.0], [11.0, 12.0]]
    assert loop.recorder.summary.met == 1
    assert not loop._outputs


def test_each_stage_has_its_own_lengths():
    def sent(i: int, at: float, plan: int, code: int) -> TokenRequest:
        return TokenRequest(i, at, {"plan": (2, 9), "code": (3, 9)}, {"plan": plan, "code": code})

    # The second is handed on at 5 s, when the first step of "code" ends: it is there when that decides.
    log, _ = chain([sent(0, 0.0, 1, 3), sent(1, 0.5, 2, 1)], "plan", "code")
    assert log.tokens == {0: [[2.0], [5.0, 9.0, 10.0]], 1: [[4.0, 5.0], [8.0]]}


def test_a_request_without_tokens_for_a_stage_is_told():
    with pytest.raises(BadInput, match="no tokens for stage code"):
        chain([TokenRequest(0, 0.0, {"plan": (2, 9)}, {"plan": 1})], "plan", "code")
    with pytest.raises(BadInput, match="no tokens for stage llm"):
        serve(VLLM(), [TokenRequest(0, 0.0, {"llm": (2, 9)})])
    with pytest.raises(BadInput, match="no tokens for stage llm"):
        serve(VLLM(), [Request(0, 0.0, 1.0, {})])  # type: ignore[list-item]


rows = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 4.0]), st.integers(1, 40), st.integers(1, 12)), max_size=12)


@given(rows)
def test_the_short_way_of_a_lone_engine_is_the_long_way(workload):
    """Beside another stage of no length an engine is served by the whole loop; alone by a shorter way through it."""
    now, sent = 0.0, []
    for gap, prompt, output in workload:
        now += gap
        sent.append((now, prompt, output))
    alone = serve(VLLM(), requests(*sent), times=Linear(), blocks=100).log
    twice = [
        TokenRequest(i, at, {"llm": (prompt, output), "one": (1, 1)}, {"llm": output, "one": 1})
        for i, (at, prompt, output) in enumerate(sent)
    ]
    both, _ = chain(twice, "llm", "one", times=Linear())
    assert {i: stays[0] for i, stays in both.tokens.items()} == {i: stays[0] for i, stays in alone.tokens.items()}


stays = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.02, 0.1, 0.5, 4.0]), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)
    ),
    max_size=14,
)


@pytest.mark.parametrize("policy", [VLLM, VLLMV1])
@given(stays, st.integers(1, 3), st.sampled_from([("a", "b"), ("a", "tool", "b")]), st.integers(6, 20))
def test_engines_side_by_side_and_in_a_row_step_by_step_or_not(policy, workload, replicas, modules, blocks):
    def run(make) -> Log:
        now, sent = 0.0, []
        for i, (gap, prompt, first, second) in enumerate(workload):
            now += gap
            tokens = {"a": (prompt, 20), "b": (2 * prompt, 20)}
            sent.append(TokenRequest(i, now, tokens, {"a": first, "b": second}))
        return chain(sent, *modules, times=Linear(), replicas=replicas, policy=make, blocks=blocks)[0]

    together, single = run(policy), run(lambda: SteppingTokens(policy()))
    assert together.tokens == single.tokens
    assert together.ends == single.ends
