"""The columns of a sweep's table: which settings vary, what is said with each line, which settings make panels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

Row = dict[str, Any]

#: Columns that are said with a line, where they differ, in place of panels of their own.
GOING_WITH = ("policy.params", "deployment", "stop_after")

#: Where a row keeps the name of its line.
LINE = "line: "


def varied_columns(rows: Sequence[Row], where: str) -> list[str]:
    """The settings that differ among *rows*, but for seeds, of a table called *where*. Raises `BadInput` if it is no
    sweep's."""
    columns = list(rows[0]) if rows else []
    if "met" not in columns:
        raise BadInput("this is no sweep's table", where=where, right="a table that `servetwin sweep` wrote")
    varied = [name for name in columns[: columns.index("met")] if name not in ("seed", "requests")]
    varied = [name for name in varied if len({str(row[name]) for row in rows}) > 1]
    if _apart_by_requests(rows, varied):
        varied.append("requests")
    return varied


def name_lines(rows: Sequence[Row], varied: Sequence[str], by: str, *taken: str | None) -> list[str]:
    """Give each of *rows* the name of its line, which is what *by* says of it and what goes with that; the columns of
    *varied* that are in no name. *taken* are columns that are shown otherwise."""
    going, others = _going_with_lines(rows, list(varied), (by, *taken))
    for row in rows:
        said = [_said(name, row[name]) for name in going]
        row[LINE] = ", ".join([short(str(row.get(by))), *(text for text in said if text)])
    return others


def _apart_by_requests(rows: Sequence[Row], varied: Sequence[str]) -> bool:
    """Whether rows that *varied* does not tell apart are of runs that differ in length: they are no repeats."""
    found: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[name]) for name in varied), set()).add(str(row.get("requests")))
    return any(len(counts) > 1 for counts in found.values())


def _going_with_lines(
    rows: Sequence[Row], varied: list[str], taken: Sequence[str | None]
) -> tuple[list[str], list[str]]:
    """Of the columns *varied*, those that are said with each line; and the others."""
    if "system.stop_after" in varied:  # an axis, which the settings repeat
        varied = [name for name in varied if name != "stop_after"]
    going = [name for name in GOING_WITH if name in varied and name not in taken]
    if "variant" in varied and "variant" not in taken and _repeats(rows):
        varied = [name for name in varied if name != "variant"]
    return going, [name for name in varied if name not in going]


def _repeats(rows: Sequence[Row]) -> bool:
    """Whether the variant of a row follows from its policy and what goes with it."""

    def of(row: Row) -> tuple[Any, ...]:
        return (row["workload"], row["policy"], *(row[name] for name in GOING_WITH if name in row))

    return len({(*of(row), row["variant"]) for row in rows}) == len({of(row) for row in rows})


def short(name: str) -> str:
    """A policy's *name*, of a file without its folder."""
    return Path(name).name if name.endswith(".py") else name


def _said(column: str, value: Any) -> str:
    if column == "policy.params":
        return ", ".join(f"{name}={value}" for name, value in json.loads(value or "{}").items())
    if column == "deployment":
        return str(value or "deployment unknown")
    return "runs to the end" if value in (None, "") else f"cut off after {value} s"


def number_in(value: Any) -> float | None:
    """The number that a cell holds, if it holds one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
