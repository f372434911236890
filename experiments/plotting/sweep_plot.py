"""A figure of a sweep's table: one column over another, a line per policy, a panel per setting of the rest.

Where settings were varied one at a time around a point, as `vary` of a sweep file does it, each of them has a panel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from servetwin.core import BadInput

from ..registry.catalog import suggest
from ..reporting.sweep_columns import LINE, name_lines, number_in, varied_columns
from ..spec.overrides import SHORT
from ..sweeps.point import Row
from ..validation.comparison.compare_grids import read_rows
from . import measured_points
from .paper_figures import AXES
from .style import COLUMN, INTERVALS, PAGE, WIDTHS, Sheet, check_ending, drawing, look

MOST = 24
LABELS = {
    **AXES,
    "attainment": "attainment",
    "request_goodput": "goodput (requests/s)",
    "token_goodput": "tokens on time/s",
    "prefill_slo": "SLO of prefill (× alone)",
    "decode_slo": "SLO of decoding (× alone)",
    "mean_batch_size": "batch size, mean",
}
SHARES = ("attainment",)
#: Points by which each line stands to the right of the one before it where there are intervals as bars.
SHIFT = 1.5
#: Up to so many places along an axis are its ticks, if they lie far enough from each other to be read.
TICKS = 6


def label_of(column: str) -> str:
    """What the axis of a *column* is called.

    >>> [label_of(name) for name in ("p99_ttft_ms", "mean_e2el_ms", "llava.token_goodput")]
    ['TTFT, p99 (ms)', 'latency, mean (ms)', 'llava.token goodput']
    """
    if found := re.fullmatch(r"(mean|median|p90|p99)_(ttft|tpot|itl|e2el)_ms", column):
        statistic, metric = found.groups()
        return f"{'latency' if metric == 'e2el' else metric.upper()}, {statistic} (ms)"
    return LABELS.get(column, column.replace("_", " "))


@dataclass(frozen=True)
class Asked:
    """What of a table is drawn: the columns of the axes (*x* None: the settings that vary) and of the lines, how wide
    (a key of `WIDTHS`, None: as many panels need), how intervals look, and the files whose points are laid over."""

    x: str | None = None
    y: str = "attainment"
    by: str = "policy"
    width: str | None = None
    intervals: str = "bars"
    measured: Sequence[Path] = ()


def draw(table: Path, *outs: Path, asked: Asked | None = None) -> tuple[int, list[Path]]:
    """Draw *table*, which `servetwin sweep` wrote, to *outs*; the number of panels, and the files written.

    Points that were measured in the same setup as one of the table are laid over. Raises `BadInput`.
    """
    asked = asked or Asked()
    for out in outs:
        check_ending(out)
    rows = read_rows(table)
    sheet, panels = sheet_of(rows, str(table), asked, measured_points.beside(table, rows))
    return panels, sheet.save(*outs)


def _check_cells(rows: Sequence[Row], y: str, where: str) -> None:
    """Raise `BadInput` if a cell of the column *y* is no number, or no share where it must be one: it would be left
    out, or drawn where nothing can be. Empty cells are points that have no such figure."""
    if all(number_in(row.get(y)) is None for row in rows):
        return  # it is no column of numbers, which is said elsewhere
    for number, row in enumerate(rows, 1):
        cell = row.get(y)
        value = number_in(cell)
        if value is None and str(cell).strip().lower() not in ("", "none", "nan"):
            raise BadInput(f"{cell!r} is no number", where=f"{where}: {y} of row {number}", right="a finite one")
        if value is not None and y in SHARES and not 0.0 <= value <= 1.0:
            raise BadInput(f"{cell} is no share", where=f"{where}: {y} of row {number}", right="from 0 to 1")


#: Rows and columns of panels.
_Shape = tuple[int, int]


@dataclass(frozen=True)
class _Panel:
    """A panel: its title, the column along its axis, its rows, and where on the other axes they lie."""

    title: str
    x: str
    rows: Sequence[Row]


def sheet_of(
    rows: Sequence[Row], where: str, asked: Asked, measured: Sequence[Sequence[Row]] = ()
) -> tuple[Sheet, int]:
    """The figure of a sweep's *rows*, a table called *where*, and the number of its panels. *measured* are the points
    that belong to each of the rows.

    Rows that differ in nothing but their seed are averaged. Intervals are drawn where the table has them. Raises
    `BadInput`.
    """
    for option, value, known in (("--width", asked.width, WIDTHS), ("--intervals", asked.intervals, INTERVALS)):
        if value is not None and value not in known:
            raise BadInput(f"{value!r} is none", where=option, right=" or ".join(known))
    rows = [dict(row) for row in rows]
    for row, points in zip(rows, measured, strict=False):
        row[measured_points.COLUMN] = points
    y, by = _column(asked.y, rows), _column(asked.by, rows)
    _check_cells(rows, y, where)
    panels, shape, aligned = _panels(rows, where, None if asked.x is None else _column(asked.x, rows), y, by)
    width = WIDTHS[asked.width] if asked.width is not None else COLUMN if len(panels) == 1 else PAGE
    names = [*dict.fromkeys(row[LINE] for row in rows)]
    given = [point for path in asked.measured for point in measured_points.read(path)]
    with drawing():
        sheet = Sheet(*shape, width=width, height=1.7 if len(panels) <= 2 else 1.4)
        bars = asked.intervals == "bars" and any(number_in(row.get(f"{y}_low")) is not None for row in rows)
        shifts = {name: SHIFT * (i - (len(names) - 1) / 2) if bars else 0.0 for i, name in enumerate(names)}
        for place, own in zip(sheet.panels.flat, panels, strict=False):
            names_of = own.title, label_of(own.x), label_of(y)
            sheet.describe(place, *names_of, titled=not aligned or own.x == panels[0].x, edges=aligned)
            _lines(sheet, place, own, y, shifts, asked.intervals)
            _measured(sheet, place, own, y, shifts, given)
            _bound(sheet, place, own, y)
            _ticks(place, [number_in(row[own.x]) for row in own.rows])
            place.set_ylim(*((-0.02, 1.02) if y in SHARES else (0, None)))
        for place in list(sheet.panels.flat)[len(panels) :]:
            place.set_axis_off()
        sheet.legend()
    return sheet, len(panels)


# -- panels ---------------------------------------------------------------------------------------------


def _panels(rows: Sequence[Row], table: str, x: str | None, y: str, by: str) -> tuple[list[_Panel], _Shape, bool]:
    """The panels, in how many rows and columns they stand, and whether each row is one setting along all axes."""
    varied = name_lines(rows, varied_columns(rows, table), by, x)
    columns = [name for name in rows[0] if name != measured_points.COLUMN]
    numeric = [name for name in varied if name != by and all(number_in(row[name]) is not None for row in rows)]
    if x is None and not numeric:
        raise BadInput("no setting varies that is a number", where=table, right="--x with a column")
    for option, name in (("--x", x or numeric[0]), ("--y", y), ("--by", by)):
        if name not in columns:
            raise BadInput(f"there is no column {name!r} in {table}", where=option, right=suggest(name, columns))
        if option != "--by" and all(number_in(row[name]) is None for row in rows):
            raise BadInput(f"column {name!r} holds no numbers", where=option, right=", ".join(numeric))
    axes = _together(rows, numeric)
    groups = _grouped(rows, [name for name in varied if name not in (*numeric, by)])
    if len(axes) > 1 and (x is None or x in numeric) and all(_one_at_a_time(own, axes) for own in groups.values()):
        wanted = [axis for axis in axes if x is None or x in axis]
        found = [_along(title, own, axis, axes, x) for title, own in groups.items() for axis in wanted]
        found = [panel for panel in found if len({number_in(row[panel.x]) for row in panel.rows}) > 1]
        aligned = len(wanted) > 1 and len(found) == len(groups) * len(wanted)
        shape = (len(groups), len(wanted)) if aligned else _square(len(found))
        return _checked(found, table, "x".join(axis[0] for axis in wanted)), shape, aligned
    x = x or numeric[0]
    others = [name for name in varied if name not in (x, by)]
    found = [_Panel(title, x, own) for title, own in _grouped(rows, others).items()]
    return _checked(found, table, " x ".join(others)), _square(len(found)), False


def _checked(panels: list[_Panel], table: str, what: str) -> list[_Panel]:
    if len(panels) > MOST:
        right = f"{MOST} at most: a smaller table"
        raise BadInput(f"{len(panels)} panels, for {what}", where=table, right=right)
    return panels


def _square(count: int) -> tuple[int, int]:
    across = min(math.ceil(math.sqrt(count)), 4)
    return math.ceil(count / across), across


def _grouped(rows: Sequence[Row], by: Sequence[str]) -> dict[str, list[Row]]:
    """The rows by what they have in the columns *by*, in words."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        said = (str(row[n]) if n in ("workload", "policy") else f"{n} {row[n]}" for n in by)
        found.setdefault(", ".join(said), []).append(row)
    return found


def _together(rows: Sequence[Row], columns: Sequence[str]) -> list[list[str]]:
    """The *columns* by what was varied: those that only ever changed together, as `zip` does it, are one setting."""
    found: list[list[str]] = []
    for name in columns:
        for known in found:
            pairs = {(str(row[known[0]]), str(row[name])) for row in rows}
            if len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
                known.append(name)
                break
        else:
            found.append([name])
    return found


def _base(rows: Sequence[Row], axes: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """The values around which the settings *axes* were varied: those that most rows share."""
    base = {}
    for axis in axes:
        values = [number_in(row[axis[0]]) for row in rows]
        base[axis[0]] = max(dict.fromkeys(values), key=values.count)
    return base


def _one_at_a_time(rows: Sequence[Row], axes: Sequence[Sequence[str]]) -> bool:
    """Whether no row differs from `_base` in more than one setting."""
    base = _base(rows, axes)
    return all(sum(number_in(row[axis]) != value for axis, value in base.items()) <= 1 for row in rows)


def _along(
    title: str, rows: Sequence[Row], axis: Sequence[str], axes: Sequence[Sequence[str]], x: str | None
) -> _Panel:
    base = _base(rows, axes)
    others = [(name, value) for name, value in base.items() if name != axis[0]]
    own = [row for row in rows if all(number_in(row[name]) == value for name, value in others)]
    return _Panel(title, x or axis[0], own)


def _column(name: str, rows: Sequence[Row]) -> str:
    """The column that *name* means, which may be the short name of an axis, as a sweep takes it (`router`)."""
    columns = rows[0] if rows else {}
    full = "slo_factor" if name == "slo" else SHORT.get(name, name)
    return full if name not in columns and full in columns else name


# -- lines and marks ------------------------------------------------------------------------------------


def _ticks(place: Any, values: Sequence[float | None]) -> None:
    """Put the ticks of the x axis where points are, if these are few."""
    places = sorted({value for value in values if value is not None})
    gaps = [b - a for a, b in pairwise(places)]
    if 1 < len(places) <= TICKS and min(gaps) >= (places[-1] - places[0]) / 8:
        place.set_xticks(places, [f"{value:g}" for value in places])


def _lines(sheet: Sheet, place: Any, panel: _Panel, y: str, shifts: Mapping[str, float], intervals: str) -> None:
    """Draw the lines of a panel; *shifts* has the points by which each stands to the right, in the order of looks."""
    names = [*shifts]
    for name in dict.fromkeys(row[LINE] for row in panel.rows):
        at: dict[float, list[Row]] = {}
        for row in panel.rows:
            where = number_in(row[panel.x])
            if row[LINE] == name and where is not None and number_in(row[y]) is not None:
                at.setdefault(where, []).append(row)
        places = sorted(at)
        ends = None
        if places and all(
            number_in(row.get(f"{y}_{end}")) is not None for p in places for row in at[p] for end in _ENDS
        ):
            low, high = ([_mean(at[p], f"{y}_{end}") for p in places] for end in _ENDS)
            ends = low, high
        values = [_mean(at[p], y) for p in places]
        looks = look(names.index(name))
        sheet.line(place, name, looks, places, values, ends, intervals=intervals, shift=shifts[name])


_ENDS = ("low", "high")


def _bound(sheet: Sheet, place: Any, panel: _Panel, y: str) -> None:
    """Draw the most that any schedule could meet, where the table has it: of the systems of a panel, the largest."""
    at: dict[float, float] = {}
    for row in panel.rows if y == "attainment" else ():
        where, most = number_in(row[panel.x]), number_in(row.get("bound"))
        if where is not None and most is not None:
            at[where] = max(most, at.get(where, 0.0))
    sheet.limit(place, at)


def _measured(
    sheet: Sheet,
    place: Any,
    panel: _Panel,
    y: str,
    shifts: Mapping[str, float],
    given: Sequence[Mapping[str, Any]],
) -> None:
    """Lay over what was measured: what belongs to a row, and those of the *given* points that fit the panel."""
    found: dict[str, list[tuple[float, float]]] = {}
    places = [number_in(row[panel.x]) or 0.0 for row in panel.rows]
    for row in panel.rows:
        fitting = [point for point in given if measured_points.fits(point, row, panel.x)]
        for point in (*row.get(measured_points.COLUMN, ()), *fitting):
            x, value = number_in(point.get(panel.x)), number_in(point.get(y))
            if x is not None and value is not None and min(places) <= x <= max(places):
                found.setdefault(row[LINE], []).append((x, value))
    for name, points in found.items():
        points = sorted(set(points))
        xs, values = [x for x, _ in points], [v for _, v in points]
        sheet.marks(place, name, look([*shifts].index(name)), xs, values, shift=shifts[name])


def _mean(rows: Sequence[Row], name: str) -> float:
    return fmean(float(row[name]) for row in rows)
