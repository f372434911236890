"""A queue of NeuStream's: a heap, as in the artifact, whose equal keys come in the order in which heaps have them."""

from __future__ import annotations

import math
from heapq import heappop, heappush

from servetwin.core import Task
from servetwin.core.slo import slack

#: What keys are less by than all times of admission, if they are to go ahead of them.
FRONT = 1 << 40


class Entry:
    """A task in a queue, which goes by *key*; *waits* are the rounds that it has waited, *due* is when its last
    iteration here must end, so that the rest can still be in time. *blank* is a number that is neither less than
    others nor equal to them: equal keys with these beside them do not compare; a heap leaves them as they come."""

    __slots__ = ("blank", "due", "key", "task", "waits")

    def __init__(self, task: Task, key: int, due: float) -> None:
        self.task = task
        self.key = key
        self.due = due
        self.waits = 0
        self.blank = float("nan")  # of its own: Python takes the same object to be equal


Entries = list[Entry]


def emptied(queue: Entries, back: Entries, times: int = 1, rounds: int = 1) -> Entries:
    """What *queue*, which is in order, gives if *back* is put into it and it is emptied, so many *times*; after so
    many *rounds* of that, between which those of *back*, then ahead of all others, are put in anew."""
    entries = back + queue
    if len({entry.key for entry in entries}) == len(entries):
        entries.sort(key=lambda entry: entry.key)
        return entries
    items = [(entry.key, entry.blank, place) for place, entry in enumerate(entries)]
    heap = items[len(back) :]
    for item in items[: len(back)]:
        heappush(heap, item)
    for _ in range(times):
        heap = [*map(heappop, [heap] * len(items))]
    for _ in range(rounds):
        entries = [entries[place] for _, _, place in heap]
    return entries


def strict(queue: Entries) -> bool:
    """Whether each key of *queue* is less than the next."""
    keys = [entry.key for entry in queue]
    return keys == sorted(set(keys))


def expired(now: float, step: float, *queues: Entries) -> tuple[list[Task], float]:
    """Take out of *queues* what cannot make it any more; gives it, and when somebody else cannot at the earliest.
    A task alone takes *step* seconds an iteration."""
    drop: list[Task] = []
    next_drop, since = math.inf, now + slack(now)  # who ends just when due is late, as there
    for queue in queues:
        kept = []
        for entry in queue:
            here = entry.task.left * step
            if entry.due - since <= here:
                drop.append(entry.task)
            else:
                kept.append(entry)
                if entry.due - here < next_drop:
                    next_drop = entry.due - here
        if len(kept) < len(queue):
            queue[:] = kept
    return drop, next_drop
