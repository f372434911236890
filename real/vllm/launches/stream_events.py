"""What launches take on a GPU, by events on its stream before and after each."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan
from typing import Any

#: Pairs of events that are made beforehand: making them stalls the process now and then.
EVENTS = 6000


class StreamEvents:
    """Events on the stream of this process's GPU. Without one, or not *wanted*, a mark is None and times are nan."""

    def __init__(self, *, wanted: bool = True) -> None:
        import torch

        self._cuda: Any = torch.cuda if wanted and torch.cuda.is_available() else None
        self._spare: list[Any] = []
        self._last: Any = None  # after the launch before
        if self._cuda is not None:
            self._spare = [self._cuda.Event(enable_timing=True) for _ in range(2 * EVENTS)]
            for event in self._spare:
                event.record()
            self._cuda.synchronize()

    def mark(self) -> Any:
        """An event after what was launched so far."""
        if self._cuda is None:
            return None
        event = self._spare.pop() if self._spare else self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def times(self, launches: Sequence[tuple[Any, Any]]) -> list[tuple[float, float]]:
        """Of *launches*, the marks before and after each, in their order and those since the last call: milliseconds
        from when the one before was over, or it was begun if that was later, and how long the GPU had nothing to do
        before. Waits until all are over, and takes the marks back."""
        if self._cuda is None:
            return [(nan, nan)] * len(launches)
        self._cuda.synchronize()
        found = []
        for before, after in launches:
            own = before.elapsed_time(after)
            since = self._last.elapsed_time(after) if self._last is not None else inf
            gap = self._last.elapsed_time(before) if self._last is not None else inf
            found.append((min(own, since), gap))
            self._spare += [before] if self._last is None else [before, self._last]
            self._last = after
        return found
