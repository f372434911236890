"""A queue of NeuStream's: a heap, as in the artifact, whose equal keys come in the order in which heaps have them."""

from __future__ import annotations

from heapq import heappop, heappush

from servetwin.core import Task


class Entry:
    """A task in a queue. Entries with equal keys do not compare: a heap then leaves them as they come."""

    __slots__ = ("due", "key", "task", "waits")

    def __init__(self, task: Task, key: int, due: float) -> None:
        self.task = task
        self.key = key
        self.due = due  # when its last iteration here must end, so that the rest can still be in time
        self.waits = 0

    def __lt__(self, other: Entry) -> bool:
        return False


Items = list[tuple[int, Entry]]


def tied(queue: Items) -> bool:
    """Whether entries of *queue* have equal keys."""
    return len(queue) > 1 and len({key for key, _ in queue}) < len(queue)


def emptied(queue: Items) -> Items:
    """Empty *queue*: what it gave, in order. (Where keys are not equal, sorting them is quicker.)"""
    many = len(queue)
    if many > 1 and len({key for key, _ in queue}) < many:
        return [heappop(queue) for _ in range(many)]
    popped = sorted(queue) if many > 1 else queue[:]
    queue.clear()
    return popped


def order_ties(*queues: Items) -> None:
    """Order entries of equal keys as emptying the queues and filling them again does."""
    for queue in queues:
        if len(queue) > 1 and tied(queue):
            queue[:] = emptied(queue)


def taken_out(task: Task, *queues: Items) -> None:
    """Take *task* out of the queues, where it is there."""
    for queue in queues:
        kept = [entry for _, entry in queue if entry.task is not task]
        queue.clear()
        for entry in kept:
            heappush(queue, (entry.key, entry))
