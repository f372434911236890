"""A queue of NeuStream's: a heap, as in the artifact, whose equal keys come in the order in which heaps have them."""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import accumulate, pairwise

from servetwin.core import Task
from servetwin.core.slo import slack

#: What keys are less by than all times of admission, if they are to go ahead of them.
FRONT = 1 << 40


class Entry:
    """A task in a queue. *blank* is a number that is neither less than others nor equal to them: entries with equal
    keys then do not compare, and a heap leaves them as they come."""

    __slots__ = ("blank", "due", "key", "task", "waits")

    def __init__(self, task: Task, key: int, due: float) -> None:
        self.task = task
        self.key = key
        self.due = due  # when its last iteration here must end, so that the rest can still be in time
        self.waits = 0
        self.blank = float("nan")  # of its own: Python takes the same object to be equal


#: (key, `Entry.blank`, entry)
Item = tuple[int, float, Entry]
Items = list[Item]


def tied(queue: Items) -> bool:
    """Whether entries of *queue* have equal keys."""
    return len(queue) > 1 and len({key for key, _, _ in queue}) < len(queue)


def merged(queue: Items, back: Items) -> Items:
    """What *queue*, a heap, gives if *back* is put into it and it is emptied."""
    return ordered(queue, back)[0]


def ordered(queue: Items, back: Items) -> tuple[Items, bool]:
    """The same, and whether there are equal keys. (Where there are none, sorting is quicker.)"""
    items = queue + back
    if len(items) < 2:
        return items, False
    if len({key for key, _, _ in items}) < len(items):
        for item in back:
            heappush(queue, item)
        return [heappop(queue) for _ in items], True
    items.sort()
    return items, False


def expired(now: float, step: float, *queues: Items) -> tuple[list[Task], float]:
    """Take out of *queues* what cannot make it any more; gives it, and when somebody else cannot at the earliest.
    A task alone takes *step* seconds an iteration."""
    drop: list[Task] = []
    next_drop, since = math.inf, now + slack(now)  # who ends just when due is late, as there
    for queue in queues:
        kept = []
        for item in queue:
            here = item[2].task.left * step
            if item[2].due - since <= here:
                drop.append(item[2].task)
            else:
                kept.append(item)
                if item[2].due - here < next_drop:
                    next_drop = item[2].due - here
        if len(kept) < len(queue):
            queue[:] = kept
    return drop, next_drop


class Ties:
    """How a queue changes whose entries have equal keys, if it is emptied and filled again and again."""

    def __init__(self) -> None:
        self.known: dict[tuple[tuple[bool, ...], int, int], list[int]] = {}

    def after(self, queue: Items, ahead: int, times: int) -> Items:
        """*queue*, which is in order, after a round: so many are put into it that go *ahead* of all, and
        it is emptied, so many *times*."""
        equal = tuple([a[0] == b[0] for a, b in pairwise(queue)])
        order = self.known.get((equal, ahead, times))
        if order is None:
            if len(self.known) > 4096:
                self.known.clear()
            order = self.known[equal, ahead, times] = _order(equal, ahead, times)
        return [queue[place] for place in order]


def _order(equal: tuple[bool, ...], ahead: int, times: int) -> list[int]:
    """The places that those had who come out then, where each has the key of the next if *equal* says so."""
    keys = accumulate([0, *[not same for same in equal]])
    queue: list[tuple[int, float, int]] = [(key, float("nan"), place) for place, key in enumerate(keys)]
    for place in range(ahead):
        heappush(queue, (place - ahead, float("nan"), -1))
    for _ in range(times):
        queue = [heappop(queue) for _ in range(len(queue))]
    return [place for _, _, place in queue[ahead:]]


def taken_out(task: Task, *queues: Items) -> None:
    """Take *task* out of the queues, where it is there."""
    for queue in queues:
        kept = [item for item in queue if item[2].task is not task]
        queue.clear()
        for item in kept:
            heappush(queue, item)
