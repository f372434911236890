"""NeuStream for language models, rule by rule and quirk by quirk.

Numbers: prefill 1 ms a token, decode 50 ms a step, SLO 3+1.5. So the first token of a prompt of n is due 3n ms after
the arrival, each further one 75 ms after the one before; b0 is 55 ms, the budget 1.5 * 55 - 50 = 32.5 ms a token.
"""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.core.llm import CumulativeSLO, EngineLimits, TokenView
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from token_views import STAGE, Engine


def engine(last_decode: float = 0.05, limits: dict | None = None, **options) -> Engine:
    made = Engine(NeuStreamLLM(**options), **(limits or {}))
    made.view.last_decode = last_decode
    return made


STRICT = {"lenient_steps": 0}


def test_nobody_waits_all_decode():
    e = engine()
    e.runs(100)
    assert e.says() == ([], True, [])
    assert e.decide().repeat is not None


def test_nobody_runs_all_are_prefilled_in_order_and_nobody_is_dropped():
    e = engine(**STRICT)
    for prompt in (300, 100, 200):
        e.waits(prompt, arrival=-100.0)  # long past all deadlines
    assert e.says() == ([(0, 300), (1, 100), (2, 200)], False, [])


def test_shortest_first_and_as_many_as_the_running_can_bear():
    e = engine(**STRICT)
    e.runs(100, 10)  # its next token is due at 300 + 10 * 75 = 1050 ms
    for prompt in (900, 250, 300):
        e.waits(prompt, arrival=0.35)
    # At 440 ms: prefilling 250 and 300 and then a decode step would end at 1040; 20 ms later that is too much.
    assert e.says(now=0.44) == ([(2, 250), (3, 300)], False, [])
    assert e.says(now=0.46) == ([(2, 250)], False, [])


def test_equal_lengths_stay_in_order():
    e = engine()
    e.runs(100, 100)
    for prompt in (50, 20, 50, 20):
        e.waits(prompt)
    assert [i for i, _ in e.says()[0]] == [2, 4, 1, 3]


def test_a_candidates_own_second_token_must_be_in_time_too():
    e = engine(**STRICT)
    e.runs(100, 1000)
    e.waits(100, arrival=0.0)  # its second token is due at 300 + 75 = 375 ms; prefill and decode take 150
    assert e.says(now=0.2) == ([(1, 100)], False, [])
    strict = CumulativeSLO(3.0, 0.5, 0.05, 0.0, lambda n: 0.001 * n)  # then it is due at 325
    e = Engine(NeuStreamLLM(lenient_steps=0), slo=strict)
    e.runs(100, 1000, arrival=100.0)
    e.waits(100, arrival=0.0)
    assert e.says(now=0.18) == ([], True, [])


def test_lenience_covers_the_tokens_that_are_still_to_come():
    # 30 tokens of 32.5 ms: 975 ms for one that has generated none, 942.5 after the first, none after the thirtieth.
    for options, prefilled in ((STRICT, False), ({}, True), ({"lenient_steps": 3}, False)):
        e = engine(**options)
        e.runs(100, 1)  # due at 375 ms
        e.waits(200, arrival=0.2)
        assert bool(e.says(now=0.3)[0]) == prefilled
    e = engine()
    e.runs(100, 30)  # due at 300 + 30 * 75 = 2550
    e.waits(200, arrival=2.3)
    assert e.says(now=2.31) == ([], True, [])


def test_lenience_is_negative_when_decode_steps_take_too_long():
    e = engine(last_decode=0.1)  # 1.5 * 55 - 100 = -17.5 ms a token: 525 ms less
    e.runs(100, 100)
    e.waits(100, arrival=0.0)
    assert e.says(now=0.0) == ([], True, [1])


def test_the_budget_goes_by_the_last_decode_step_or_by_none():
    for feedback, dropped in ((True, [1]), (False, [])):
        e = engine(last_decode=0.1, feedback=feedback)
        e.runs(100, 100)
        e.waits(100, arrival=0.0)
        assert e.says(now=0.0)[2] == dropped


def test_b0_is_1_1_of_a_step_alone_or_what_the_artifact_has():
    # 0.072: 1.5 * 72 - 50 = 58 ms a token, 30 times: 1740 ms of lenience in place of 975.
    for b0, dropped in ((None, [1]), (0.072, [])):
        e = engine(b0=b0)
        e.runs(100, 1000)
        e.waits(100, arrival=0.0)  # hopeless strictly from 200 ms on
        assert e.says(now=1.5)[2] == dropped


def test_before_the_first_decode_step_b0_stands_for_it():
    e = engine(last_decode=0.0)  # 0.5 * 55 ms a token: 825 ms of lenience
    e.runs(100, 1000)
    e.waits(100, arrival=0.0)
    assert e.says(now=1.02)[2] == []
    assert e.says(now=1.03)[2] == [1]


def test_the_drop_rule():
    # Dropped if arrival + P B + lenience - now < B: 300 + 975 - now < 100 ms.
    e = engine()
    e.runs(100, 1000)
    e.waits(100, arrival=0.0)
    assert e.says(now=1.174)[2] == []
    assert e.says(now=1.176)[2] == [1]


def test_what_is_dropped_is_no_candidate():
    e = engine(**STRICT)
    e.runs(100, 1000)
    e.waits(100, arrival=0.0)
    e.waits(200, arrival=0.5)
    assert e.says(now=0.6) == ([(2, 200)], False, [1])


def test_a_running_request_late_beyond_its_lenience_blocks_all_prefill():
    e = engine()
    e.runs(100, 40)
    e.waits(1, arrival=9.99)
    assert e.says(now=10.0) == ([], True, [])


def test_after_a_decode_the_queue_is_in_order_of_length_and_newcomers_stand_behind():
    e = engine(**STRICT)
    running = e.runs(100, 40)
    for prompt in (300, 100, 200):
        e.waits(prompt, arrival=9.9)
    assert e.says(now=10.0) == ([], True, [])
    e.waits(50, arrival=10.0)
    del e.view.running[running]  # nobody runs now: all of the queue, in its order
    assert [i for i, _ in e.says(now=10.0)[0]] == [2, 3, 1, 4]


def test_after_a_prefill_those_left_over_stand_first_in_order_of_length():
    e = engine(limits={"max_batched_tokens": 350}, **STRICT)
    running = e.runs(100, 1000)
    for prompt in (300, 100, 200):
        e.waits(prompt)
    assert e.says() == ([(2, 100), (3, 200)], False, [])  # all three may, two fit
    for task in list(e.view.waiting)[1:]:
        del e.view.waiting[task]
    e.waits(20)
    del e.view.running[running]
    assert [i for i, _ in e.says()[0]] == [1, 4]


def test_those_that_lose_their_memory_come_back_in_the_order_of_the_engines_queue():
    e = engine(**STRICT)
    first, second = e.waits(10), e.waits(20)
    assert e.says()[0] == [(0, 10), (1, 20)]
    e.view.waiting.clear()
    assert e.says() == ([], True, [])  # both run; then both are preempted, the first first
    for task in (first, second):
        task.generated, task.preemptions = 5, 1
        e.view.waiting[task] = None
        e.view.waiting.move_to_end(task, last=False)
    e.waits(5)
    assert [i for i, _ in e.says()[0]] == [1, 0, 2]


def test_no_memory_for_the_prefill_all_decode():
    e = engine(limits={"blocks": 8})
    e.runs(100, 20)
    e.waits(100)
    assert e.says() == ([], True, [])


def test_a_batch_costs_what_its_own_prompts_cost_or_what_the_head_of_the_queue_would():
    for cost, prefilled in (("chosen", [(2, 100)]), ("queue", [])):
        e = engine(batch_cost=cost, **STRICT)
        e.runs(100, 10)  # due at 1050 ms
        e.waits(400, arrival=0.7)
        e.waits(100, arrival=0.7)
        assert e.says(now=0.8)[0] == prefilled


def test_bisection_may_miss_what_a_search_of_all_finds():
    # Of 1 to 4 prompts of 100, only 1 and 4 can be prefilled. Bisection asks for 2, then for 1, and stops there.
    for search, found in (("bisect", 1), ("all", 4)):
        e = engine(search=search, **STRICT)
        e.runs(100, 10)  # due at 1050 ms
        for _ in range(4):
            e.waits(100, arrival=0.75)
        e.prefill = lambda tokens: {100: 0.1, 200: 0.5, 300: 0.5, 400: 0.15}[tokens]  # a staircase with a dip
        assert len(e.says(now=0.8)[0]) == found


def test_one_that_lost_its_memory_is_judged_by_where_it_is_or_as_if_it_were_new():
    # 100 prompt tokens and 40 out: 140 to compute; the 41st token is due at 300 + 40 * 75 = 3300 ms.
    for preempted, expected in (("own", ([(1, 140)], False, [])), ("fresh", ([], True, [1]))):
        e = engine(preempted=preempted)
        e.runs(100, 1000)
        e.waits(100, generated=40)
        assert e.says(now=2.0) == expected


def test_a_fresh_one_costs_its_prompt_only():
    for preempted, m in (("own", 0), ("fresh", 1)):
        e = engine(preempted=preempted, **STRICT)
        e.runs(100, 10)  # due at 1050 ms
        e.waits(100, generated=40, arrival=0.79)
        assert len(e.says(now=0.88)[0]) == m


def test_the_artifacts_correction_of_long_decode_steps():
    for offset, prefilled in ((False, True), (True, False)):
        e = engine(offset=offset, **STRICT)
        e.runs(100, 10)  # due at 1050 ms
        e.waits(100, arrival=0.8)
        assert bool(e.says(now=0.898)[0]) == prefilled  # 898 + 100 + 50 = 1048; 3 ms more are too many
    policy = NeuStreamLLM(offset=True)
    for seconds, more in ((0.044, 0.0), (0.045, 0.002), (0.05, 0.003), (0.0549, 0.003), (0.06, 0.004)):
        e = engine()
        e.decode = lambda context, seconds=seconds: seconds
        assert policy._decode(e.view, 1, 1) == pytest.approx(seconds + more)


def test_short_requests_are_looked_at_for_as_many_steps_as_they_lack():
    # With 13 tokens after the prefill it is looked at for 20 steps of 50 ms; strictly it may take 1.5 * 50 each.
    for lookahead, prefilled in ((0, True), (33, False)):
        e = engine(lookahead=lookahead, **STRICT)
        e.decode = lambda context: 0.08  # slower than the SLO allows for
        e.runs(100, 1000)
        e.waits(12, arrival=0.0)  # second token due at 111 ms, its n-th 75 ms later each; steps take 80
        assert bool(e.says(now=0.0)[0]) == prefilled


def test_running_requests_without_lenience():
    for lenient, prefilled in (("all", True), ("waiting", False)):
        e = engine(lenient=lenient)
        e.runs(100, 1)  # due at 375 ms
        e.waits(200, arrival=0.2)
        assert bool(e.says(now=0.3)[0]) == prefilled


def test_a_prompt_longer_than_a_step_is_given_up():
    e = engine(limits={"max_batched_tokens": 100})
    e.waits(101)
    e.waits(60)
    assert e.says() == ([(1, 60)], False, [0])


def test_options_say_what_is_wrong():
    with pytest.raises(BadInput, match="search is 'fast'"):
        NeuStreamLLM(search="fast")  # type: ignore[arg-type]
    view = TokenView(STAGE, EngineLimits(9), estimate_prefill=lambda n, s: 0.1, estimate_decode=lambda b, c: 0.1)
    with pytest.raises(BadInput, match="needs deadlines of tokens"):
        NeuStreamLLM().start(view)
