"""A model in stages: closed forms of one step in flight and of a full queue, and runs under the invariants. (Beside
vLLM's own scheduler: tests/real/vllm/test_stages.py.)"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from engines import Anything, Linear, Served, requests, serve, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits, TokenRequest, TokenTask
from servetwin.core.llm.serving.host import Host, Stages
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from test_engine_invariants import SLO, workloads
from test_engine_invariants import rows as rows_of
from test_prefix_caching import contents

HOST = Host(lambda sequences: 0.0, 0.0, ahead=True)
FLAT = Linear(d1=0.0)


def staged(sent: Sequence[TokenRequest], stages: Stages, policy=None, times: Linear = FLAT, **limits) -> Served:
    host = limits.pop("host", HOST)
    size = len(stages.shares)
    own = {"pipeline_parallel_size": size, **limits}
    return serve(policy or VLLMV1(), sent, times=times, host=host, stages=stages, **own)


def test_before_an_engine_runs_no_token_is_in_flight_and_all_may_be_computed() -> None:
    view = view_of(FLAT, EngineLimits(blocks=100, pipeline_parallel_size=2))
    task = TokenTask(requests((0.0, 50, 3))[0], view.stage, 0.0, None, 50, 3)
    view.waiting[task] = None
    assert view.fill([task], 100) == view.admissible([(task, 50)]) == [(task, 50)]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.5, 0.3), (0.25,) * 4])
def test_one_request_takes_the_sum_of_the_stages(shares: tuple[float, ...]) -> None:
    """A step at a time: each stage, and what is sent between two of them."""
    stages = Stages(shares, hop=0.004, hop_each=1e-5)
    (tokens,) = staged(requests((0.0, 100, 12)), stages).log.tokens[0]
    hops = len(shares) - 1
    assert tokens[0] == pytest.approx(FLAT.prefill(100) + hops * (0.004 + 100e-5))
    gaps = [b - a for a, b in itertools.pairwise(tokens)]
    assert gaps == pytest.approx([FLAT.d0 + hops * (0.004 + 1e-5)] * 11)


@pytest.mark.parametrize(("shares", "slowest"), [((0.5, 0.5), 0.5), ((0.25, 0.5, 0.25), 0.5), ((0.25,) * 4, 0.25)])
def test_a_full_queue_goes_at_the_pace_of_the_slowest_stage(shares: tuple[float, ...], slowest: float) -> None:
    """Steps of one token, so that there are as many groups of requests as stages: a step is over whenever the slowest
    stage is done with one."""
    size = len(shares)
    sent = requests(*[(0.0, 2, 200)] * size)
    served = staged(sent, Stages(shares), max_batched_tokens=1)
    steps = [end for end, prefill, _ in served.log.steps if not prefill]
    gaps = [b - a for a, b in itertools.pairwise(steps[100 : 100 + 60 * size])]
    assert sum(gaps) / len(gaps) == pytest.approx(slowest * FLAT.d0, rel=0.02)
    assert {decode for _, prefill, decode in served.log.steps if not prefill} == {1}


def test_requests_whose_steps_meet_stay_together() -> None:
    """As in vLLM: who comes while one decodes joins its step, and the other stages stand still for good."""
    served = staged(requests((0.0, 16, 50), (0.2, 16, 50)), Stages((0.5, 0.5)))
    assert {decode for _, prefill, decode in served.log.steps[20:40]} == {2}


def test_a_long_step_makes_a_bubble() -> None:
    """Two groups decode in turn; while a long prompt is in the first stage, nobody else can be."""
    sent = requests((0.0, 16, 100), (0.2, 16, 100), (1.0, 2000, 1))
    served = staged(sent, Stages((0.5, 0.5)), max_batched_tokens=4096)
    gaps = [b - a for i in (0, 1) for (ends,) in [served.log.tokens[i]] for a, b in itertools.pairwise(ends)]
    usual = FLAT.d0
    assert sorted(gaps)[len(gaps) // 2] == pytest.approx(usual)
    assert max(gaps) > 0.5 * FLAT.prefill(2000)


def test_two_stages_are_worth_less_than_two_devices_of_their_own() -> None:
    """The same steps, in stages and whole: as many tokens a second at most, and each token later."""
    sent = [(0.0, 16, 100)] * 8
    whole = serve(VLLMV1(), requests(*sent), times=FLAT)
    halves = staged(requests(*sent), Stages((0.5, 0.5)))
    assert halves.executor.now() > 0.95 * whole.executor.now()


def test_what_lies_between_two_steps_is_the_hosts() -> None:
    host = Host(lambda sequences: 0.003, 0.0, ahead=True, begins=0.002)
    (tokens,) = staged(requests((0.0, 100, 5)), Stages((0.5, 0.5)), host=host).log.tokens[0]
    assert tokens[0] == pytest.approx(0.002 + FLAT.prefill(100))
    assert tokens[1] - tokens[0] == pytest.approx(FLAT.d0 + 0.005)


POLICIES = {
    "anything": lambda seed: Anything(seed, repeats=False),
    "vllm-v1": lambda seed: VLLMV1(),
    "vllm": lambda seed: VLLM(),
    "sarathi": lambda seed: Sarathi(32),
    "neustream-llm": lambda seed: NeuStreamLLM(),
}


@settings(max_examples=12, deadline=None)
@given(
    workload=workloads,
    prefixes=st.lists(contents, min_size=1, max_size=8),
    shares=st.sampled_from([(0.5, 0.5), (0.2, 0.5, 0.3), (0.25,) * 4]),
    between=st.sampled_from([0.0, 0.001, 0.3]),
    caching=st.booleans(),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("name", POLICIES)
def test_the_invariants_whatever_a_policy_does(
    name: str, workload: list, prefixes: list, shares: tuple[float, ...], between: float, caching: bool, seed: int
) -> None:
    sent = requests(*rows_of(workload))
    for request in sent:
        content = prefixes[request.id % len(prefixes)]
        request.prefix = None if content is None else {"llm": content}
    limits = {"blocks": 30, "block_size": 8, "max_batched_tokens": 96, "enable_prefix_caching": caching}
    host = Host(lambda sequences: between, 0.0, ahead=True)
    served = staged(sent, Stages(shares, 0.001), POLICIES[name](seed), host=host, slo=SLO, **limits)
    engine = served.loop.workers[0].engine
    assert len(served.log.ends) == len(sent)
    assert engine.view.free_blocks == 30
    assert not (engine.passed)
    assert not (engine.flights)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"pipeline_parallel_size": 0}, "pipeline_parallel_size is 0"),
        ({"pipeline_parallel_size": 2, "keep_freed": True}, "what keep_freed does in a pipeline"),
        ({"pipeline_parallel_size": 2, "max_loras": 1}, "what max_loras does in a pipeline"),
        (
            {"pipeline_parallel_size": 2, "num_speculative_tokens": 1},
            "what num_speculative_tokens does in a pipeline",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(more: dict, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        EngineLimits(10, **more)
