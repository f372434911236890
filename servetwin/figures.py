"""Figures of runs, sweeps and searches. Matplotlib is imported here, and here alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import needed

try:
    import matplotlib as mpl
except ImportError:
    raise needed("matplotlib", "matplotlib") from None

from servetwin.experiments.plotting.style import STYLE, Drawing
from servetwin.experiments.plotting.sweep_plot import Asked, sheet_of
from servetwin.experiments.reporting.document import OUTCOMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows as `servetwin.tables.Table.to_dicts` gives them.
Rows = Sequence[Mapping[str, Any]]


def of_sweep(rows: list[dict[str, Any]], *, x: str | None, y: str, by: str) -> Figure:
    """Of the rows of a sweep, see `Sweep.plot`."""
    sheet, _ = sheet_of(rows, "the sweep", Asked(x, y, by))
    return sheet.figure


def of_run(title: str, requests: Rows, batches: Rows) -> Figure:
    """Of the requests and batches of a run, see `Result.plot`."""
    with mpl.rc_context(STYLE):
        figure = Drawing(figsize=(6.4, 4.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for outcome, (colour, _) in OUTCOMES.items():
            own = [row for row in requests if row["outcome"] == outcome]
            if own:
                # What did not finish has no latency, and stands on the axis.
                heights = [row["latency"] if row["latency"] is not None else 0.0 for row in own]
                label = f"{outcome} ({len(own)})"
                above.plot([row["arrival"] for row in own], heights, ".", ms=3, color=colour, label=label)
        above.set_ylabel("latency (s)")
        above.set_title(title, loc="left", fontweight="bold")
        if requests:
            above.set_ylim(top=1.25 * above.get_ylim()[1])  # room for the legend
            above.legend(loc="upper left", ncols=4, frameon=False, markerscale=2)
        for i, worker in enumerate(dict.fromkeys(row["worker"] for row in batches)):
            own = sorted((row for row in batches if row["worker"] == worker), key=lambda row: row["start"])
            places = [time for row in own for time in (row["start"], row["end"], row["end"])]
            sizes: list[Any] = [size for row in own for size in (row["size"], row["size"], float("nan"))]
            below.plot(places, sizes, lw=0.8, color=f"C{i}", label=worker)
        below.set_ylabel("batch size")
        below.set_xlabel("time (s)")
        below.set_ylim(bottom=0)
        if batches:
            below.set_ylim(top=1.25 * below.get_ylim()[1])
            below.legend(loc="upper left", ncols=4, frameon=False)
    return figure


def of_search(answers: Sequence[tuple[str, float, Any]], place: str) -> Figure:
    """Of (name, value, table of what was tried) of each answer, at what *place*; see `Search.plot`."""
    with mpl.rc_context(STYLE):
        figure = Drawing(figsize=(5.2, 3.2), layout="constrained")
        panel = figure.subplots()
        for i, (name, value, tried) in enumerate(answers):
            label = f"{name}: {value:.4g}"
            panel.plot(tried["place"], tried["margin"], marker="o", ms=3, lw=1, color=f"C{i}", label=label)
            sure = [row for row in tried if row["low"] is not None and row["high"] is not None]
            places, low, high = ([row[end] for row in sure] for end in ("place", "low", "high"))
            panel.fill_between(places, low, high, color=f"C{i}", alpha=0.15, lw=0)
            panel.axvline(value, color=f"C{i}", lw=0.8, ls=":")
        panel.axhline(0.0, color="0.4", lw=0.8)
        panel.set_xlabel(place)
        panel.set_ylabel("above the target")
        panel.legend(loc="best", frameon=False)
    return figure
