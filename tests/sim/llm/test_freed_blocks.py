"""A preempted request finds again what nobody took of its blocks. (Beside vLLM's own prefix cache:
tests/real/vllm/test_same_decisions.py.)"""

from __future__ import annotations

import pytest
from engines import requests, serve
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits
from servetwin.core.llm.serving.freed_blocks import FreedBlocks
from servetwin.policies.llm.vllm_v1 import VLLMV1


def test_the_last_blocks_of_who_came_first_are_taken_first():
    line = FreedBlocks(2)
    line.take(2)
    line.leave("a", full=3, other=0)
    line.leave("b", full=3, other=0)
    line.take(2)
    assert (line.kept("a"), line.kept("b")) == (1, 3)
    line.take(2)
    assert (line.kept("a"), line.kept("b")) == (0, 2)


def test_blocks_that_nobody_can_find_again_are_taken_before():
    line = FreedBlocks(0)
    line.leave("a", full=3, other=1)
    line.leave(None, full=2, other=1)
    line.take(2)
    assert line.kept("a") == 3


def test_what_somebody_takes_back_is_nobody_elses():
    line = FreedBlocks(0)
    line.leave("a", full=3, other=0)
    line.leave("b", full=2, other=0)
    line.claim("a", 3)
    line.take(1)
    assert (line.kept("a"), line.kept("b")) == (0, 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 2), st.integers(0, 12)), max_size=60))
def test_no_block_is_lost_or_made(moves):
    line, free = FreedBlocks(7), 7
    for who, full, other, taken in moves:
        line.leave(who, full=full, other=other)
        free += full + other
        copy = line.copy()
        taken = min(taken, free)
        copy.take(taken)
        line.take(taken)
        free -= taken
        assert [copy.kept(w) for w in range(6)] == [line.kept(w) for w in range(6)]
        assert sum(count for (count,) in line._line[line._first :]) == free
        assert sum(line.kept(w) for w in range(6)) <= free


#: Two requests that together outgrow the memory: 1 is preempted, and comes back when 0 has ended.
TWO = ((0.0, 64, 40), (0.0, 64, 40))


def prefills(served):
    return [pieces for _, pieces, _ in served.log.steps if pieces]


def test_who_comes_back_computes_only_what_was_taken():
    limits = {"blocks": 10, "max_batched_tokens": 256, "whole_prompt": True}
    anew = prefills(serve(VLLMV1(), requests(*TWO), **limits))
    kept = prefills(serve(VLLMV1(), requests(*TWO), **limits, keep_freed=True))
    assert anew[0] == kept[0] == [(0, 64), (1, 64)]
    # At 80 tokens each the ten blocks are full. 1 had five full ones; 0 took two of them for its tokens 81 to 103.
    assert anew[1] == [(1, 81)]
    assert kept[1] == [(1, 81 - 3 * 16)]


def test_without_preemptions_nothing_differs():
    sent = [(0.01 * i, 20 + i, 5 + i) for i in range(30)]
    plain = serve(VLLMV1(), requests(*sent), blocks=1000)
    kept = serve(VLLMV1(), requests(*sent), blocks=1000, keep_freed=True)
    assert plain.log.steps == kept.log.steps


def test_what_is_moved_to_the_host_is_not_kept_on_the_device():
    with pytest.raises(BadInput, match="keep_freed"):
        EngineLimits(blocks=10, keep_freed=True, preemption="swap")
