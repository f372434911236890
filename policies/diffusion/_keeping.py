"""Batches where no request has the time to step aside for another: those that have begun run on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from servetwin.core import Task

#: The part of its slack on arrival that a request must have in hand when another joins it, or it joins others.
IN_HAND = 0.05
#: The largest batch that may count on getting smaller as its requests end.
SMALL = 5

#: Of a request: the iterations that it has left, its number, until when it must end, and itself.
Row = tuple[int, int, float, Task]


def keep_and_join(
    tasks: Sequence[Task],
    begun: Collection[Task],
    ends: Mapping[Task, float],
    seconds: Sequence[float],
    each: float,
    now: float,
) -> list[Task]:
    """All of *tasks* that have *begun*, and of the others, the latest to come first, those that join without harm.

    *ends* says by when each must have ended, *seconds* what an iteration takes by the size of the batch (from 0 on;
    its length bounds the batch), *each* what a request costs beside. One joins if it ends in time itself and nobody
    becomes late by it, with `IN_HAND` of the slack left over. In a batch of more than `SMALL` it must bear the batch
    as it is for all that it has left: whoever ends in a large batch makes it hardly quicker, and is soon replaced.
    """
    rows: list[Row] = []
    for task in tasks:
        slack = ends[task] - (task.admitted or 0.0) - task.iterations * seconds[1]
        rows.append((task.left, task.id, ends[task] - IN_HAND * max(0.0, slack), task))
    rows.sort(key=_order)
    batch = [row for row in rows if row[3] in begun][: len(seconds) - 1]
    timely = _in_time(batch, seconds, each, now)
    for row in sorted([row for row in rows if row[3] not in begun], key=lambda row: -row[1]):
        size = len(batch) + 1
        if size == len(seconds):
            break
        if size > SMALL and now + row[0] * seconds[size] > ends[row[3]]:
            continue
        joined = sorted([*batch, row], key=_order)
        found = _in_time(joined, seconds, each, now)
        if row[3] in found and timely <= found:
            batch, timely = joined, found
    return [row[3] for row in batch]


def _in_time(rows: Sequence[Row], seconds: Sequence[float], each: float, now: float) -> set[Task]:
    """Who of *rows*, in the order in which they end, is in time if they are one batch that is left to itself."""
    found: set[Task] = set()
    over, size = 0, len(rows)
    for left, _, end, task in rows:
        now += (left - over) * seconds[size] + each
        if now <= end:
            found.add(task)
        over, size = left, size - 1
    return found


def _order(row: Row) -> tuple[int, int]:
    return row[0], row[1]
