"""Engines with a prefix cache, under the invariants, and small cases by hand. (Beside vLLM's own scheduler:
tests/real/vllm/test_prefix_caching.py.)"""

from __future__ import annotations

import pytest
from engines import Anything, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import CachingTask, EngineLimits, PromptContent, TokenRequest
from servetwin.core.llm.prefix_cache import PrefixCache
from servetwin.core.llm.serving.worker import Host
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.orca import Orca
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from test_engine import SLOW
from test_engine_invariants import SLO, rows, workloads

POLICIES = {
    "anything": None,
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "vllm-v1, whole prompts": lambda: VLLMV1(chunked=False),
    "sarathi": lambda: Sarathi(32),
    "edf-llm": EDFLLM,
    "orca": Orca,
}

#: Of ids few enough that prompts meet, of sizes that are multiples of blocks and not.
contents = st.builds(
    lambda ids, size: PromptContent(ids, size) if ids else None,
    st.lists(st.integers(0, 1), max_size=4).map(tuple),
    st.sampled_from([4, 7, 16]),
)
engines = st.fixed_dictionaries(
    {
        "blocks": st.integers(16, 60),
        "block_size": st.sampled_from([4, 16]),
        "max_sequences": st.sampled_from([1, 3, 64]),
        "headroom": st.sampled_from([0, 1]),
        "watermark": st.sampled_from([0.0, 0.1]),
        "whole_prompt": st.booleans(),
    }
)
hosts = st.none() | st.builds(
    lambda between, begins: Host(lambda sequences: between, 0.0, ahead=True, begins=begins),
    st.sampled_from([0.0, 0.001, 0.3]),
    st.sampled_from([0.0, 0.005]),
)


def with_contents(sent, prefixes):
    made = []
    for request, content in zip(sent, prefixes, strict=False):
        prefix = {"llm": content} if content is not None else None
        made.append(TokenRequest(request.id, request.arrival, request.tokens, request.outputs, prefix=prefix))
    return made


@pytest.mark.parametrize("name", POLICIES)
@given(
    workloads,
    st.lists(contents, min_size=20, max_size=20),
    engines,
    hosts,
    st.integers(0, 10**6),
    st.none() | st.sampled_from([0.35, 2.0]),
)
@settings(max_examples=15)
def test_the_invariants_whatever_a_policy_does(name, workload, prefixes, engine, host, seed, stop_at):
    policy = POLICIES[name]() if POLICIES[name] else Anything(seed, repeats=host is None)
    sent = with_contents(requests(*rows(workload), limit=50), prefixes)
    served = serve(
        policy,
        sent,
        slo=SLO,
        stop_at=stop_at,
        max_batched_tokens=100,
        host=host,
        enable_prefix_caching=True,
        **engine,
    )
    assert len(served.log.ends) == len(workload)
    view = served.loop.workers[0].view
    if not view.running:
        assert view.cache.free == view.free_blocks == view.blocks


def alike(*sent, ids=("system",), size=40):
    """Requests whose prompts begin with the same *size* tokens."""
    return with_contents(requests(*sent), [PromptContent(ids, size)] * len(sent))


def pieces(served):
    return [step[1] for step in served.log.steps if step[1]]


def test_who_comes_later_computes_only_what_is_not_there():
    served = serve(VLLMV1(), alike((0.0, 50, 3), (5.0, 50, 3), (5.0, 40, 3)), blocks=100, enable_prefix_caching=True)
    # Two full blocks of 16 are in the first 40 tokens.
    assert pieces(served) == [[(0, 50)], [(1, 18), (2, 8)]]
    tasks = [request.tasks[0] for request in served.requests]
    assert [task.cached_tokens for task in tasks] == [0, 32, 32]
    assert served.log.records[1]["stages"][0]["cached"] == 32


def test_those_who_come_together_share_what_the_first_of_them_computes():
    served = serve(VLLMV1(), alike((0.0, 50, 3), (0.0, 50, 3)), blocks=100, enable_prefix_caching=True)
    assert pieces(served) == [[(0, 50), (1, 18)]]


def test_the_last_token_of_a_prompt_is_always_computed():
    # All three blocks are there, but the last one has to be computed anew whole.
    served = serve(VLLMV1(), alike((0.0, 48, 2), (5.0, 48, 2), size=48), blocks=100, enable_prefix_caching=True)
    assert pieces(served) == [[(0, 48)], [(1, 16)]]


def test_one_who_lost_its_memory_finds_again_what_nobody_took():
    """Four blocks of 4 tokens, two of them each of the last two: one is taken, the other is found."""
    sent = requests((0.0, 1, 1), (0.5, 7, 4), (0.5, 7, 4))
    served = serve(VLLMV1(), sent, times=SLOW, blocks=4, block_size=4, enable_prefix_caching=True)
    assert [request.tasks[0].preemptions for request in sent] == [0, 0, 1]
    assert pieces(served) == [[(0, 1)], [(1, 7), (2, 7)], [(2, 5)]]  # of 9 tokens, with those that it generated


def test_a_policy_sees_what_one_who_waits_would_find():
    seen = []

    class Looks(VLLMV1):
        def decide(self, view, now):
            seen.extend((task.computed, task.pending) for task in view.waiting)
            return super().decide(view, now)

    serve(Looks(), alike((0.0, 50, 3), (5.0, 50, 3)), blocks=100, enable_prefix_caching=True)
    assert seen == [(0, 50), (32, 18)]


def test_shared_blocks_are_counted_once():
    # Each holds 40 tokens in all; alone they need 3 blocks of 16, together 3 + 1 + 1.
    sent = alike((0.0, 36, 5), (0.0, 36, 5), (0.0, 36, 5), size=32)
    served = serve(VLLMV1(), sent, blocks=5, enable_prefix_caching=True)
    assert len(pieces(served)) == 1
    assert not any(request.tasks[0].preemptions for request in sent)
    assert len(pieces(serve(VLLMV1(), requests((0.0, 36, 5), (0.0, 36, 5), (0.0, 36, 5)), blocks=5))) > 1


def test_contents_that_only_end_alike_are_different():
    same_end = [PromptContent((i, 7), 16) for i in range(2)]
    served = serve(
        VLLMV1(), with_contents(requests((0.0, 40, 2), (5.0, 40, 2)), same_end), blocks=99, enable_prefix_caching=True
    )
    assert pieces(served) == [[(0, 40)], [(1, 40)]]


def test_blocks_that_were_taken_leave_nothing_behind():
    count = 400
    contents = [PromptContent((i,), 64) for i in range(count)]
    sent = with_contents(requests(*[(0.1 * i, 64, 4) for i in range(count)]), contents)
    served = serve(VLLMV1(), sent, blocks=24, enable_prefix_caching=True)
    cache = served.loop.workers[0].view.cache
    assert sum(map(len, cache.cached.values())) <= 24
    assert len(cache.line) <= 24
    assert not served.loop.workers[0].engine.tables


@given(st.lists(st.tuples(contents, st.integers(1, 60), st.integers(1, 5)), min_size=1, max_size=12))
@settings(max_examples=60)
def test_what_is_found_has_no_holes(asked):
    """The search by halves finds what a search block by block does."""
    cache, tables = PrefixCache(40, 4), []
    for content, prompt, taken in asked:
        task = CachingTask.__new__(CachingTask)
        task.prompt_content, task.prompt, task.base_generated, task.cache_serial, task.cache_seen = (
            content,
            prompt,
            0,
            0,
            -1,
        )
        named = min(content.tokens(prompt, prompt) // 4, (prompt - 1) // 4) if content else 0
        one_by_one = 0
        while one_by_one < named and content.key(4 * (one_by_one + 1)) in cache.cached:
            one_by_one += 1
        assert cache.found(task) == 4 * one_by_one
        keys = cache.keys(task, one_by_one)
        new = -(-prompt // 4) - len(keys)
        while cache.free < new + len(keys) and tables:
            cache.give_back(tables.pop(0), unnamed=0, partial=0)
        if cache.free >= new + cache.idle(keys):
            table = cache.share(keys)
            cache.take(new)
            cache.register(table, content, prompt, prompt)
            cache.give_back((), unnamed=0, partial=-(-prompt // 4) - len(table))
            tables.append(table)
        if len(tables) > taken:
            cache.give_back(tables.pop(0), unnamed=0, partial=0)


@pytest.mark.parametrize("other", [{"preemption": "swap"}, {"keep_freed": True}])
def test_options_that_do_not_go_together(other):
    with pytest.raises(BadInput, match="enable_prefix_caching"):
        EngineLimits(blocks=10, enable_prefix_caching=True, **other)
