"""Invariant 13: no engine lives for ever without progress, whatever its memory, policy and way of preempting."""

from __future__ import annotations

import pytest
from engines import Linear, Told, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import InvariantBroken, Outcome
from servetwin.core.llm import Step, TokenView
from servetwin.core.llm.serving.worker import Host
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec import loading
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from test_engine_invariants import SLO

POLICIES = {
    "vllm": lambda chunk: VLLM(),
    "vllm-v1": VLLMV1,
    "sarathi": Sarathi,
    "edf-llm": lambda chunk: EDFLLM(),
    "neustream-llm": lambda chunk: NeuStreamLLM(),
}
HOST = Host(lambda n: 0.0, 0.0, ahead=True)


@st.composite
def small_engines(draw: st.DrawFn) -> dict:
    """Memory for a few requests, or for less than one."""
    blocks, size = draw(st.integers(3, 60)), draw(st.sampled_from([1, 4, 16]))
    limits = {
        "blocks": blocks,
        "block_size": size,
        "max_batched_tokens": draw(st.sampled_from([8, 32, 64, 300, 4096])),
        "headroom": draw(st.sampled_from([0, 1, 2])),
        "watermark": draw(st.sampled_from([0.0, 0.01, 0.2])),
        "whole_prompt": draw(st.booleans()),
        "max_sequences": draw(st.sampled_from([1, 2, 8])),
        "stamp": draw(st.sampled_from(["sent", "seen"])),
    }
    ahead = draw(st.booleans())
    if not ahead and draw(st.booleans()):
        limits["preemption"] = "swap"
    else:
        limits["keep_freed"] = draw(st.booleans())
    most = max(1, int(blocks * size * 1.2))
    gaps = st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.3])
    row = st.tuples(gaps, st.integers(1, most), st.sampled_from([1, 1, 2, 17, 60]))
    return {"limits": limits, "ahead": ahead, "rows": draw(st.lists(row, min_size=1, max_size=12))}


@pytest.mark.parametrize("name", POLICIES)
@given(small_engines(), st.sampled_from([8, 16, 512]))
@settings(max_examples=60, deadline=None)
def test_every_run_ends(name: str, world: dict, chunk: int) -> None:
    now, sent = 0.0, []
    for gap, prompt, output in world["rows"]:
        now += gap
        sent.append((now, prompt, output))
    host = HOST if world["ahead"] else None
    found = serve(POLICIES[name](chunk), requests(*sent, limit=60), slo=SLO, host=host, most_events=20_000,
                  invariants=False, **world["limits"])  # fmt: skip
    summary = found.loop.recorder.summary
    assert not found.loop.live
    assert sum(summary.outcomes.values()) == len(sent)


@pytest.mark.parametrize("blocks", [62, 63, 64])
@pytest.mark.parametrize("policy", [{"name": "sarathi", "params": {"chunk": 500}},
                                    {"name": "vllm-v1", "params": {"budget": 500}},
                                    {"name": "vllm"}, {"name": "edf-llm"}])  # fmt: skip
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_a_prompt_computed_anew_in_chunks_puts_out_its_token(blocks: int, policy: dict, preemption: str) -> None:
    """At 1001 tokens all 63 blocks are taken; two chunks of 500 leave one token pending, and that is no reason to
    begin again."""
    tree = loading.load("opt-13b-a6000", [("requests", 1)]).as_dict()
    tree["workload"] |= {"draws": "seeded", "arrivals": {"process": "poisson", "rate": 0.5}}
    tree["workload"]["lengths"]["llm"] = {
        "prompt": {"draw": "constant", "tokens": 900}, "output": {"draw": "constant", "tokens": 200}
    }  # fmt: skip
    tree["policy"] = policy
    tree["deployment"]["workers"][0]["engine"] |= {"blocks": blocks, "preemption": preemption}
    tree["time"]["costs"] = False
    run = build(loading.load(tree))
    summary = run.play()
    assert summary.outcomes[Outcome.FAILED] == 1


@pytest.mark.parametrize("chunk", [2, 5, 10])
@pytest.mark.parametrize("headroom", [1, 2])
@pytest.mark.parametrize("ahead", [False, True])
def test_it_ends_after_the_token_that_still_fits(chunk: int, headroom: int, ahead: bool) -> None:
    """80 tokens of memory, 61 of the prompt: 20 come out, whatever has to be computed anew for them."""
    host = HOST if ahead else None
    found = serve(Sarathi(chunk), requests((0.0, 61, 40)), blocks=5, headroom=headroom, max_sequences=1, host=host)
    (request,) = found.requests
    assert request.outcome is Outcome.FAILED
    assert "do not fit" in request.reason
    assert request.tasks[0].generated == 20 - ahead  # the last one is in flight when it is decided that it goes


def circles(view: TokenView, now: float) -> Step:
    """Begins a prompt, and takes it back as soon as a part of it is computed."""
    begun = [*view.running]
    if begun:
        return Step(preempt=begun)
    return Step(view.admissible([(task, 1) for task in [*view.waiting][:1]]))


@pytest.mark.parametrize("ahead", [False, True])
def test_an_engine_that_goes_round_in_circles_is_told_with_its_policy(ahead: bool) -> None:
    told = r"invariant 13 .*engine engine goes round in circles under policy Told .*: 1000 steps on end preempted"
    with pytest.raises(InvariantBroken, match=told):
        serve(
            Told(circles), requests((0.0, 50, 5)), invariants=not ahead, host=HOST if ahead else None, times=Linear()
        )


def test_preempting_now_and_then_is_no_circle() -> None:
    turn = iter(range(10**9))

    def decide(view: TokenView, now: float) -> Step:
        if view.running and next(turn) % 3 == 0:
            return Step(preempt=[*view.running][-1:])
        prefill = view.admissible([(task, task.pending) for task in view.waiting])
        return Step(prefill) if prefill else Step(decode=[t for t in view.running if t.decoding])

    found = serve(Told(decide), requests(*[(0.0, 50, 400)] * 8))
    assert found.loop.recorder.summary.finished == 8


def test_who_holds_what_never_ends_is_told() -> None:
    class Never(VLLM):
        def decide(self, view: TokenView, now: float) -> Step:
            return Step()

    run = build(loading.load("opt-13b-a6000", [("policy", "vllm"), ("requests", 3)]))
    run.loop.workers[0].policy = Never()
    with pytest.raises(
        InvariantBroken, match=r"3 requests never ended, .*held by llm \(policy Never \(test_progress.py:\d+\)\)"
    ):
        run.play()
