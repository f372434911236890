"""LLM engines that decide ahead (asynchronous scheduling): small cases by hand, and the laws, whoever decides."""

from __future__ import annotations

import random

import pytest
from engines import Linear, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core.token_worker import Host
from servetwin.core.tokens import ALL, CumulativeSLO, Step, TokenPolicy, TokenView
from servetwin.policies.edf_llm import EDFLLM
from servetwin.policies.neustream_llm import NeuStreamLLM
from servetwin.policies.sarathi import Sarathi
from servetwin.policies.vllm import VLLM
from servetwin.policies.vllm_v1 import VLLMV1

#: A prefill takes 1 s, a decode step 10 s.
EVEN = Linear(c0=1.0, c1=0.0, d0=10.0, d1=0.0)


def ahead(between: float = 0.0, intake: float = 0.0, begins: float = 0.0) -> Host:
    return Host(lambda sequences: between, intake, ahead=True, begins=begins)


class Anything(TokenPolicy):
    """Does anything that a policy may do, by dice."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def decide(self, view: TokenView, now: float) -> Step:
        dice = self.dice
        running = list(view.running)
        waiting = list(view.waiting)
        dice.shuffle(waiting)
        some = dice.random
        preempt = [t for t in running if some() < 0.05]
        drop = [t for t in [*running, *waiting] if some() < 0.02 and t not in preempt]
        rest = [t for t in running if t not in preempt and t not in drop]
        decode = [t for t in rest if t.decoding]
        prefill = [(t, dice.randint(1, t.pending)) for t in rest if not t.decoding and some() < 0.8]
        prefill += [(t, dice.randint(1, t.pending)) for t in waiting if t not in drop and some() < 0.5]
        if some() < 0.3:
            decode = [t for t in decode if some() < 0.6]
        elif decode and some() < 0.5 and not preempt and not drop:
            return Step(prefill if some() < 0.5 else [], ALL)
        return Step(prefill, decode, preempt=preempt, drop=drop, idle_until=now + 0.25)


SLO = CumulativeSLO(3.0, 1.5, 0.0438, 1.05e-6, Linear().prefill)

POLICIES = {
    "anything": None,
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "sarathi": lambda: Sarathi(32),
    "edf-llm": EDFLLM,
    "neustream-llm": NeuStreamLLM,
}

gaps = st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3, 2.0])
workloads = st.lists(st.tuples(gaps, st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=20)
engines = st.fixed_dictionaries(
    {
        "blocks": st.integers(8, 40),
        "max_sequences": st.sampled_from([1, 3, 8, 64]),
        "headroom": st.sampled_from([0, 1]),
        "watermark": st.sampled_from([0.0, 0.1]),
        "stamp": st.sampled_from(["sent", "seen"]),
        "whole_prompt": st.booleans(),
    }
)
hosts = st.builds(
    ahead, *[st.sampled_from([0.0, 0.001, 0.3]), st.sampled_from([0.0, 0.002]), st.sampled_from([0.0, 0.005, 0.2])]
)


def rows(workload) -> list[tuple[float, int, int]]:
    now, out = 0.0, []
    for gap, prompt, output in workload:
        now += gap
        out.append((now, prompt, output))
    return out


@pytest.mark.parametrize("name", POLICIES)
@given(workloads, engines, hosts, st.integers(0, 10**6), st.none() | st.sampled_from([0.35, 2.0, 6.0]))
@settings(max_examples=60)
def test_the_laws_whatever_a_policy_does(name, workload, engine, host, seed, stop_at):
    def run():
        policy = POLICIES[name]() if POLICIES[name] else Anything(seed)
        return serve(
            policy, requests(*rows(workload), limit=50), slo=SLO, stop_at=stop_at, max_batched_tokens=100, host=host,
            **engine,
        )  # fmt: skip

    served = run()
    assert len(served.log.ends) == len(workload)
    starts = [step[0] for step in served.log.steps]
    assert starts == sorted(starts)
    again = run()
    assert (served.log.steps, served.log.records) == (again.log.steps, again.log.records)
