"""Figures of runs, sweeps and searches. Matplotlib is imported here, and here alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import needed

try:
    import matplotlib as mpl
except ImportError:
    raise needed("matplotlib", "matplotlib") from None

from servetwin.experiments.plotting.paper_figures import STYLE, Drawing
from servetwin.experiments.plotting.sweep_plot import figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import Result
    from .searches import Search
    from .sweeps import Sweep

COLOURS = {"met": "#1f6fb4", "late": "#e0a030", "dropped": "#c8553d", "failed": "#777777"}


def of_sweep(sweep: Sweep, *, x: str | None, y: str, by: str) -> Figure:
    """See `Sweep.plot`."""
    figure, _ = figure_of(sweep.to_dicts(), "the sweep", x=x, y=y, by=by)
    return figure


def of_run(result: Result) -> Figure:
    """See `Result.plot`."""
    requests, batches = result.requests.to_dicts(), result.batches.to_dicts()
    with mpl.rc_context(STYLE):
        figure = Drawing(figsize=(6.4, 4.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for outcome, colour in COLOURS.items():
            own = [row for row in requests if row["outcome"] == outcome]
            if own:
                # What did not finish has no latency, and stands on the axis.
                heights = [row["latency"] if row["latency"] is not None else 0.0 for row in own]
                label = f"{outcome} ({len(own)})"
                above.plot([row["arrival"] for row in own], heights, ".", ms=3, color=colour, label=label)
        above.set_ylabel("latency (s)")
        above.set_title(repr(result)[len("<Result ") : -1], loc="left", fontweight="bold")
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


def of_search(search: Search) -> Figure:
    """See `Search.plot`."""
    with mpl.rc_context(STYLE):
        figure = Drawing(figsize=(5.2, 3.2), layout="constrained")
        panel = figure.subplots()
        for i, answer in enumerate(search.answers):
            tried = answer.tried
            label = f"{answer.workload}, {answer.policy}, {answer.target}: {answer.value:.4g}"
            panel.plot(tried["place"], tried["margin"], marker="o", ms=3, lw=1, color=f"C{i}", label=label)
            sure = [row for row in tried if row["low"] is not None and row["high"] is not None]
            places, low, high = ([row[end] for row in sure] for end in ("place", "low", "high"))
            panel.fill_between(places, low, high, color=f"C{i}", alpha=0.15, lw=0)
            panel.axvline(answer.value, color=f"C{i}", lw=0.8, ls=":")
        panel.axhline(0.0, color="0.4", lw=0.8)
        panel.set_xlabel(search.answers[0].find if search.answers else "")
        panel.set_ylabel("above the target")
        panel.legend(loc="best", frameon=False)
    return figure
