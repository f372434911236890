"""A figure of a sweep's table: one column over another, a line per policy, a panel per setting of the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from servetwin.core import BadInput

from ..reporting.sweep_columns import LINE, name_lines, number_in, varied_columns
from ..spec.catalog import suggest
from ..spec.loading import SHORT
from ..sweeps.point import Row
from ..validation.compare_grids import read_rows
from . import paper_figures

ENDINGS = (".png", ".svg", ".pdf")
MOST = 16


def draw(table: Path, out: Path, *, x: str | None = None, y: str = "attainment", by: str = "policy") -> int:
    """Draw *table*, which `servetwin sweep` wrote, to *out*; the number of panels. Raises `BadInput`."""
    if out.suffix not in ENDINGS:
        raise BadInput(
            f"{out.suffix or 'no ending'} is no kind of figure", where=str(out), right=" or ".join(ENDINGS)
        )
    figure, panels = figure_of(read_rows(table), str(table), x=x, y=y, by=by)
    with mpl.rc_context(paper_figures.STYLE):
        try:
            paper_figures.save(figure, out)
        except OSError as error:
            raise BadInput(error.strerror or "cannot be written", where=str(out), right="a file of yours") from None
    return panels


def figure_of(
    rows: Sequence[Row], where: str, *, x: str | None = None, y: str = "attainment", by: str = "policy"
) -> tuple[Figure, int]:
    """The figure of a sweep's *rows*, a table called *where*, and the number of its panels.

    Rows that differ in nothing but their seed are averaged. Intervals are drawn where the table has them. *x* is the
    first setting that varies, if it is not said. Raises `BadInput`.
    """
    rows = [dict(row) for row in rows]
    x, y, by = None if x is None else _column(x, rows), _column(y, rows), _column(by, rows)
    panels, x = _panels(rows, where, x, y, by)
    across = math.ceil(math.sqrt(len(panels)))
    shape = (math.ceil(len(panels) / across), across)
    with mpl.rc_context(paper_figures.STYLE):
        figure = paper_figures.Drawing(figsize=(3.1 * shape[1] + 0.6, 2.3 * shape[0] + 0.7), layout="constrained")
        grid = figure.subplots(*shape, squeeze=False)
        for panel, (title, own) in zip(grid.flat, panels.items(), strict=False):
            _lines(panel, own, x, y)
            panel.set_title(title, loc="left", fontweight="bold")
            panel.set_xlabel(paper_figures.AXES.get(x, x))
        for panel in list(grid.flat)[len(panels) :]:
            panel.set_axis_off()
        for line in grid:
            line[0].set_ylabel(y.replace("_", " "))
        paper_figures.legend(figure, grid)
    return figure, len(panels)


def _panels(rows: Sequence[Row], table: str, x: str | None, y: str, by: str) -> tuple[dict[str, list[Row]], str]:
    """The rows of each panel by its title, each with the name of its line, and the column along the axis."""
    varied = name_lines(rows, varied_columns(rows, table), by, x)
    columns = list(rows[0])
    numeric = [name for name in varied if name != by and all(number_in(row[name]) is not None for row in rows)]
    if x is None and not numeric:
        raise BadInput("no setting varies that is a number", where=table, right="--x with a column")
    x = x or numeric[0]
    for option, name in (("--x", x), ("--y", y), ("--by", by)):
        if name not in columns:
            raise BadInput(f"there is no column {name!r} in {table}", where=option, right=suggest(name, columns))
        if option != "--by" and all(number_in(row[name]) is None for row in rows):
            raise BadInput(f"column {name!r} holds no numbers", where=option, right=", ".join(numeric))
    others = [name for name in varied if name not in (x, by)]
    panels: dict[str, list[Row]] = {}
    for row in rows:
        title = ", ".join(str(row[n]) if n in ("workload", "policy") else f"{n} {row[n]}" for n in others)
        panels.setdefault(title, []).append(row)
    if len(panels) > MOST:
        raise BadInput(
            f"{len(panels)} panels, for {' x '.join(others)}",
            where=table,
            right=f"{MOST} at most: a smaller table",
        )
    return panels, x


def _column(name: str, rows: Sequence[Row]) -> str:
    """The column that *name* means, which may be the short name of an axis, as a sweep takes it (`router`)."""
    columns = rows[0] if rows else {}
    full = "slo_factor" if name == "slo" else SHORT.get(name, name)
    return full if name not in columns and full in columns else name


def _lines(panel: Any, rows: Sequence[Row], x: str, y: str) -> None:
    for i, name in enumerate(dict.fromkeys(row[LINE] for row in rows)):
        at: dict[float, list[Row]] = {}
        for row in rows:
            place = number_in(row[x])
            if row[LINE] == name and place is not None and number_in(row[y]) is not None:
                at.setdefault(place, []).append(row)
        places = sorted(at)
        panel.plot(places, [_mean(at[p], y) for p in places], marker="o", ms=3, lw=1.2, color=f"C{i}", label=name)
        if all(number_in(row.get(f"{y}_low")) is not None for p in places for row in at[p]):
            low, high = ([_mean(at[p], f"{y}_{end}") for p in places] for end in ("low", "high"))
            panel.fill_between(places, low, high, color=f"C{i}", alpha=0.15, lw=0)
    if y == "attainment":
        panel.set_ylim(-0.02, 1.02)


def _mean(rows: Sequence[Row], name: str) -> float:
    return fmean(float(row[name]) for row in rows)
