"""vLLM's prefix cache as policies see it: read as `servetwin.core.llm.prefix_cache.PrefixCache`, and never written.

What a waiting request would find, and what comes of admitting some one after the other, is told from vLLM's own
blocks (``vllm/v1/core/block_pool.py``) and hashes (``Request.block_hashes``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from servetwin.core import BadInput
from servetwin.core.isolation.read_only import opaque
from servetwin.core.llm import CachingTask, TokenPolicy, TokenTask, TokenView
from servetwin.core.llm.prefix_cache import Block, Key, Looking, PrefixCache, Trial
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

from .internals import Orders, Steered, exhausted, forget_prefixes, free_line, held_by, pending


class _Seen:
    """A block of vLLM's, as a `servetwin.core.llm.prefix_cache.Block`."""

    __slots__ = ("block",)
    count = 1

    def __init__(self, block: Any) -> None:
        self.block = block

    @property
    def key(self) -> Any:
        return self.block.block_hash

    @property
    def refs(self) -> int:
        return int(self.block.ref_cnt)


class _Cached:
    """The blocks by their content, as `PrefixCache.cached`."""

    def __init__(self, pool: Any, seen: Sequence[_Seen]) -> None:
        self.pool, self.seen = pool, seen

    def __contains__(self, key: Any) -> bool:
        return bool(held_by(self.pool, key))

    def __getitem__(self, key: Any) -> list[_Seen]:
        return [self.seen[block.block_id] for block in held_by(self.pool, key)]

    def get(self, key: Any) -> list[_Seen] | None:
        return self[key] or None


class VllmPrefixCache(PrefixCache):
    """That of *manager* (vLLM's ``KVCacheManager``), for tasks that stand for *requests*. Whoever changes what can be
    found lets `version` grow: vLLM does where it schedules a step or takes one in."""

    def __init__(self, manager: Any, size: int, requests: Mapping[TokenTask, Any]) -> None:
        groups = len(manager.kv_cache_config.kv_cache_groups)
        if groups != 1:
            what = f"a model with {groups} kinds of attention layers has as many prefix caches"
            raise BadInput(what, where="engine.enable_prefix_caching", right="false, for this model")
        self.size, self.version, self.host = size, 0, None  # what is not on the device is not found
        self._pool, self._requests = manager.block_pool, requests
        self._seen = [_Seen(block) for block in self._pool.blocks]
        self.cached = cast("dict[Key, list[Block]]", _Cached(self._pool, self._seen))
        self.has = self.cached.__contains__

    @property
    def free(self) -> int:  # type: ignore[override]
        return int(self._pool.get_num_free_blocks())

    @property
    def line(self) -> Iterator[Any]:  # type: ignore[override]
        """The blocks that nobody uses, in the order in which they are taken."""
        return (self._seen[block.block_id] for block in free_line(self._pool))

    def hits(self, task: Looking, has: Callable[[Key], bool]) -> int:
        request = self._requests.get(cast("TokenTask", task))
        if request is None:
            return 0
        hashes = request.block_hashes
        most = min(len(hashes), (request.num_tokens - 1) // self.size)
        if not most or not has(_key(hashes[0])):
            return 0
        return bisect_left(range(most), True, key=lambda i: not has(_key(hashes[i])))

    def keys(self, task: Looking, count: int) -> list[Key]:
        return [_key(one) for one in self._requests[cast("TokenTask", task)].block_hashes[:count]]

    def kept(self, task: Looking, begin: int, upto: int) -> Sequence[Key]:
        hashes = self._requests[cast("TokenTask", task)].block_hashes
        return [_key(one) for one in hashes[begin : upto // self.size]]


def _key(block_hash: Any) -> Key:
    return cast("Key", make_block_hash_with_group_id(block_hash, 0))


class SeesPrefixes(Steered):
    """`Steered` whose policy sees vLLM's prefix cache, where that is on."""

    cache: VllmPrefixCache | None = None
    tasks: dict[str, TokenTask]
    view: TokenView
    policy_object: TokenPolicy | None
    _requests: dict[TokenTask, Any]

    def begin_cache(self) -> None:
        """Let a new view show the cache, in which nothing is yet."""
        if not self.caches_prefixes:
            return
        forget_prefixes(self)
        self.cache = VllmPrefixCache(self.kv_cache_manager, self.block_size, self._requests)
        self.view.cache, self.view.due_blocks = self.cache, self.due_blocks
        self._lookup = opaque(self.cache.found)

    def task(self, *args: Any) -> TokenTask:
        """A `TokenTask`, which knows what it would find if there is a cache."""
        if self.cache is None:
            return TokenTask(*args)
        task = CachingTask(*args)
        task.cache_lookup = self._lookup
        return task

    def cache_changes(self) -> None:
        """vLLM may have changed what can be found."""
        if self.cache is not None:
            self.cache.version += 1

    def due_blocks(self, chosen: Container[str] | None = None) -> int:
        """The blocks that those who decode need next, or those of them whose ids are *chosen*."""
        size, tasks, due = self.block_size, self.tasks, 0
        for request in self.running:
            computed = request.num_computed_tokens
            if computed % size == 0 and (chosen is None or request.request_id in chosen):
                task = tasks[request.request_id]
                count = task.base_generated
                due += bool(count and computed == task.prompt + count - 1 and not exhausted(request))
        return due

    def at_their_turn(self, orders: Orders) -> Orders:
        """As the simulated engine does it (`servetwin.core.llm.serving.caching`): what each finds is seen when its
        turn comes. Who finds more than it showed computes only the rest; who finds less, computes that too, as far as
        the step has room."""
        if self.cache is None or not orders.prefill:
            return orders
        policy = self.policy_object
        chosen = None if orders.decode is None else {r.request_id for r in orders.decode}
        begun = {r.request_id for r, _ in orders.prefill}
        decode = sum(
            (chosen is None or r.request_id in chosen)
            and r.request_id not in begun
            and pending(r) == 1
            and not exhausted(r)
            for r in self.running
        )
        own = getattr(policy, "tokens_a_step", None)
        most = self.max_num_scheduled_tokens - decode
        room = most if own is None else min(own - decode, most)
        prefill = self._counted(
            orders.prefill,
            self.due_blocks(chosen) if decode else 0,
            most,
            room if getattr(policy, "chunks", False) else most,
        )
        found = {request.request_id: tokens for request, _, tokens in prefill}
        return replace(orders, prefill=[(request, tokens) for request, tokens, _ in prefill], found=found)

    def _counted(
        self, prefill: Sequence[tuple[Any, int]], due: int, most: int, room: int
    ) -> list[tuple[Any, int, int]]:
        """What is computed of *prefill* (request, tokens): (request, tokens, tokens that it finds), where those who
        decode take *due* blocks first and leave *most* tokens, *room* for who finds less than it showed. vLLM looks
        nobody up who waits with tokens that count as computed (`stand_before`): only the rest is computed."""
        assert self.cache is not None
        cache, size, trial, waiting = self.cache, self.block_size, Trial(self.cache), self.view.waiting
        trial.take(due)
        taken: list[tuple[Any, int, int]] = []
        idle: Sequence[Block]
        less = False
        for request, asked in prefill:
            task, count, found = self.tasks[request.request_id], asked, 0
            stands = request.num_computed_tokens
            held = 0 if task in waiting else stands  # tokens for which it has blocks
            if task in waiting and not stands:
                assert isinstance(task, CachingTask)
                shown, found = task.pending, trial.found(task)
                now_pending = shown + task.computed - found
                if count <= shown < now_pending:
                    count += now_pending - shown
                    less = True
                if less:
                    count = min(count, room)
                count = min(count, now_pending)
                if not 0 < count <= most:
                    break
                before = held = found
                idle = trial.idle(cache.keys(task, found // size))
            else:
                idle, before = (), stands
                if not 0 < count <= most:
                    break
            new = -(-(before + count) // size) + -held // size
            trial.admit(cast("CachingTask", task), idle, held // size, new, before + count)
            room -= count
            most -= count
            taken.append((request, count, found))
        return taken
