"""The prefix cache of an LLM engine: which KV blocks hold what, who shares them, and which is taken next.

As vLLM's (V1: ``vllm/v1/core/block_pool.py``, ``single_type_kv_cache_manager.py``). Full blocks are found again by
their content, which is all tokens up to their end. A block in use may be shared by any number of requests. What
nobody uses any more keeps its content and stands in line until it is taken for something else: what came free first
is taken first, of one request its last block first, and blocks that cannot be found again, because they are not full,
before all others. Blocks of the same content are not merged: who computes what is there already keeps its own.

Only what others may find is written down block by block: the prompts' tokens that are said to be shared, all of a
request that was preempted, and all of one in a session, whose next turn begins with it: what that generated when it
has ended, since the next turn comes later than that. Everything else is counted.

>>> cache = PrefixCache(10, 16)
>>> a = PromptContent(("system",), 40)  # the first 40 tokens of both prompts are the same
>>> cache.take(3)  # for a prompt of 48 tokens
>>> table = []
>>> cache.register(table, a, prompt=48, upto=48)
>>> [key[1] for key in cache.cached]  # the third block is not shared: its last 8 tokens may be others
[16, 32]
>>> cache.free, cache.give_back(table, unnamed=0, partial=1), cache.free
(7, 0, 10)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import accumulate, takewhile
from typing import Protocol

from .host_tier import HostTier

#: The content of a full block: what stands for all tokens up to its end, and where it ends. (With a third entry, of
#: one request only.)
Key = tuple[Hashable, ...]


#: No session has that many.
MOST_TOKENS = 1 << 40


class Looking(Protocol):
    """What is asked of one who may find something: a `servetwin.core.llm.request.CachingTask`."""

    prompt: int
    base_generated: int
    prompt_content: PromptContent | None
    cache_serial: int
    cache_seen: int
    cache_known: int


class PromptContent:
    """What the tokens of a prompt are, as far as others may have the same.

    *ids* name the content of *size* tokens each, from the first on: two prompts whose first k ids are the same begin
    with the same k * *size* tokens (or with as many as the shorter one has). Nobody else has what comes after them.
    """

    __slots__ = ("_keys", "_of", "chain", "ids", "size")

    answers = False

    @property
    def begins(self) -> PromptContent | None:
        """What is known of it before anything has been answered."""
        return self

    def __init__(self, ids: Sequence[Hashable], size: int) -> None:
        self.ids, self.size = tuple(ids), size
        # What stands for all up to and including each of them; of one (the usual system prompt) itself.
        self.chain: tuple[Hashable, ...] = tuple(accumulate(self.ids, lambda before, one: hash((before, one))))

        self._keys: list[Key] = []  # of the first blocks of *_of* tokens each; many prompts may have this content
        self._of = 0

    def tokens(self, prompt: int, computed: int | None = None) -> int:
        """How many have a name of the first *computed* tokens (None: of all of the prompt) of a request with a prompt
        of *prompt* tokens."""
        known = prompt if computed is None or computed > prompt else computed
        return min(known, len(self.ids) * self.size)

    def key(self, end: int) -> Key:
        """What the block that ends with the *end*-th token holds, which must have a name."""
        return self.chain[(end - 1) // self.size], end

    def keys(self, size: int, count: int) -> list[Key]:
        """What the first *count* blocks of *size* tokens hold."""
        if self._of != size:
            self._keys, self._of = [], size
        known = self._keys
        if len(known) < count:
            known += [self.key(end * size) for end in range(len(known) + 1, count + 1)]
        return known[:count]

    def __repr__(self) -> str:
        return f"<PromptContent: {len(self.ids)} x {self.size} tokens>"


class SessionContent(PromptContent):
    """What was said in session number *session* so far, prompts and answers, for all of its turns: the prompt of each
    begins with that of the turn before, and its answer. *begins* is what the first prompt begins with (None: with
    nothing that others have). Its one name is the session's, for as many tokens as there will be."""

    __slots__ = ("_begins",)

    #: Whether what is generated has a name too, so that who comes later may find it.
    answers = True

    def __init__(self, session: int, begins: PromptContent | None = None) -> None:
        super().__init__((("session", session),), MOST_TOKENS)
        self._begins = begins

    @property
    def begins(self) -> PromptContent | None:
        return self._begins

    def tokens(self, prompt: int, computed: int | None = None) -> int:
        return prompt if computed is None else computed

    def key(self, end: int) -> Key:
        begins = self._begins
        if begins is not None and end <= len(begins.ids) * begins.size:
            return begins.key(end)
        return self.chain[0], end

    def __repr__(self) -> str:
        return f"<SessionContent: {self.ids[0]}>"


class AdapterContent(PromptContent):
    """*content* as a model computes it with an *adapter*: its keys and values are those of no other (vLLM hashes the
    adapter's name with each block's tokens)."""

    __slots__ = ("adapter", "answers", "content")

    def __init__(self, content: PromptContent, adapter: str) -> None:
        super().__init__(content.ids, content.size)
        self.content, self.adapter, self.answers = content, adapter, content.answers

    def tokens(self, prompt: int, computed: int | None = None) -> int:
        return self.content.tokens(prompt, computed)

    def key(self, end: int) -> Key:
        return (self.adapter, self.content.key(end)[0]), end


class Block:
    """One block with a content, or (*key* None) so many in line of which nothing can be found again."""

    __slots__ = ("count", "key", "refs")

    def __init__(self, key: Key | None, refs: int = 0, count: int = 1) -> None:
        self.key, self.refs, self.count = key, refs, count


class PrefixCache:
    """The *blocks* of an engine, of *size* tokens each. *free* of them nobody uses; *cached* are the blocks by their
    content, those first that were computed first."""

    def __init__(self, blocks: int, size: int, host: HostTier | None = None) -> None:
        self.size, self.host = size, host
        self.free = blocks
        self.line: OrderedDict[Block, None] = OrderedDict({Block(None, count=blocks): None})
        self.cached: dict[Key, list[Block]] = {}
        self.anew = 0  # blocks of what is found, its last, that are computed anew all the same
        self.version = 0  # grows whenever something can be found that could not, or the other way round
        self.has: Callable[[Key], bool] = self.cached.__contains__
        if host is not None:
            self.has = lambda key: key in self.cached or key in host

    def clear(self) -> None:
        """Nothing is in use, and nothing can be found any more, in host memory neither."""
        self.line = OrderedDict({Block(None, count=self.free): None})
        self.cached.clear()
        if self.host is not None:
            self.host.clear()
        self.version += 1

    # -- what can be found ------------------------------------------------------------------------------

    def found(self, task: Looking) -> int:
        """How many tokens *task*, which waits, would find just now: those of full blocks, and at least one less than
        are known, since the last is computed anew to give the next one."""
        if task.cache_seen != self.version:
            task.cache_seen, task.cache_known = self.version, self.hits(task, self.has)
        return task.cache_known * self.size

    def hits(self, task: Looking, has: Callable[[Key], bool]) -> int:
        """How many full blocks *task* finds, and need not compute, if *has* says which contents there are."""
        return max(0, self._there(task, has) - self.anew)

    def _there(self, task: Looking, has: Callable[[Key], bool]) -> int:
        size, content, serial = self.size, task.prompt_content, task.cache_serial
        known = task.prompt + task.base_generated
        most = (known - 1) // size
        named = min(content.tokens(task.prompt, known) // size, most) if content is not None else 0
        if content is not None and named:
            begun = self.begun(content, named, has)
            if begun < named:
                return begun
        if not serial or most == named:
            return named
        own = range(named, most)
        if self.host is not None:
            return named + _begins(has((serial, (i + 1) * size, True)) for i in own)
        return named + bisect_left(own, True, key=lambda i: not has((serial, (i + 1) * size, True)))

    def begun(self, content: PromptContent, most: int, has: Callable[[Key], bool]) -> int:
        """How many of the first *most* full blocks of *content* are found if *has* says which contents there are."""
        size = self.size
        if self.host is not None:
            return _begins(map(has, content.keys(size, most)))
        # A block is taken before the one that stands for its beginning, so what is found has no holes.
        if not most or not has(content.key(size)):
            return 0
        if has(content.key(most * size)):
            return most
        return bisect_left(range(most), True, key=lambda i: not has(content.key((i + 1) * size)))

    def keys(self, task: Looking, count: int) -> list[Key]:
        """The contents of the first *count* blocks of *task*."""
        size, content, serial = self.size, task.prompt_content, task.cache_serial
        known = task.prompt + task.base_generated
        named = min(count, content.tokens(task.prompt, known) // size) if content is not None else 0
        own: list[Key] = [(serial, end * size, True) for end in range(named + 1, count + 1)]
        if content is None or not named:
            return own
        return content.keys(size, named) + own if own else content.keys(size, named)

    def kept(self, task: Looking, begin: int, upto: int) -> Sequence[Key]:
        """The contents that can be found once *task* has memory for its first *upto* tokens: of its blocks from
        number *begin* on those that are full then, and that others may want."""
        content = task.prompt_content
        if content is None:
            return ()
        full = content.tokens(task.prompt, upto) // self.size
        return content.keys(self.size, full)[begin:] if full > begin else ()

    def idle(self, keys: Sequence[Key]) -> int:
        """How many of the blocks that would be found by *keys* nobody uses: taking them makes fewer free."""
        cached = self.cached
        if self.host is not None:
            keys = [key for key in keys if key in cached]
        return sum([not cached[key][0].refs for key in keys])

    def away(self, keys: Sequence[Key]) -> int:
        """How many of the blocks that would be found by *keys* are in host memory alone, so that they need a block
        here."""
        return 0 if self.host is None else sum([key not in self.cached for key in keys])

    # -- what is taken and given back ---------------------------------------------------------------------

    def take(self, blocks: int) -> None:
        """So many go to whoever needs them; what was in them is lost."""
        line = self.line
        self.free -= blocks
        while blocks > 0:
            first = next(iter(line))
            if first.key is None:
                taken = min(first.count, blocks)
                first.count -= taken
                blocks -= taken
                if not first.count:
                    del line[first]
            else:
                del line[first]
                self._forget(first)
                blocks -= 1

    def share(self, keys: Sequence[Key]) -> list[Block]:
        """The blocks of *keys*, all of which there are, for one more user; those in host memory alone are brought
        here."""
        away: dict[Key, None] = {}
        if self.host is not None:
            away = {key: None for key in keys if key not in self.cached}
            self.host.touch(keys)
        found = []
        for key in keys:
            if away and key in away:
                continue
            block = self.cached[key][0]
            if not block.refs:
                del self.line[block]
                self.free -= 1
            block.refs += 1
            found.append(block)
        if not away:
            return found
        self.take(len(away))
        here = dict(zip([key for key in keys if key not in away], found, strict=True))
        return [here[key] if key in here else self._add(key) for key in keys]

    def register(self, table: list[Block], content: PromptContent | None, prompt: int, upto: int) -> None:
        """A request that holds *table* has got memory for its first *upto* tokens: those blocks of its prompt that
        are full then, and that others may want, can be found from now on, and are added to *table*."""
        if content is not None:
            size = self.size
            full = content.tokens(prompt, upto) // size
            if full > len(table):
                self._computed(new := content.keys(size, full)[len(table) :])
                table += map(self._add, new)

    def keep(self, table: list[Block], serial: int, full: int) -> None:
        """The *full* first blocks of a preempted request can be found again, by it alone as far as they are not in
        *table* yet."""
        new: list[Key] = [(serial, end * self.size, True) for end in range(len(table) + 1, full + 1)]
        self._computed(new)
        table += map(self._add, new)

    def _computed(self, keys: Sequence[Key], unnamed: int = 0) -> None:
        """Blocks with these contents have been computed, and so many for which nobody will look."""
        host = self.host
        if host is not None and (host.put(keys) | host.put_unnamed(unnamed)):
            self.version += 1

    def give_back(self, table: Sequence[Block], *, unnamed: int, partial: int) -> int:
        """A request gives back *table*, *unnamed* full blocks after it which nobody will look for, and *partial* ones
        that are not full. Gives how many of all these are still in use by others."""
        line, shared = self.line, 0
        self._computed((), unnamed)
        if partial:
            first = next(iter(line), None)
            if first is not None and first.key is None:
                first.count += partial
            else:
                line[front := Block(None, count=partial)] = None
                line.move_to_end(front, last=False)
        if unnamed:
            last = next(reversed(line), None)
            if last is not None and last.key is None:
                last.count += unnamed
            else:
                line[Block(None, count=unnamed)] = None
        for block in reversed(table):
            block.refs -= 1
            if block.refs:
                shared += 1
            else:
                line[block] = None
        self.free += partial + unnamed + len(table) - shared
        return shared

    def _add(self, key: Key) -> Block:
        block = Block(key, refs=1)
        copies = self.cached.get(key)
        if copies is None:
            self.cached[key] = [block]
            self.version += 1
        else:
            copies.append(block)
        return block

    def _forget(self, block: Block) -> None:
        assert block.key is not None
        copies = self.cached[block.key]
        if len(copies) == 1:
            del self.cached[block.key]
            self.version += 1
        else:
            copies.remove(block)


def _begins(there: Iterable[bool]) -> int:
    """How many of *there* are true before the first that is not."""
    return sum(1 for _ in takewhile(bool, there))


class Trial:
    """What becomes of *cache* if some are admitted one after the other, without doing it."""

    def __init__(self, cache: PrefixCache) -> None:
        self.cache, self.free = cache, cache.free
        self._line: Iterator[Block] = iter(cache.line)
        self._run = 0  # blocks left of those without content that the line has come to
        self._used: set[Block] = set()  # idle before, and not any more
        self._gone: set[Block] = set()
        self._new: set[Key] = set()

    def _copy(self, key: Key) -> Block | None:
        copies = self.cache.cached.get(key)
        if copies is None or not self._gone:
            return copies[0] if copies else None
        return next((block for block in copies if block not in self._gone), None)

    def _has(self, key: Key) -> bool:
        host = self.cache.host
        return key in self._new or self._copy(key) is not None or (host is not None and key in host)

    def away(self, keys: Sequence[Key]) -> int:
        """As `PrefixCache.away`, by now."""
        if self.cache.host is None:
            return 0
        return sum([key not in self._new and self._copy(key) is None for key in keys])

    def found(self, task: Looking) -> int:
        """As `PrefixCache.found`, by now."""
        if self._gone or self._new:
            return self.cache.hits(task, self._has) * self.cache.size
        return self.cache.found(task)

    def idle(self, keys: Sequence[Key]) -> list[Block]:
        """Those of the blocks that would be found by *keys* which nobody uses by now."""
        cached, used = self.cache.cached, self._used
        anew = self._gone or self._new or self.cache.host is not None
        blocks = map(self._copy, keys) if anew else [cached[key][0] for key in keys]
        return [block for block in blocks if block is not None and not block.refs and block not in used]

    def admit(self, task: Looking, idle: Sequence[Block], begin: int, new: int, upto: int) -> None:
        """*task* uses the *idle* blocks that it finds and takes *new* ones; its full blocks from number *begin* on,
        up to *upto* tokens, can be found then."""
        if idle:
            self._used.update(idle)
            self.free -= len(idle)
        self.take(new)
        self._new.update(self.cache.kept(task, begin, upto))

    def take(self, blocks: int) -> None:
        """As `PrefixCache.take`."""
        self.free -= blocks
        while blocks > 0:
            if not self._run:
                block = next(self._line, None)
                if block is None:
                    return
                if block.key is not None:
                    if block not in self._used:
                        self._gone.add(block)
                        blocks -= 1
                    continue
                self._run = block.count
            taken = min(self._run, blocks)
            self._run -= taken
            blocks -= taken
