"""vLLM 0.5.4, vLLM V1, Sarathi and least slack first, decision by decision."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits, TokenView
from servetwin.core.testing import FakeEngine, Prompt
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from token_views import STAGE, Engine

# -- vLLM 0.5.4 ---------------------------------------------------------------------------------------------------


def test_prefill_goes_before_decode_and_never_with_it():
    engine = Engine(VLLM())
    engine.runs(50)
    engine.waits(40)
    engine.waits(30)
    assert engine.says() == ([(1, 40), (2, 30)], False, [])


def test_all_decode_when_nobody_waits_until_something_changes():
    engine = Engine(VLLM())
    engine.runs(50)
    assert engine.says() == ([], True, [])
    assert engine.decide().repeat.times > 10**9


@pytest.mark.parametrize(
    ("limits", "admitted"),
    [
        ({"max_batched_tokens": 100}, [(1, 40), (2, 30)]),  # 40 more tokens would not fit; those after it wait too
        ({"max_sequences": 2}, [(1, 40)]),
        ({"blocks": 4 + 3 + 2}, [(1, 40), (2, 30)]),
        ({"blocks": 4 + 3 + 1}, [(1, 40)]),
        ({"blocks": 4 + 3 + 3, "watermark": 0.2}, [(1, 40)]),
        ({"blocks": 4 + 2}, []),
    ],
)
def test_the_head_of_the_queue_as_far_as_it_fits(limits, admitted):
    engine = Engine(VLLM(), **limits)
    engine.runs(50)  # 4 blocks
    for prompt in (40, 30, 40, 5):
        engine.waits(prompt)
    prefill, decodes, _ = engine.says()
    assert prefill[:2] == admitted[:2]
    assert decodes == (not admitted)


def test_a_prompt_longer_than_a_step_is_given_up():
    engine = Engine(VLLM(), max_batched_tokens=100)
    engine.waits(101)
    engine.waits(100)
    assert engine.says() == ([(1, 100)], False, [0])


def test_what_is_on_the_host_comes_back_beside_a_decode_step_and_before_new_ones():
    engine = Engine(VLLM(), blocks=4 + 4)
    engine.runs(50)
    engine.waits(20)
    engine.waits(50, generated=5, computed=54)  # 4 blocks with the next token
    assert engine.says() == ([(2, 1)], True, [])
    engine.waits(50, generated=5, computed=54)
    engine.view.free_blocks = 3
    assert engine.says() == ([], True, [])


def test_a_preempted_request_computes_its_output_anew_too():
    engine = Engine(VLLM())
    engine.waits(50, generated=7)
    assert engine.says() == ([(0, 57)], False, [])


# -- vLLM V1 ------------------------------------------------------------------------------------------------------


def test_the_running_go_first_and_the_rest_of_the_budget_to_the_queue():
    engine = Engine(VLLMV1(), max_batched_tokens=100)
    engine.runs(50)
    engine.runs(50)
    engine.runs(70, computed=20)
    engine.waits(30)
    engine.waits(60)
    engine.waits(5)
    # 2 decode, 50 tokens are left of a prompt, 30 of the next, and 18 for a chunk.
    assert engine.says() == ([(2, 50), (3, 30), (4, 18)], True, [])


def test_a_long_prompt_takes_what_is_left_of_the_budget():
    engine = Engine(VLLMV1(budget=64), max_batched_tokens=100)
    engine.runs(50)
    engine.runs(500, computed=100)
    engine.waits(30)
    assert engine.says() == ([(1, 63)], True, [])


def test_without_chunks_a_prompt_waits_for_a_step_that_holds_it():
    engine = Engine(VLLMV1(chunked=False), max_batched_tokens=100)
    engine.runs(50)
    engine.waits(100)
    assert engine.says() == ([], True, [])
    engine.view.running.clear()
    engine.view.decoding = 0
    assert engine.says() == ([(1, 100)], True, [])


def test_a_chunk_needs_memory_for_itself_or_for_its_prompt():
    for whole, admitted in ((False, [(0, 32)]), (True, [])):
        engine = Engine(VLLMV1(), blocks=3, max_batched_tokens=32, whole_prompt=whole)
        engine.waits(64)
        assert engine.says()[0] == admitted


def test_no_more_sequences_than_the_engine_allows():
    engine = Engine(VLLMV1(), max_sequences=2)
    engine.runs(50)
    engine.waits(30)
    engine.waits(30)
    assert engine.says() == ([(1, 30)], True, [])


# -- Sarathi ------------------------------------------------------------------------------------------------------


def test_decodes_first_then_begun_prompts_then_new_ones_up_to_the_chunk():
    engine = Engine(Sarathi(chunk=100))
    engine.runs(90, computed=50)
    engine.runs(50)
    engine.waits(40)
    engine.waits(40)
    assert engine.says() == ([(0, 40), (2, 40), (3, 19)], True, [])


def test_no_decode_waits_however_long_the_prompt():
    engine = Engine(Sarathi(chunk=8))
    for _ in range(8):
        engine.runs(50)
    engine.waits(4000)
    assert engine.says() == ([], True, [])


def test_a_prompt_is_begun_only_with_memory_for_all_of_it():
    engine = Engine(Sarathi(chunk=16), blocks=10)
    engine.runs(80, computed=16)  # 1 block now, 4 to come
    engine.waits(80)  # 5 blocks
    engine.view.running[next(iter(engine.view.running))] = None
    assert engine.says()[0] == [(0, 16)]
    engine = Engine(Sarathi(chunk=32), blocks=10)
    engine.runs(80, computed=64)  # 4 blocks now, 1 to come
    engine.waits(80)
    assert engine.says()[0] == [(0, 16), (1, 16)]


@pytest.mark.parametrize(("blocks", "admitted"), [(8, []), (11, [(1, 10)]), (10, [])])
def test_what_a_begun_prompt_has_still_to_come_is_taken_for_nobody_else(blocks: int, admitted: list) -> None:
    """It has 2 blocks and takes 5 more; of what is left then the newcomer needs 4, though its first chunk needs 1."""
    begun, newcomer = Prompt(100, computed=32), 64
    engine = FakeEngine(Sarathi(chunk=78), running=[begun], waiting=[newcomer], blocks=blocks, watermark=0.0)
    step = engine.decide(now=0.0)
    assert step is not None
    assert step.prefill == [(0, 68), *admitted]


def test_a_chunk_has_a_token_at_least():
    with pytest.raises(BadInput, match="chunk is 0"):
        Sarathi(0)


# -- least slack first ----------------------------------------------------------------------------------------------


def test_whoever_has_least_slack_decides():
    # A token is due 3 ms per prompt token after the arrival, and 75 ms after the one before.
    engine = Engine(EDFLLM())
    engine.runs(100, 1)  # the next token is due at 0.375, so the step must begin by 0.325
    engine.waits(100, arrival=0.05)  # the first is due at 0.35; the prefill must begin by 0.25
    engine.waits(100, arrival=0.2)  # by 0.4
    engine.waits(90, arrival=0.0)  # by 0.18
    assert engine.says(now=0.1) == ([(3, 90), (1, 100)], False, [])


def test_the_running_decode_while_they_are_the_more_urgent():
    engine = Engine(EDFLLM())
    engine.runs(100, 1)
    engine.waits(100, arrival=0.2)
    assert engine.says(now=0.3) == ([], True, [])


def test_what_cannot_be_in_time_any_more_is_dropped_unless_told_not_to():
    for drop, expected in ((True, ([(1, 100)], False, [0])), (False, ([(0, 100), (1, 100)], False, []))):
        engine = Engine(EDFLLM(drop_late=drop))
        engine.waits(100, arrival=0.0)  # must begin by 0.2
        engine.waits(100, arrival=0.1)
        assert engine.says(now=0.25) == expected


def test_least_slack_needs_deadlines():
    limits = EngineLimits(10)
    view = TokenView(STAGE, limits, estimate_prefill=lambda n, s: 0.1, estimate_decode=lambda b, c: 0.1)
    with pytest.raises(BadInput, match="needs deadlines of tokens"):
        EDFLLM().start(view)
