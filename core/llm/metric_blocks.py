"""Requests that have generated all their tokens at an LLM stage, many at a time, as columns of numbers.

Where requests decode together a token of each comes out at the end of every step, so the times of all their tokens
are stretches of one list. What `servetwin.core.llm.metrics` finds of one task is found here of a block of them, by
the same operations on the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: So many times of tokens are laid side by side at once; they stay in the processor's cache.
_ROOM = 1 << 15


@dataclass(eq=False)
class TokenBlock:
    """An entry for each request, in the order in which they ended; times in seconds since the run began.

    *sent* is when the client sent it, *arrival* when the engine saw it, *first* and *last* when its first and its
    last token came out. *prompts* is in tokens; *counts* are the tokens that it generated: the first, and from
    ``ends[begins]`` on one at each entry of *ends*. *classes* names the class of each, if any has one.
    """

    sent: np.ndarray
    arrival: np.ndarray
    prompts: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    last: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.sent)

    def by_class(self) -> Iterator[tuple[str, np.ndarray | slice, TokenBlock]]:
        """Each class with the places of its requests in the block, and a block of them alone."""
        if not self.classes:
            yield "", slice(None), self
            return
        each = np.array(self.classes)
        for name in dict.fromkeys(self.classes):
            at = np.flatnonzero(each == name)
            sent, arrival, first, last = self.sent[at], self.arrival[at], self.first[at], self.last[at]
            own = TokenBlock(
                sent, arrival, self.prompts[at], self.counts[at], first, last, self.begins[at], self.ends
            )
            yield name, at, own

    @cached_property
    def tpot(self) -> np.ndarray:
        """Mean seconds between the tokens of each, 0 for a single one."""
        gaps = self.counts - 1
        return np.where(gaps > 0, (self.last - self.first) / np.maximum(gaps, 1), 0.0)

    def portions(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some of the requests at a time: their places in the block, and a row for each with the times of its tokens,
        as long as the longest of them; what lies beyond its own tokens means nothing."""
        order = np.argsort(self.counts, kind="stable")
        lengths = self.counts[order]
        most = int(lengths[-1])
        ends = np.concatenate([[0.0], self.ends, np.zeros(most)])
        begin = 0
        while begin < len(order):
            # They are in order of length, so those that fit beside the first do not differ much.
            width = int(lengths[min(begin + max(1, _ROOM // int(lengths[begin])), len(order)) - 1])
            places = order[begin : begin + max(1, _ROOM // width)]
            width = int(self.counts[places[-1]])
            times = np.lib.stride_tricks.sliding_window_view(ends, width)[self.begins[places]]
            times[:, 0] = self.first[places]
            yield places, times
            begin += len(places)

    def longest_gaps(self) -> np.ndarray:
        """The longest gap between two tokens of each, 0 where there is none."""
        found = np.zeros(len(self))
        for places, times in self.portions():
            if times.shape[1] > 1:
                gaps = times[:, 1:] - times[:, :-1]
                gaps[np.arange(1, times.shape[1]) >= self.counts[places, None]] = 0.0
                found[places] = gaps.max(axis=1)
        return found

    def gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """The gaps between tokens of all, and how many there are of each: a step is one gap of whoever decodes."""
        several = self.counts > 1
        begins, first = self.begins[several], self.first[several]
        if not len(begins):
            return np.zeros(0), np.zeros(0, dtype=int)
        low, after = int(begins.min()), begins + self.counts[several] - 1
        size = int(after.max()) - low + 1
        change = np.bincount(begins + 1 - low, minlength=size) - np.bincount(after - low, minlength=size)
        many = np.cumsum(change)[1 : size - 1]
        steps = self.ends[low + 1 : low + size - 1] - self.ends[low : low + size - 2]
        some = many > 0
        return (
            np.concatenate([self.ends[begins] - first, steps[some]]),
            np.concatenate([np.ones(len(begins), dtype=int), many[some]]),
        )
