"""The parts of a visit to a worker with one batch in flight, or to a pool of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from .alone import StageAlone
from .causes import Cause, Part, Ran
from .visits import Visit


def batch_time(
    visit: Visit,
    index: int,
    ran: Sequence[Ran],
    *,
    intake: Literal["before", "after"] = "before",
    simulated: bool,
    alone: StageAlone | None,
) -> Iterator[Part]:
    """The parts of *visit*, number *index* of its request, to a worker that ran *ran*.

    *intake* says whether the worker takes requests in before it decides, or after it has begun the next batch.
    """
    now, done = visit.came, 0
    idle = Cause.HELD if simulated else Cause.HOST
    for one in ran:
        if one.end <= now or one.start >= visit.until:
            continue
        if one.start > now:
            yield Part(index, idle, now, one.start, done=done)
            now = one.start
        end = min(one.end, visit.until)
        if visit.request in one.requests and visit.started is not None and one.start >= visit.started:
            count = one.iterations if alone is None else min(one.iterations, alone.iterations - done)
            whole = alone is not None and end == one.end
            seconds = alone.ran(done, count) if whole and alone is not None else None
            done += count if end == one.end else 0
            yield Part(index, Cause.ALONE, now, end, one, True, seconds, done)
        else:
            yield Part(index, _wait(visit, one, intake), now, end, one, done=done)
        now = end
    if now < visit.until:
        yield Part(index, idle, now, visit.until, done=done)


def in_turn(visit: Visit, ran: Sequence[Ran]) -> list[Ran]:
    """*ran* by a worker that runs several batches at once, as *visit* saw it: its own batches, and between them what
    others ran meanwhile, cut to the time in between."""
    own = [r for r in ran if visit.request in r.requests]
    there = [r for r in ran if r.start < visit.until and r.end > visit.came]
    others = [r for r in there if visit.request not in r.requests]
    found: list[Ran] = []
    since = visit.came
    for one in (*own, None):
        until = visit.until if one is None else one.start
        for other in others:
            if other.start < until and other.end > since:
                # One that began before the request had come stays so: that is why it waited for it.
                start = other.start if since == visit.came else max(other.start, since)
                found.append(replace(other, start=start, end=min(other.end, until)))
        if one is not None:
            found.append(one)
            since = one.end
    return found


def _wait(visit: Visit, one: Ran, intake: str) -> Cause:
    """Why it was not in *one*."""
    if visit.started is not None and one.start >= visit.started:
        return Cause.PREEMPTED
    if one.start < visit.came:
        return Cause.IN_FRONT
    admitted = visit.admitted
    if admitted is None or one.start < admitted or (intake == "after" and one.start == admitted):
        return Cause.JOINED_LATE
    return Cause.QUEUE


def pool_time(visit: Visit, index: int, ran: Sequence[Ran], alone: StageAlone | None) -> Iterator[Part]:
    """The parts of *visit* to a pool, whose threads ran *ran*: it waits for a free thread, then its call runs."""
    began = min(visit.started if visit.started is not None else visit.until, visit.until)
    own = [r for r in ran if visit.request in r.requests and r.start >= began]
    if began > visit.came:
        others = [r for r in ran if r.end > visit.came and r.start < began and visit.request not in r.requests]
        number = others[0].batch if others else 0
        names = tuple(dict.fromkeys(n for r in others for n in r.requests))
        yield Part(index, Cause.QUEUE, visit.came, began, Ran(number, visit.came, began, names))
    if visit.until > began:
        seconds = alone.ran(0, 1) if alone is not None and visit.finished else None
        yield Part(
            index, Cause.ALONE, began, visit.until, own[0] if own else None, True, seconds, int(visit.finished)
        )
