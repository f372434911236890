"""The figures of a report, as mappings for Plotly: lines with intervals, distributions, levels over time, scatters.

What they have in common (fonts, grids, margins) is in the page's script; here stands what differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from .document import OUTCOMES, Figure, Styles

#: The most points of a distribution.
POINTS = 300
#: More bands than these lie over each other as one grey: intervals are bars then.
BANDS = 4
#: Up to so many bins in a row, with none beside them, are too short for a line: each has a mark.
SHORT = 3


@dataclass(frozen=True)
class Series:
    """Points under a *name*; *low* and *high* are the ends of an interval at each. *marks* are points without a line,
    filled: what was measured."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    marks: bool = False


def lines(
    series: Sequence[Series],
    styles: Styles,
    *,
    x: str,
    y: str,
    share: bool = False,
    unit: str = "",
    ticks: bool = True,
) -> Figure:
    """*series* over an axis called *x*; with *share* the values are shares of 1, shown in percent. *ticks* puts the
    axis' ticks where points are, where these are few."""
    spread = [one for one in series if one.low is not None and one.high is not None]
    bands = len(spread) <= BANDS
    data: list[dict[str, Any]] = [_band(one, styles.of(one.name).colour) for one in spread if bands]
    for one in series:
        style = styles.of(one.name)
        shown = ":.1%" if share else ":.3~f"
        trace: dict[str, Any] = {
            "x": rounded(one.x),
            "y": rounded(one.y),
            "name": one.name,
            "type": "scatter",
            "mode": "markers" if one.marks else "lines+markers",
            "marker": {"symbol": style.marker, "size": 10 if one.marks else 7, "color": style.colour},
            "hovertemplate": f"%{{y{shown}}} {'' if share else unit}",
        }
        if one.marks:
            trace["marker"] |= {"symbol": f"{style.marker}-open", "line": {"width": 2}}
            trace["hovertemplate"] += " measured"
        else:
            trace["line"] = {"color": style.colour, "dash": style.dash, "width": 2}
        if one in spread and not bands:
            trace["error_y"] = _bars(one)
        data.append(trace)
    layout: dict[str, Any] = {"xaxis": _axis(x), "yaxis": _axis(y)}
    places = sorted({float(v) for one in series for v in one.x})
    if ticks and 1 < len(places) <= 7 and _apart(places):
        layout["xaxis"] |= {"tickvals": places, "ticktext": [f"{p:g}" for p in places]}
    if share:
        layout["yaxis"] |= {"tickformat": ".0%", "range": [-0.03, 1.05]}
    else:
        layout["yaxis"] |= {"rangemode": "tozero"}
    return {"data": data, "layout": layout}


def _apart(places: Sequence[float]) -> bool:
    """Whether ticks at *places* would stand far enough from each other to be read."""
    gaps = np.diff(places)
    return bool(gaps.min() >= (places[-1] - places[0]) / 12)


def _band(one: Series, colour: str) -> dict[str, Any]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    assert one.low is not None
    assert one.high is not None
    return {
        "x": rounded([*one.x, *reversed(one.x)]),
        "y": rounded([*one.high, *reversed(one.low)]),
        "name": one.name,
        "type": "scatter",
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.15)",
        "hoverinfo": "skip",
    }


def _bars(one: Series) -> dict[str, Any]:
    assert one.low is not None
    assert one.high is not None
    ends = list(zip(one.y, one.low, one.high, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded([None if y is None else max(high - y, 0.0) for y, _, high in ends]),
        "arrayminus": rounded([None if y is None else max(y - low, 0.0) for y, low, _ in ends]),
        "thickness": 1,
        "width": 4,
    }


def distribution(values: Mapping[str, Sequence[float]], styles: Styles, *, x: str) -> Figure:
    """The share of values up to each, for each name; on a logarithmic axis where they differ by far."""
    data, spread = [], []
    for name, found in values.items():
        ordered = np.sort(np.asarray(found, dtype=float))
        if not ordered.size:
            continue
        kept = np.unique(np.linspace(0, ordered.size - 1, min(POINTS, ordered.size)).round().astype(int))
        style = styles.of(name)
        data.append(
            {
                "x": rounded(ordered[kept]),
                "y": rounded((kept + 1) / ordered.size),
                "name": name,
                "type": "scatter",
                "mode": "lines",
                "line": {"color": style.colour, "dash": style.dash, "width": 2, "shape": "hv"},
                "hovertemplate": "%{y:.1%} up to %{x:.3~f}",
            }
        )
        spread += [float(np.percentile(ordered, 5)), float(ordered[-1])]
    far = bool(spread) and min(spread) > 0 and max(spread) / min(spread) > 30
    axis = _axis(x) | ({"type": "log", "dtick": 1} if far else {"rangemode": "tozero"})
    share = _axis("share of requests") | {"tickformat": ".0%", "range": [0, 1.02]}
    return {"data": data, "layout": {"xaxis": axis, "yaxis": share, "hovermode": "closest"}}


def over_time(
    values: dict[str, Sequence[float]], edges: np.ndarray, styles: Styles, *, y: str, share: bool = False
) -> Figure:
    """Means over bins of time between *edges* (seconds), as steps; NaN leaves a gap. Up to `SHORT` bins between gaps
    are marks: a line as short as that, a dashed one above all, is not seen. A line that is alone is not dashed."""
    data = []
    for name, found in values.items():
        style = styles.of(name)
        dash = style.dash if len(values) > 1 else "solid"
        seen = [None if math.isnan(v) else float(v) for v in found]
        trace: dict[str, Any] = {
            "x": rounded(edges[:-1], 7),
            "y": rounded(seen),
            "name": name,
            "type": "scatter",
            "mode": "lines",
            "line": {"color": style.colour, "dash": dash, "width": 1.6, "shape": "hv"},
            "hovertemplate": "%{y:.0%}" if share else "%{y:.3~f}",
        }
        if any(alone := _between_gaps(seen)):
            sizes = [4 if mark else 0 for mark in alone]
            trace["mode"] = "lines+markers"
            trace["marker"] = {"symbol": style.marker, "color": style.colour, "size": sizes, "opacity": 1}
        data.append(trace)
    axis = _axis(y) | ({"tickformat": ".0%", "range": [0, 1.05]} if share else {"rangemode": "tozero"})
    time = _axis("time since the run began, s") | {"range": rounded([edges[0], edges[-1]], 7)}
    return {"data": data, "layout": {"xaxis": time, "yaxis": axis}}


def _between_gaps(seen: Sequence[float | None]) -> list[bool]:
    """Of each bin, whether it is one of `SHORT` at most that have values between bins that have none."""
    alone: list[bool] = []
    for gap, group in groupby(seen, key=lambda value: value is None):
        count = len(list(group))
        alone += [not gap and count <= SHORT] * count
    return alone


def outcomes(counts: dict[str, dict[str, int]]) -> Figure:
    """The share of requests by how they ended, a bar for each name."""
    names = list(counts)
    data = []
    for outcome, (colour, pattern) in OUTCOMES.items():
        if not any(own.get(outcome) for own in counts.values()):
            continue
        totals = [max(sum(counts[name].values()), 1) for name in names]
        data.append(
            {
                "x": rounded([counts[n].get(outcome, 0) / t for n, t in zip(names, totals, strict=True)]),
                "y": names,
                "customdata": [counts[n].get(outcome, 0) for n in names],
                "name": outcome,
                "type": "bar",
                "orientation": "h",
                "marker": {"color": colour, "pattern": _pattern(pattern)},
                "hovertemplate": f"{outcome}: %{{customdata}} (%{{x:.1%}})",
            }
        )
    layout = {
        "barmode": "stack",
        "xaxis": _axis("share of requests")
        | {"tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1], "range": [0, 1]},
        "margin": {"l": 48, "r": 30, "t": 6, "b": 42},
        "yaxis": {"automargin": True, "autorange": "reversed"},
        "height": 84 + 36 * len(names),
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def _pattern(shape: str) -> dict[str, Any]:
    return {"shape": shape, "fillmode": "overlay", "fgcolor": "#ffffff", "solidity": 0.2, "size": 7}


def against(
    points: dict[str, list[tuple[float, float, str]]], styles: Styles, *, what: str, names: tuple[str, str]
) -> Figure:
    """Shares (of 1) of two sides over each other, which are called *names*, measured and simulated say; a mark for
    each run: (first, second, what the run is)."""
    data: list[dict[str, Any]] = [
        {
            "x": [0, 1],
            "y": [0, 1],
            "name": "equal",
            "type": "scatter",
            "mode": "lines",
            "line": {"color": "#9ca3af", "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for name, own in points.items():
        style = styles.of(name)
        data.append(
            {
                "x": rounded([p[0] for p in own]),
                "y": rounded([p[1] for p in own]),
                "text": [p[2] for p in own],
                "name": name,
                "type": "scatter",
                "mode": "markers",
                "marker": {"symbol": style.marker, "size": 8, "color": style.colour, "opacity": 0.75},
                "hovertemplate": f"%{{text}}<br>{names[0]} %{{x:.1%}}, {names[1]} %{{y:.1%}}",
            }
        )
    axes = {
        "xaxis": _axis(f"{what}, {names[0]}") | {"tickformat": ".0%", "range": [-0.03, 1.04]},
        "yaxis": _axis(f"{what}, {names[1]}") | {"tickformat": ".0%", "range": [-0.03, 1.04]},
    }
    return {"data": data, "layout": {**axes, "hovermode": "closest", "height": 380}}


def rounded(values: Any, digits: int = 5) -> list[float | None]:
    """*values* to five significant *digits*, as many as a picture shows, or so many; without NaN."""
    return [None if v is None or not math.isfinite(v) else float(f"{float(v):.{digits}g}") for v in values]


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}}
