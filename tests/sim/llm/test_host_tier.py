"""KV blocks in host memory behind the prefix cache: which are found where, by hand and under the invariants."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import pytest
from engines import Linear, Served, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits, PromptContent, TokenRequest
from servetwin.core.llm.host_tier import HostTier
from servetwin.core.llm.metrics import StageTokens
from servetwin.policies.llm.vllm_v1 import VLLMV1
from test_engine_invariants import rows, workloads
from test_prefix_caching import POLICIES, Anything, contents, with_contents

SIZE = 4


class ByHand:
    """A device and a host of so many blocks, for requests that come one after the other: block by block, as vLLM
    keeps them (free blocks in a line; all that is computed copied to the host, the least recently used goes)."""

    def __init__(self, device: int, host: int) -> None:
        self.line: list[object] = [None] * device
        self.host: OrderedDict[object, None] = OrderedDict()
        self.room = host

    def take(self, count: int) -> None:
        del self.line[:count]

    def copy(self, keys: Sequence[object]) -> None:
        for key in keys:
            if key not in self.host:
                self.host[key] = None
        while len(self.host) > self.room:
            self.host.popitem(last=False)

    def serve(self, name: object, shared: int, prompt: int, output: int) -> tuple[int, int]:
        """A request of that *name*, whose first *shared* tokens all of it have: tokens found, and those of them in
        host memory alone."""
        named = [(name, i) for i in range(min(shared, prompt) // SIZE)]
        found = []
        for key in named[: (prompt - 1) // SIZE]:
            if key not in self.line and key not in self.host:
                break
            found.append(key)
        for key in reversed(found):
            if key in self.host:
                self.host.move_to_end(key)
        here = [key for key in found if key in self.line]
        for key in here:
            self.line.remove(key)
        away = len(found) - len(here)
        computed = prompt + output - 1
        self.take(-(-prompt // SIZE) - len(here))
        self.copy(named)
        self.take(-(-computed // SIZE) - -(-prompt // SIZE))
        full = computed // SIZE
        unnamed = full - len(named)
        if computed % SIZE:
            self.line.insert(0, None)
        self.line += [None] * unnamed
        self.copy([object() for _ in range(unnamed)])
        self.line += reversed(named)
        return len(found) * SIZE, away * SIZE


def named(sent: Sequence[TokenRequest], names: Sequence[object], shared: int) -> list[TokenRequest]:
    return with_contents(sent, [PromptContent(((name,),), shared) for name in names])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=25),
    st.integers(14, 40),
    st.integers(1, 40),
)
def test_what_is_found_where_is_as_by_hand(asked: list, device: int, host: int) -> None:
    shared = 22
    sent = requests(*[(100.0 * i, prompt, output) for i, (_, prompt, output) in enumerate(asked)])
    limits = {"blocks": device, "block_size": SIZE, "enable_prefix_caching": True, "host_blocks": host}
    served = serve(VLLMV1(), named(sent, [name for name, _, _ in asked], shared), **limits)
    hand = ByHand(device, host)
    expected = [hand.serve(name, shared, prompt, output) for name, prompt, output in asked]
    tasks = [request.tasks[0] for request in served.requests]
    assert [(task.cached_tokens, task.cached_on_host) for task in tasks] == expected


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(POLICIES)),
    workloads,
    st.lists(contents, min_size=20, max_size=20),
    st.integers(16, 60),
    st.integers(1, 30),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_invariants_whatever_a_policy_does(
    name: str, workload: list, prefixes: list, blocks: int, host: int, whole: bool, seed: int
) -> None:
    sent = with_contents(requests(*rows(workload)), prefixes)
    policy = Anything(seed) if POLICIES[name] is None else POLICIES[name]()
    limits = {"blocks": blocks, "block_size": SIZE, "max_sequences": 8, "whole_prompt": whole}
    serve(policy, sent, enable_prefix_caching=True, host_blocks=host, **limits)


def there_and_back(swap=None, host: int = 100) -> Served:
    """A prompt of 40 tokens, another that takes all blocks, and the first prompt again."""
    sent = requests((0.0, 40, 2), (10.0, 94, 2), (20.0, 40, 2))
    limits = {"blocks": 24, "block_size": SIZE, "enable_prefix_caching": True, "host_blocks": host}
    return serve(VLLMV1(), named(sent, ["a", "b", "a"], 90), swap=swap, **limits)


def test_what_was_taken_comes_back_in_the_time_that_its_blocks_take() -> None:
    first, _, again = [request.tasks[0] for request in there_and_back(lambda blocks: 0.5 + 0.01 * blocks).requests]
    assert (again.cached_tokens, again.cached_on_host) == (36, 36)
    step = Linear()
    assert first.first_token - first.arrival == pytest.approx(step.prefill(40))
    assert again.first_token - again.arrival == pytest.approx(step.prefill(4) + 0.5 + 0.01 * 9)


def test_hits_are_counted_by_tier() -> None:
    summary = StageTokens(None)
    for request in there_and_back().requests:
        summary.ended(request.tasks[0])
    said = summary.as_dict(1.0)
    assert (said["prefix_cache_queries"], said["prefix_cache_hits"]) == (174, 36)
    assert said["prefix_cache_hits_on_host"] == 36
    assert said["prefix_cache_hit_rate_on_host"] == pytest.approx(36 / 174)


def test_a_small_host_forgets_and_none_changes_nothing() -> None:
    assert [r.tasks[0].cached_tokens for r in there_and_back(host=5).requests] == [0, 0, 0]
    assert [r.tasks[0].cached_tokens for r in there_and_back(host=0).requests] == [0, 0, 0]


def test_what_nobody_looks_for_takes_room_as_well() -> None:
    host = HostTier(10)
    assert not host.put(["a", "b"])
    assert host.put_unnamed(9)
    assert [key in host for key in ("a", "b")] == [False, True]
    assert host.put(["c"])
    assert "b" not in host
    assert "c" in host
    assert host.used == 10


@pytest.mark.parametrize("more", [{}, {"enable_prefix_caching": False}])
def test_a_host_needs_a_prefix_cache(more: dict) -> None:
    with pytest.raises(BadInput, match="host_blocks is 4"):
        EngineLimits(10, host_blocks=4, **more)
