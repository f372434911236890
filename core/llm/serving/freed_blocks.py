"""Blocks that a preempted request left, and finds again: what vLLM's prefix cache does where no prompts are shared.

Freed blocks keep their content until somebody takes them. They are taken in the order in which they came free, of one
request its last ones first; but those that are not full, and so cannot be found again, before all others. So a
request that lost its memory and comes back still has the beginning of what it had, less what was taken meanwhile,
and computes only the rest anew. No block has a name here: the free ones stand in line as counts, each with who may
want them back, so this costs what preemptions cost and nothing a step.

>>> line = FreedBlocks(10)
>>> line.take(10)
>>> line.leave("a", full=4, other=1)  # the last block was not full, and is of no use to anybody
>>> line.leave(None, full=0, other=3)
>>> line.take(5)  # those three, the one that was not full, and the last of four
>>> line.kept("a")
3
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from ...serving.worker import Loop
from ..batch import Piece, TokenBatch
from ..policy import Chunk
from ..request import TokenTask
from .async_engine import TokenEngineAhead
from .engine import TokenEngine
from .host import LLMWorker

# What the two engines below have in common, for type checkers an engine itself.
if TYPE_CHECKING:
    _Base = TokenEngine
else:
    _Base = object


class FreedBlocks:
    """The free ones of so many *blocks*, in the order in which they will be taken."""

    __slots__ = ("_first", "_line", "_owned")

    def __init__(
        self, blocks: int, line: list[list[int]] | None = None, owned: dict[Hashable, list[int]] | None = None
    ) -> None:
        # Counts, in lists of one so that they can be pointed at.
        self._line: list[list[int]] = [[blocks]] if line is None else line
        self._first = 0
        self._owned: dict[Hashable, list[int]] = {} if owned is None else owned

    def __bool__(self) -> bool:
        """Whether anybody may find something again."""
        return bool(self._owned)

    def copy(self) -> FreedBlocks:
        """The same line, to try something on."""
        twins = {id(count): [count[0]] for count in self._line[self._first :]}
        owned = {who: twins[id(count)] for who, count in self._owned.items() if id(count) in twins}
        return FreedBlocks(0, [*twins.values()], owned)

    def take(self, blocks: int) -> None:
        """So many go to whoever needs them."""
        line = self._line
        while blocks > 0 and self._first < len(line):
            count = line[self._first]
            taken = min(count[0], blocks)
            count[0] -= taken
            blocks -= taken
            if not count[0]:
                self._first += 1
        if self._first > 256:
            del line[: self._first]
            self._first = 0

    def leave(self, who: Hashable | None, *, full: int, other: int) -> None:
        """*full* blocks of *who* (None: nobody wants them back) come free, to be taken after all others; and *other*
        ones, which are of no use to anybody, to be taken next."""
        if other and self._first:
            self._first -= 1
            self._line[self._first] = [other]
        elif other:
            self._line.insert(0, [other])
        if full:
            count = [full]
            self._line.append(count)
            if who is not None:
                self._owned[who] = count

    def kept(self, who: Hashable) -> int:
        """How many blocks *who* would find again."""
        count = self._owned.get(who)
        return count[0] if count is not None else 0

    def claim(self, who: Hashable, blocks: int) -> None:
        """*who* takes so many of its own back; those that are left are nobody's."""
        count = self._owned.pop(who, None)
        if count is not None:
            count[0] -= blocks

    def owners(self) -> Iterable[Hashable]:
        """Those who may find something again."""
        return tuple(self._owned)

    def forget(self, who: Hashable) -> None:
        """Nobody wants the blocks of *who* back."""
        self._owned.pop(who, None)


class _Keeping(_Base):
    """An engine whose preempted requests find again what nobody took. While such a request waits, its *computed* says
    how many tokens that is just now."""

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self.freed = FreedBlocks(self.view.blocks)
        self._known = self.view.free_blocks  # the free blocks that *freed* knows of
        self._loses: TokenTask | None = None  # who is being preempted

    def _catch_up(self) -> None:
        """What was taken since, was taken off the line: between two calls blocks only go."""
        free = self.view.free_blocks
        if free < self._known:
            self.freed.take(self._known - free)
            self._known = free

    def _comes_free(self, task: TokenTask, *, back: bool) -> None:
        """The blocks of *task* come free now; with *back* it may want them again."""
        self._catch_up()
        computed = task.computed
        blocks, full = -(-computed // self.size), self._known_tokens(task) // self.size
        self.freed.leave(task if back else None, full=full, other=blocks - full)
        self._known += blocks

    def _known_tokens(self, task: TokenTask) -> int:
        """The tokens of *task* whose KV can be found again: those that were known when it got memory last."""
        return task.computed

    def _tell(self, line: FreedBlocks, task: TokenTask) -> int:
        """Let *task*, which waits, say what it would find again in *line*; gives the tokens that it has less now."""
        most = task.prompt + task.base_generated - 1
        found = min(line.kept(task), most // self.size) * self.size
        lost = task.base_computed - found
        if lost:
            task.base_computed = found
            self.keep_books(task)
        return lost

    def _look_again(self) -> None:
        """Let all that wait say what they would find again."""
        if self.freed:
            self._catch_up()
            waiting = self.view.waiting
            for task in self.freed.owners():
                if isinstance(task, TokenTask) and task in waiting:
                    self._tell(self.freed, task)
                    if not task.base_computed:
                        self.freed.forget(task)
                else:
                    self.freed.forget(task)

    # -- what comes free ----------------------------------------------------------------------------------

    def _release(self, task: TokenTask) -> None:
        self._comes_free(task, back=self._loses is task)
        super()._release(task)

    def _preempt(self, task: TokenTask) -> None:
        self._loses = task
        super()._preempt(task)
        self._loses = None
        self._look_again()

    def finish(self, task: TokenTask, now: float) -> None:
        if task in self.view.waiting:  # preempted while its last token was in flight: it holds nothing
            self.freed.forget(task)
            task.base_computed = 0
            self.keep_books(task)
        self._comes_free(task, back=False)
        super().finish(task, now)

    # -- what is taken ------------------------------------------------------------------------------------

    def settle(self, batch: TokenBatch) -> float:
        now = super().settle(batch)
        self._look_again()
        return now

    def _launch(
        self, decode: int, context: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None, now: float
    ) -> None:
        super()._launch(decode, context, pieces, chosen, now)
        self._look_again()

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        if not self.freed:
            return super()._admit(prefill, chosen, decode, crowded, now)
        self._catch_up()
        # Those that run take theirs first.
        soon = self._blocks_of_a_step(chosen) if decode else 0
        self.freed.take(soon)
        own = getattr(self.worker.policy, "tokens_a_step", None) or self.view.max_batched_tokens
        room = min(own, self.view.max_batched_tokens) - decode
        pieces = super()._admit(self._as_found(prefill, room), chosen, decode, crowded, now)
        for task, count, computed in pieces:
            self._gets(self.freed, task, count, computed, task in self.freed.owners())
        self._known = self.view.free_blocks - soon
        self.swapped = 0  # nothing moves: it is still there
        return pieces

    def _as_found(self, prefill: Sequence[Chunk], room: int) -> list[Chunk]:
        """*prefill* by what each finds when its turn comes, since those before it may take of its blocks."""
        line, found, more = self.freed.copy(), [], 0
        chunks = getattr(self.worker.policy, "chunks", False)
        for task, count in prefill:
            if not isinstance(count, int) or task.ticks is not None:
                return [*prefill]  # which the engine refuses
            owns = task in line.owners() and task in self.view.waiting
            lost = self._tell(line, task) if owns else 0
            more += lost
            now = min(count + lost, room) if more and chunks else count + lost
            if not 0 < now <= room:
                break
            room -= now
            self._gets(line, task, now, task.base_computed, owns)
            found.append((task, now))
        return found

    def _gets(self, line: FreedBlocks, task: TokenTask, count: int, computed: int, owns: bool) -> None:
        """*task* takes off *line* what *count* tokens after *computed* need; what it *owns* it takes first."""
        size = self.size
        if owns:
            line.claim(task, computed // size)
        line.take(-(-(computed + count) // size) + -computed // size)


class TokenEngineKeeping(_Keeping, TokenEngine):
    """`TokenEngine` whose preempted requests find again what nobody took of theirs."""


class TokenEngineAheadKeeping(_Keeping, TokenEngineAhead):
    """`TokenEngineAhead`, likewise."""

    def _known_tokens(self, task: TokenTask) -> int:
        # When a decode is decided, the token that it computes is in flight itself.
        decoded = self.joined[task] < self.ticks.count if task in self.joined else task.generated > 1
        return task.computed - decoded
