"""KV blocks in host memory, behind an engine's prefix cache: what was computed is found again there after the device
has taken its block for something else.

As vLLM's offloading of KV (0.27: ``v1/kv_offload/cpu``, policy "lru"): each full block is copied to the host when it
is computed, the least recently used goes first, and those that a request finds count as used, its last block first.

>>> host = HostTier(3)
>>> host.put(["a", "b", "c"])
False
>>> host.touch(["a", "b"])  # of one prompt: now c is the oldest, then b
>>> host.put(["d"]), [*host.kept]
(True, ['b', 'a', 'd'])
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence


class HostTier:
    """Room for so many *blocks*. *kept* are those whose content somebody may look for, least recently used first;
    runs of others, which only take room, stand among them as numbers of blocks."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.used = 0
        self.kept: OrderedDict[Hashable, int] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self.kept

    def put(self, keys: Iterable[Hashable]) -> bool:
        """Copy the blocks of *keys* here, but for those that are here; whether others had to go."""
        new = [key for key in keys if key not in self.kept]
        for key in new:
            self.kept[key] = 1
        self.used += len(new)
        return self._drop()

    def put_unnamed(self, blocks: int) -> bool:
        """Copy so many *blocks* here for which nobody will look; whether others had to go."""
        if blocks:
            self.kept[object()] = blocks
            self.used += blocks
        return self._drop()

    def touch(self, keys: Sequence[Hashable]) -> None:
        """A request has found *keys*, in the order of its tokens."""
        for key in reversed(keys):
            if key in self.kept:
                self.kept.move_to_end(key)

    def clear(self) -> None:
        """It holds nothing any more."""
        self.kept.clear()
        self.used = 0

    def _drop(self) -> bool:
        dropped = False
        while self.used > self.blocks:
            key, count = next(iter(self.kept.items()))
            less = min(count, self.used - self.blocks)
            self.used -= less
            dropped = True
            if less == count:
                del self.kept[key]
            else:
                self.kept[key] = count - less
        return dropped
