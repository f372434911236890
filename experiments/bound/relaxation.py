"""An upper bound of the requests that any schedule of one stage can meet, by a linear program over time slots.

docs/explanation/bound.md proves that whatever a schedule does is a point of this program. In short: time is cut into
slots at requests' releases and deadlines. Of each iteration as much counts for a slot as it lies there in time. A
slot has Y iterations of requests that are met, request i takes z of them (never more than Y), and they last
T >= a Y + b sum(z) for every line a + b n that is nowhere above the times by batch size n. T is at most as long as
the slot, and a request that is met has all its iterations within its window.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .linear_program import Program, Term
from .stage_loads import Numbers, StageLoad

#: Slots of the program at most: fewer are quicker and give a weaker bound.
SLOTS = 350


@dataclass(frozen=True)
class Relaxed:
    """*value*: no schedule meets more. *wanted* is by request how much of it the program's solution serves."""

    value: float
    wanted: Numbers


def lines_below(times: list[float]) -> list[tuple[float, float]]:
    """The lines (constant, slope), of slopes not negative, of the largest convex function of n that is nowhere above
    the *times* of n or more (index 0 unused).

    >>> lines_below([0.0, 2.0, 3.0, 3.5, 6.0])
    [(2.0, 0.0), (1.25, 0.75), (-4.0, 2.5)]
    """
    least = np.minimum.accumulate(np.array(times[:0:-1]))[::-1]  # of n or more
    points = list(zip(range(1, len(times)), least.tolist(), strict=True))
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x1) < (y - y1) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    found = [(hull[0][1], 0.0)]
    for (x0, y0), (x1, y1) in itertools.pairwise(hull):
        slope = (y1 - y0) / (x1 - x0)
        if slope > 0.0:
            found.append((y0 - slope * x0, slope))
    return found


def slot_edges(release: Numbers, due: Numbers, slots: int = SLOTS) -> Numbers:
    """Where slots begin and end: at releases and deadlines, or at so many of them, evenly taken."""
    edges = np.unique(np.concatenate((release, due)))
    if len(edges) > slots + 1:
        edges = edges[np.unique(np.linspace(0, len(edges) - 1, slots + 1).astype(int))]
    return edges


@dataclass(frozen=True)
class Windows:
    """Which requests may run in which slots: parallel lists of *request* and *slot*, and for how many *seconds*."""

    request: NDArray[np.int64]
    slot: NDArray[np.int64]
    seconds: Numbers


def windows(edges: Numbers, release: Numbers, due: Numbers) -> Windows:
    """The overlaps of windows with slots."""
    first = np.maximum(np.searchsorted(edges, release, side="right") - 1, 0)
    last = np.maximum(np.searchsorted(edges, due, side="left"), first + 1)
    counts = np.minimum(last, len(edges) - 1) - first
    request = np.repeat(np.arange(len(release)), counts)
    slot = np.concatenate([np.arange(a, a + n) for a, n in zip(first, counts, strict=True)]).astype(np.int64)
    seconds = np.minimum(edges[slot + 1], due[request]) - np.maximum(edges[slot], release[request])
    return Windows(request, slot, np.maximum(seconds, 0.0))


def relax(load: StageLoad, slots: int = SLOTS, seconds: float = 120.0) -> Relaxed:
    """The bound for the requests of *load*."""
    wanted = np.zeros(len(load.iterations))
    able = np.flatnonzero(load.possible)
    if not len(able):
        return Relaxed(0.0, wanted)
    times, release, due = load.times, load.release[able], load.due[able]
    steps = load.iterations[able]
    edges = slot_edges(release, due, slots)
    length = np.diff(edges)
    spans = windows(edges, release, due)
    limit = len(times.worker) - 1
    program = Program()
    met = program.variables(np.ones(len(able)), gain=1.0)
    fastest = max(times.fastest, 1e-12)
    each = program.variables(np.minimum(spans.seconds / fastest, steps[spans.request].astype(float)))
    every = program.variables(times.count * length / fastest)
    rows, slot = np.arange(len(each)), np.arange(len(length))
    program.at_most(np.zeros(len(each)), (rows, each, 1.0), (rows, every[spans.slot], -1.0))
    program.equal(np.zeros(len(able)), (spans.request, each, 1.0), (np.arange(len(able)), met, -steps))
    program.at_most(np.zeros(len(length)), (spans.slot, each, 1.0), (slot, every, -float(limit)))
    busy = _busy(program, list(times.worker), each, every, spans, times.count * length)
    _with_requests(program, busy, met, edges, release, due + times.leave, times.request, times.count, 0.0)
    if times.device is not None:
        reserve = times.ahead
        device = _busy(program, list(times.device), each, every, spans, None, times.count * length + reserve)
        left = program.variables(np.full(len(edges), reserve), lower=-reserve)
        program.at_most(length, (slot, device, 1.0), (slot, left[1:], -1.0), (slot, left[:-1], 1.0))
        args = (edges, release, due + times.leave, times.request_device, times.count, reserve)
        _with_requests(program, device, met, *args)
    solved = program.solve(seconds)
    wanted[able] = solved.at[met]
    return Relaxed(min(solved.value, float(len(able))), wanted)


def _busy(
    program: Program,
    times: list[float],
    each: NDArray[np.int64],
    every: NDArray[np.int64],
    spans: Windows,
    most: Numbers | None,
    upper: Numbers | None = None,
) -> NDArray[np.int64]:
    """Variables that are at least as long as the iterations of each slot take, and at most *most*."""
    room = most if most is not None else upper
    assert room is not None
    busy = program.variables(room)
    slot = np.arange(len(busy))
    for constant, slope in lines_below(times):
        terms: list[Term] = [(slot, every, constant), (slot, busy, -1.0)]
        if slope:
            terms.append((spans.slot, each, slope))
        program.at_most(np.zeros(len(busy)), *terms)
    return busy


def _with_requests(
    program: Program,
    busy: NDArray[np.int64],
    met: NDArray[np.int64],
    edges: Numbers,
    release: Numbers,
    due: Numbers,
    request: float,
    count: int,
    reserve: float,
) -> None:
    """In windows of many slots there is room for the iterations and for what requests add that are met within."""
    if request <= 0.0:
        return
    total = float((edges[-1] - edges[0]) * count + reserve)
    so_far = program.variables(np.full(len(edges), total))
    slot = np.arange(len(busy))
    program.equal(np.zeros(len(busy)), (slot, so_far[1:], 1.0), (slot, so_far[:-1], -1.0), (slot, busy, -1.0))
    for a, b in _spans_of_slots(len(busy)):
        inside = np.flatnonzero((release >= edges[a]) & (due <= edges[b]))
        if len(inside):
            room = [count * (edges[b] - edges[a]) + 2.0 * reserve]
            program.at_most(room, ([0], so_far[[b]], 1.0), ([0], so_far[[a]], -1.0), (0, met[inside], request))


def _spans_of_slots(slots: int) -> list[tuple[int, int]]:
    """Spans of 8, 16, 32, ... slots that overlap by three quarters, and all."""
    found, size = [], 8
    while size < slots:
        found += [(a, a + size) for a in range(0, slots - size + 1, size // 4)]
        size *= 2
    return [*found, (0, slots)]
