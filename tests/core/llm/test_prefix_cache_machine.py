"""The KV blocks of an engine with a prefix cache, against a plain model: slots in a queue, each with its content.

The cache counts what nobody will look for, and looks for what is found by halving; the model has a slot for every
block and looks at each.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule
from servetwin.core.llm.prefix_cache import Block, Key, PrefixCache, PromptContent

SIZE, BLOCKS = 4, 12


@dataclass(eq=False)
class Asking:
    """A request: what a task tells the cache, the cache's table of it, and the model's slots."""

    prompt: int
    prompt_content: PromptContent | None
    cache_serial: int = 0  # only once it was preempted
    base_generated: int = 0
    cache_seen: int = -1
    cache_known: int = 0
    table: list[Block] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.prompt + self.base_generated

    def keys(self) -> list[Key | None]:
        """What each of its full blocks holds; None: nothing that anybody will look for."""
        named = min(self.prompt, 8 * len(self.prompt_content.ids)) // SIZE if self.prompt_content else 0
        found: list[Key | None] = []
        for number in range(self.tokens // SIZE):
            end = (number + 1) * SIZE
            if self.prompt_content and number < named:
                found.append((self.prompt_content.chain[(end - 1) // 8], end))
            else:
                found.append((self.cache_serial, end, True) if self.cache_serial else None)
        return found


class KvBlocks(RuleBasedStateMachine):
    running, preempted = Bundle("running"), Bundle("preempted")

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(BLOCKS, SIZE)
        self.queue = list(range(BLOCKS))  # who is taken next stands first
        self.content: list[Key | None] = [None] * BLOCKS
        self.born = [0] * BLOCKS
        self.users = [0] * BLOCKS
        self.clock = itertools.count(1)

    def slot_of(self, key: Key | None) -> int | None:
        """That with this content which was computed first."""
        found = [slot for slot in range(BLOCKS) if key is not None and self.content[slot] == key]
        return min(found, key=self.born.__getitem__, default=None)

    def admit(self, one: Asking) -> bool:
        """Give *one* the memory of all its tokens, if there is room."""
        keys, there = one.keys(), []
        for key in keys[: (one.tokens - 1) // SIZE]:  # at least one token is computed
            if (slot := self.slot_of(key)) is None:
                break
            there.append(slot)
        assert self.cache.found(one) == SIZE * len(there)
        shared = self.cache.keys(one, len(there))
        assert shared == keys[: len(there)]
        idle = sum(not self.users[slot] for slot in there)
        assert self.cache.idle(shared) == idle
        new = -(-one.tokens // SIZE) - len(there)
        if new + idle > len(self.queue):
            return False
        one.table = self.cache.share(shared)
        self.cache.take(new)
        for slot in there:
            if not self.users[slot]:
                self.queue.remove(slot)
            self.users[slot] += 1
        taken, self.queue = self.queue[:new], self.queue[new:]
        for slot in taken:
            self.content[slot], self.users[slot] = None, 1
        one.slots = there + taken
        self.cache.register(one.table, one.prompt_content, one.prompt, one.tokens)
        for slot, key in zip(one.slots, keys, strict=False):
            if slot in taken and key is not None and len(key) == 2:  # own ones are written down when it is preempted
                self.content[slot], self.born[slot] = key, next(self.clock)
        return True

    def release(self, one: Asking) -> None:
        """Give all back that *one* has."""
        full, total = one.tokens // SIZE, len(one.slots)
        shared = sum(self.users[slot] > 1 for slot in one.slots)
        assert self.cache.give_back(one.table, unnamed=full - len(one.table), partial=total - full) == shared
        ends = [slot for slot in one.slots[: len(one.table)][::-1] if self.users[slot] == 1]
        self.queue = one.slots[full:] + self.queue + one.slots[len(one.table) : full] + ends
        for slot in one.slots:
            self.users[slot] -= 1

    @rule(
        target=running,
        prompt=st.integers(1, 30),
        ids=st.one_of(st.none(), st.lists(st.sampled_from("ab"), min_size=1, max_size=3)),
    )
    def begin(self, prompt: int, ids: list[str] | None) -> object:
        one = Asking(prompt, PromptContent(ids, 8) if ids else None)
        return one if self.admit(one) else multiple()

    @rule(one=consumes(running))
    def end(self, one: Asking) -> None:
        self.release(one)

    @rule(target=preempted, one=consumes(running), generated=st.integers(0, 9))
    def preempt(self, one: Asking, generated: int) -> Asking:
        """Its blocks keep their content; when it is resumed it has *generated* tokens more to compute."""
        one.cache_serial = one.cache_serial or next(self.clock)
        full = one.tokens // SIZE
        keys = one.keys()
        before = len(one.table)
        self.cache.keep(one.table, one.cache_serial, full)
        for slot, key in zip(one.slots[before:full], keys[before:], strict=True):
            self.content[slot], self.born[slot] = key, next(self.clock)
        self.release(one)
        one.base_generated += generated
        one.cache_seen = -1
        return one

    @rule(target=running, one=consumes(preempted))
    def resume(self, one: Asking) -> object:
        return one if self.admit(one) else multiple()

    @precondition(lambda self: not any(self.users))
    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.content = [None] * BLOCKS

    @invariant()
    def the_line_is_the_queue(self) -> None:
        line: list[Key | None] = []
        for block in self.cache.line:
            line += [block.key] * block.count
        # Of what nobody will look for only the number counts, not which slots.
        assert line == [self.content[slot] for slot in self.queue]
        assert self.cache.free == len(self.queue)

    @invariant()
    def what_can_be_found_is_what_is_there(self) -> None:
        found = {key: len(blocks) for key, blocks in self.cache.cached.items()}
        there = [key for key in self.content if key is not None]
        assert found == {key: there.count(key) for key in there}
        for key, blocks in self.cache.cached.items():
            slots = sorted((s for s in range(BLOCKS) if self.content[s] == key), key=self.born.__getitem__)
            assert [block.refs for block in blocks] == [self.users[slot] for slot in slots]


TestKvBlocks = KvBlocks.TestCase
TestKvBlocks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
