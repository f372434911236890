"""The queues of NeuStream: equal keys come in the order in which heaps have them, also where none is made."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from servetwin.policies.diffusion._queue import Entry, emptied

NOBODY: Any = None


class Alike:
    """Neither less than others nor equal to them, as entries are for the artifact's heaps."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __lt__(self, other: Alike) -> bool:
        return False


def by_heap(queue: list[Entry], back: list[Entry]) -> list[Entry]:
    heap = [(entry.key, Alike(entry)) for entry in queue]
    for entry in back:
        heappush(heap, (entry.key, Alike(entry)))
    return [heappop(heap)[1].entry for _ in range(len(heap))]


@given(st.lists(st.integers(0, 5), max_size=20), st.lists(st.integers(-2, 7), max_size=6), st.integers(1, 2))
def test_what_is_put_in_comes_out_as_of_a_heap(keys: list[int], more: list[int], times: int) -> None:
    queue = [Entry(NOBODY, key, 0.0) for key in sorted(keys)]
    back = [Entry(NOBODY, key, 0.0) for key in more]
    right = by_heap(queue, back)
    if times == 2:
        right = by_heap(right, [])
    assert emptied(queue, back, times) == right


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 5), st.integers(1, 2), st.integers(1, 4))
def test_ties_change_order_as_in_a_heap_that_is_emptied(keys: list[int], ahead: int, times: int, rounds: int) -> None:
    queue = [Entry(NOBODY, key, 0.0) for key in sorted(keys)]
    batch = [Entry(NOBODY, place - ahead, 0.0) for place in range(ahead)]
    found = emptied(queue, batch, times, rounds)
    for _ in range(rounds):
        queue = by_heap(queue, batch)
        if times == 2:
            queue = by_heap(queue, [])
        assert queue[:ahead] == batch
        queue = queue[ahead:]
    assert found == batch + queue
