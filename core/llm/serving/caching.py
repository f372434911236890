"""Engines with vLLM's prefix cache (`servetwin.core.llm.prefix_cache`): requests that begin alike share blocks, and
who was preempted finds again what nobody took.

Blocks that decode steps take are taken off the cache's line later than they are counted, when something else comes
or goes: between two such events blocks only go, so nobody can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from ...isolation.answers import fault
from ...isolation.read_only import opaque
from ...request import Request
from ...serving.worker import Loop
from ..batch import Piece, TokenBatch
from ..host_tier import HostTier
from ..policy import Chunk, Step
from ..prefix_cache import Block, PrefixCache, PromptContent
from ..request import CachingTask, TokenTask
from .async_engine import TokenEngineAhead
from .engine import TokenEngine
from .host import LLMWorker

# What the two engines below have in common, for type checkers an engine itself.
if TYPE_CHECKING:
    _Base = TokenEngine
else:
    _Base = object


class Caching(_Base):
    """An engine with a prefix cache. *tables* holds, for each that runs, its first blocks: those that others may
    find, and those that it found itself. The rest of its blocks is counted."""

    kind = CachingTask

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        view = self.view
        host = view.limits.host_blocks
        self.cache = view.cache = PrefixCache(view.blocks, self.size, HostTier(host) if host else None)
        view.due_blocks = lambda: self._blocks_of_a_step(None)
        self.tables: dict[TokenTask, list[Block]] = {}
        self._known = view.free_blocks  # the free blocks that *cache* knows of
        self._loses: TokenTask | None = None  # who is being preempted
        self._served = 0  # blocks off the line already, for those who run in the step that is being made
        self._serials = 0
        self.padded = 0  # tokens of the step being made that nobody needs (`TokenView.padding`)
        self._lookup = opaque(self.cache.found)

    def task(self, request: Request, now: float) -> TokenTask:
        task = super().task(request, now)
        assert isinstance(task, CachingTask)
        task.cache_lookup = self._lookup
        return task

    def restart(self) -> None:
        self._catch_up()
        # A step that was cut off had blocks taken off the line for those that decode, who never got them.
        self.cache.give_back((), unnamed=0, partial=self.view.free_blocks - self.cache.free)
        self.cache.clear()

    def content_of(self, request: Request, content: PromptContent) -> PromptContent:
        """What *content*, with which the prompt of *request* begins, is in the cache."""
        return content

    def _catch_up(self) -> None:
        """What was taken since, was taken off the line."""
        free = self.view.free_blocks
        if free < self._known:
            self.cache.take(self._known - free)
            self._known = free

    # -- what comes free ----------------------------------------------------------------------------------

    def _serve_before(self, needs: Sequence[int]) -> None:
        # What the preempted one gives back stands before all that can be found again, and they do not get that.
        free, taken = self.view.free_blocks - self.headroom, 0
        for blocks in needs:
            if taken + blocks > free:
                break
            taken += blocks
        more = taken - self._served
        if more > 0:
            self._catch_up()
            self.cache.take(more)
            self._known -= more
            self._served = taken

    def _take_served(self, blocks: int) -> None:
        """Those who run take so many *blocks* off the line, but for those that they have."""
        had = min(blocks, self._served)
        self._served -= had
        self.cache.take(blocks - had)

    def _unserve(self) -> None:
        """What was taken off the line for a step that it does not need after all is put back."""
        if self._served:
            self.cache.give_back((), unnamed=0, partial=self._served)
            self._known += self._served
            self._served = 0

    def _carry_out(self, step: Step, now: float) -> bool:
        done = super()._carry_out(step, now)
        self._unserve()
        return done

    def _gives_back(self, task: TokenTask, *, back: bool) -> int:
        """*task* gives back its blocks; with *back* it may want them again. Gives how many of them others still
        use."""
        self._catch_up()
        computed, size = task.computed, self.size
        table = self.tables.pop(task)
        blocks, full = self._blocks_of(task), (computed - self._unknown(task)) // size
        assert isinstance(task, CachingTask)
        content = task.prompt_content
        if content is not None and content.answers:
            self.cache.register(table, content, task.prompt, full * size)
        if back:
            if not task.cache_serial:
                self._serials += 1
                task.cache_serial = self._serials
            self.cache.keep(table, task.cache_serial, full)
        shared = self.cache.give_back(
            table, unnamed=max(0, full - len(table)), partial=blocks - max(full, len(table))
        )
        self._known += blocks - shared
        return shared

    def _blocks_of(self, task: TokenTask) -> int:
        """How many blocks *task*, which runs, holds."""
        return -(-task.computed // self.size)

    def _unknown(self, task: TokenTask) -> int:
        """Tokens of *task* whose KV stands but which were not known when memory for them was taken."""
        return 0

    def _release(self, task: TokenTask) -> None:
        shared = self._gives_back(task, back=self._loses is task)
        super()._release(task)
        self.view.free_blocks -= shared

    def _preempt(self, task: TokenTask) -> None:
        self._loses = task
        super()._preempt(task)
        self._loses = None
        cast("CachingTask", task).cache_seen = -1

    def finish(self, task: TokenTask, now: float) -> None:
        # (One that was preempted while its last token was in flight holds nothing.)
        if task in self.tables:
            self.view.free_blocks -= self._gives_back(task, back=False)
        super().finish(task, now)

    # -- what is taken ------------------------------------------------------------------------------------

    def settle(self, batch: TokenBatch) -> float:
        now = super().settle(batch)
        self._catch_up()
        return now

    def _launch(
        self, decode: int, context: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None, now: float
    ) -> None:
        self._served = 0
        super()._launch(decode, context, pieces, chosen, now)
        self._catch_up()

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        """As of `TokenEngine`. What each finds is seen when its turn comes: those before it may bring something into
        the cache, and take something out of it. Who then finds more than it showed computes only the rest; who finds
        less, computes that too, as far as the step has room."""
        view, cache = self.view, self.cache
        shown = [task.pending if task in view.waiting else 0 for task, _ in prefill]
        soon = self._blocks_of_a_step(chosen) if decode else 0
        if soon:
            self._take_served(soon)  # those that decode take theirs first
        tokens = decode * view.limits.tokens_per_decode
        most = view.max_batched_tokens - tokens
        own = getattr(self.worker.policy, "tokens_a_step", None)
        room = most if own is None else min(own - tokens, most)
        chunks = getattr(self.worker.policy, "chunks", False)
        sequences = view.max_sequences - len(view.running)
        pieces: list[Piece] = []
        admitted, less = 0, False
        self.padded = 0
        for (task, count), pending in zip(prefill, shown, strict=True):
            more = 0
            self._check_chunk(task, count, pieces, admitted)
            if task in view.waiting:
                assert isinstance(task, CachingTask)
                if crowded or sequences == admitted:
                    break
                now_pending = task.pending
                if count > max(pending, now_pending):
                    self._no_chunk(task, count)
                if count <= pending < now_pending:
                    count += now_pending - pending
                    less = True
                if less and chunks:
                    count = min(count, room)
                count = min(count, now_pending)
                more = view.padding(now_pending, decode, len(pieces) > admitted)
                if not 0 < count <= most - more or not self._begin(task, count, more, now):
                    break
                admitted += 1
                self.padded += more
            else:
                if task not in view.running:
                    if crowded:
                        break  # it was there until now
                    self._not_there(task)
                if count > most:
                    break
                if not 0 < count <= task.pending:
                    self._no_chunk(task, count)
                self._go_on(task, count)
            room -= count + more
            most -= count + more
            computed = task.base_computed
            pieces.append((task, count, computed - count))
        self._unserve()
        self._known = cache.free
        view.free_blocks = cache.free + soon  # which are counted when they have decoded
        return pieces

    def _check_chunk(self, task: TokenTask, count: int, pieces: Sequence[Piece], admitted: int) -> None:
        view = self.view
        if type(count) is not int or count < 1:
            self._no_chunk(task, count)
        if task in self.bases:
            raise fault(self.worker.policy, f"it prefills {task}, which is decoding at {view.name}")
        if pieces and task in view.running:
            self._not_first(task, pieces, admitted)
        if self.booked and (task in view.waiting or task in view.running):
            self._check(task)

    def _blocks_upto(self, tokens: int) -> int:
        """The blocks of one who computes so many tokens in all with the next step."""
        return -(-tokens // self.size)

    def _takes(self, task: TokenTask, blocks: int) -> None:
        """*task* holds so many blocks from now on."""

    def _begin(self, task: CachingTask, count: int, more: int, now: float) -> bool:
        """Admit *task* with a piece of *count* tokens, and memory for *more* than that, if it lasts."""
        view, cache, size = self.view, self.cache, self.size
        found = cache.found(task)
        keys = cache.keys(task, found // size)
        least = view.watermark + cache.idle(keys)
        away = cache.away(keys)  # which take blocks as new ones do
        new = self._blocks_upto(found + count + more) - len(keys)
        whole = -(-(task.prompt + task.base_generated) // size) - len(keys) if view.whole_prompt else new
        least += away
        if cache.free - max(new, whole) < least:
            return False
        table = self.tables[task] = cache.share(keys)
        cache.take(new)
        self._takes(task, len(keys) + new)
        cache.register(table, task.prompt_content, task.prompt, found + count)
        self.swapped += away
        if task.cached_tokens is None:
            task.cached_tokens, task.cached_on_host = found, away * size
        else:
            task.cached_again += found
        del view.waiting[task]
        view.running[task] = None
        if task.started is None:
            task.started = now
        task.base_computed = found + count
        return True

    def _go_on(self, task: TokenTask, count: int) -> None:
        """*task*, which runs, computes *count* more tokens of its prompt."""
        assert isinstance(task, CachingTask)
        computed, held = task.base_computed, self._blocks_of(task)
        blocks = max(held, self._blocks_upto(computed + count))
        self._take_served(blocks - held)
        self._takes(task, blocks)
        self.cache.register(self.tables[task], task.prompt_content, task.prompt, computed + count)
        task.base_computed = computed + count


class TokenEngineCaching(Caching, TokenEngine):
    """`TokenEngine` with a prefix cache."""


class TokenEngineAheadCaching(Caching, TokenEngineAhead):
    """`TokenEngineAhead` with a prefix cache."""

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self._revoked: tuple[TokenTask, int] | None = None

    def _revoke(self, task: TokenTask) -> None:
        self._revoked = task, self._unknown(task)
        super()._revoke(task)

    def _unknown(self, task: TokenTask) -> int:
        if self._revoked is not None and self._revoked[0] is task:
            unknown, self._revoked = self._revoked[1], None
            return unknown
        # When a decode is decided, the token that it computes may be in flight itself.
        view, joined = self.view, self.joined.get(task)
        batches = [view.in_flight, *view.backlog] if view.in_flight is not None else []
        for flight, batch in zip(self.flights, batches, strict=True):
            gets = task in flight.owed or (flight.tick is not None and joined is not None and flight.tick >= joined)
            if gets and not any(task is piece[0] for piece in cast("TokenBatch", batch).prefill):
                return 1
        return 0
