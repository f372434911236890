"""A Gantt chart of a window of a run: requests that wait and are served, and the batches of each worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from servetwin.core import BadInput

from .document import OUTCOMES, Figure
from .figures import rounded
from .timeline import Batches, Timeline

#: The most requests and the most bars of a worker that a small chart can show.
REQUESTS, BARS = 36, 300
#: Significant digits of times: a window may lie far into a run, and be short.
DIGITS = 9


def window_of(text: str) -> tuple[float, float]:
    """The window that *text* means: ``START:SECONDS``. Raises `BadInput`."""
    start, colon, length = text.partition(":")
    try:
        found = float(start), float(length)
    except ValueError:
        found = (-1.0, -1.0)
    if not colon or not (0 <= found[0] < 1e9 and 0 < found[1] < 1e9):
        raise BadInput(f"{text!r} is no window", where="--window", right="START:SECONDS, as 10:2.5")
    return found


def choose(timeline: Timeline, latencies: Sequence[float]) -> tuple[float, float]:
    """The start and length of a window around the moment in which most requests wait, as long as most requests take
    or as long as a small chart can show."""
    typical = float(np.median(latencies)) if len(latencies) else timeline.end
    length = min(max(2.0 * typical, 1e-3), timeline.end) or 1.0
    edges = timeline.edges(400)
    waiting = sum((level.means(edges) for level in timeline.waiting.values()), np.zeros(400))
    crowd = waiting + sum((level.means(edges) for level in timeline.served.values()), np.zeros(400))
    peak = int(np.argmax(waiting if waiting.max() > 0 else crowd))
    most = max(float(crowd[peak]), 1.0)
    # As many come into the window again as are there already, with each time that one takes.
    length = min(length, max(typical * (REQUESTS / most - 1.0), 0.25 * typical))
    longest = max((_length_of(own, edges[peak]) for own in timeline.batches.values()), default=length)
    length = min(length, longest)
    start = max(min(float(edges[peak]) - length / 3, timeline.end - length), 0.0)
    return start, length


def following(timeline: Timeline, requests: Sequence[Mapping[str, Any]], start: float) -> tuple[float, float]:
    """The window (start, length) from *start* on that has as many requests and batches as a small chart can show."""
    there = sorted(r["arrival"] for r in requests if _end(r) > start)
    stop = there[REQUESTS] if len(there) > REQUESTS else timeline.end
    longest = min((_length_of(own, start) for own in timeline.batches.values()), default=float("inf"))
    return start, max(min(stop - start, longest), 1e-3)


def _length_of(batches: Batches, around: float) -> float:
    """How long `BARS` bars of a worker take, from *around* on."""
    first = int(np.searchsorted(batches.starts, around))
    last = min(first + 4 * BARS, len(batches.ends) - 1)
    if last <= first:
        return float("inf")
    bars = _bars(batches, float(batches.starts[first]), float(batches.ends[last]))
    return float(bars[BARS][1] - bars[0][0]) if len(bars) > BARS else float("inf")


def chart(
    timeline: Timeline, requests: Sequence[Mapping[str, Any]], window: tuple[float, float]
) -> tuple[Figure, str] | None:
    """The chart of the *window* (start, length) of a run and a sentence about it; None if nothing happened in it.

    *requests* are the records of its requests. Of more than `REQUESTS` those that came first in the window are shown.
    """
    start, stop = window[0], window[0] + window[1]
    inside = [r for r in requests if r["arrival"] < stop and _end(r) > start]
    inside.sort(key=lambda r: (r["arrival"], r["id"]))
    shown = inside[:REQUESTS]
    bars = {worker: _bars(own, start, stop) for worker, own in timeline.batches.items()}
    bars = {worker: found for worker, found in bars.items() if found}
    if not shown and not bars:
        return None
    data = [*_request_traces(shown, start, stop), *_batch_traces(bars)]
    low = 0.06 + 0.07 * len(bars)
    height = 150 + 34 * len(bars) + 11 * max(len(shown), 6)
    ids = [f"#{r['id']}" for r in shown]
    layout = {
        "xaxis": {"title": {"text": "time since the run began, s"}, "range": [start, stop], "anchor": "y2"},
        "yaxis": {
            "domain": [min(low, 0.45) + 0.05, 1],
            "title": {"text": "requests"},
            "tickvals": list(range(0, len(shown), max(len(shown) // 6, 1))),
            "ticktext": ids[:: max(len(shown) // 6, 1)],
            "range": [len(shown) - 0.3, -0.7],
        },
        "yaxis2": {"domain": [0, min(low, 0.45)], "automargin": True, "autorange": "reversed", "type": "category"},
        "barmode": "overlay",
        "hovermode": "closest",
        "height": height,
    }
    says = f"{len(shown)} of {len(inside)} requests" if len(inside) > len(shown) else f"{len(shown)} requests"
    return {"data": data, "layout": layout}, f"{says} and the batches from {start:.4g} s to {stop:.4g} s of the run."


def _end(record: Mapping[str, Any]) -> float:
    """When a request ended, or the last that is known of it."""
    known = [record["arrival"], record["finished"], record.get("ended")]
    known += [stay[key] for stay in record["stages"] for key in ("queued", "started", "finished")]
    return max(t for t in known if t is not None)


def _request_traces(shown: Sequence[Mapping[str, Any]], start: float, stop: float) -> list[dict[str, Any]]:
    """A line for each request: thin while it waits, thick in the colour of its outcome while it is served."""
    waits: tuple[list[float | None], list[float | None]] = ([], [])
    serves: dict[str, tuple[list[float | None], list[float | None]]] = {}
    ends: dict[str, tuple[list[float], list[float]]] = {}
    for row, record in enumerate(shown):
        outcome = record["outcome"] or "failed"
        last = _end(record)
        own = serves.setdefault(outcome, ([], []))
        for stay in record["stages"]:
            begun = stay["started"] if stay["started"] is not None else last
            over = stay["finished"] if stay["finished"] is not None else last
            for (x, y), a, b in ((waits, stay["queued"], begun), (own, begun, over)):
                if b > start and a < stop and b > a:
                    x += [max(a, start), min(b, stop), None]
                    y += [row, row, None]
        if start <= last <= stop:
            x_end, y_end = ends.setdefault(outcome, ([], []))
            x_end.append(last)
            y_end.append(row)
    traces = [_line(waits, "waiting", {"color": "#9ca3af", "width": 1.5, "dash": "dot"})]
    for outcome, points in serves.items():
        traces.append(_line(points, outcome, {"color": OUTCOMES[outcome][0], "width": 5}))
    symbols = {"met": "circle", "late": "diamond", "dropped": "x", "failed": "square"}
    for outcome, (x_end, y_end) in ends.items():
        marker = {"symbol": symbols[outcome], "size": 8, "color": OUTCOMES[outcome][0]}
        marker["line"] = {"width": 1, "color": "#ffffff"}
        traces.append(
            {
                "x": rounded(x_end, DIGITS),
                "y": y_end,
                "name": outcome,
                "type": "scatter",
                "mode": "markers",
                "marker": marker,
                "hovertemplate": f"{outcome} at %{{x:.4~f}} s",
            }
        )
    return traces


def _line(points: tuple[Any, Any], name: str, line: dict[str, Any]) -> dict[str, Any]:
    return {
        "x": rounded(points[0], DIGITS),
        "y": points[1],
        "name": name,
        "type": "scatter",
        "mode": "lines",
        "line": line,
        "hovertemplate": f"{name}: %{{x:.4~f}} s",
    }


def _bars(batches: Batches, start: float, stop: float) -> list[tuple[float, float, float]]:
    """The batches of a worker in a window as (start, end, size); iterations of one size that follow each other at
    once are one bar."""
    first = int(np.searchsorted(batches.ends, start, side="right"))
    found: list[list[float]] = []
    for a, b, n in zip(batches.starts[first:], batches.ends[first:], batches.sizes[first:], strict=True):
        if a >= stop:
            break
        if found and found[-1][2] == n and a - found[-1][1] <= 0.1 * (b - a):
            found[-1][1] = b
        else:
            found.append([max(float(a), start), float(b), float(n)])
    return [(a, min(b, stop), n) for a, b, n in found]


def _shade(share: float) -> str:
    """A colour from pale (0) to dark (1), which it is in grey too."""
    ends = ((219, 233, 246), (8, 48, 107))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))


def _batch_traces(bars: Mapping[str, Sequence[tuple[float, float, float]]]) -> list[dict[str, Any]]:
    largest = max((n for own in bars.values() for _, _, n in own), default=1.0)
    return [
        {
            "base": rounded([a for a, _, _ in own], DIGITS),
            "x": rounded([b - a for a, b, _ in own], DIGITS),
            "y": [worker] * len(own),
            "customdata": [int(n) for _, _, n in own],
            "name": worker,
            "type": "bar",
            "orientation": "h",
            "yaxis": "y2",
            "marker": {
                "color": [_shade(n / largest) for _, _, n in own],
                "line": {"color": "#ffffff", "width": 0.5},
            },
            "hovertemplate": "batch of %{customdata}, from %{base:.4~f} s",
        }
        for worker, own in bars.items()
    ]
