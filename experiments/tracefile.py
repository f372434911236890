"""Trace files: recorded arrivals, with or without the work that each request asked for.

CSV, one line per request, or JSON with one list per column; read by the ending of the file's name::

    arrival,steps                       {"arrival": [0.31, 0.84, 2.07],
    0.31,34                              "steps": [34, 50, 41]}
    0.84,50
    2.07,41

*arrival* is seconds since the start, never falling. *steps* are the iterations of the pipeline's only loop module;
where there are several, a column is named for each. Other columns are ignored.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from .names import suggest
from .yamlfile import read_text


@dataclass(frozen=True)
class TraceFile:
    """A trace that was read: *columns* has the work by column name."""

    where: str
    arrivals: list[float]
    columns: dict[str, list[int]]
    digest: str

    def arrivals_at(self, rate: float | None) -> list[float]:
        """The arrivals, stretched or squeezed to *rate* requests per second over the whole trace."""
        if rate is None:
            return self.arrivals
        scale = len(self.arrivals) / (rate * self.arrivals[-1])
        return [t * scale for t in self.arrivals]

    def work_of(self, module: str) -> list[int]:
        """The iterations of *module*, from the column of that name or from ``steps``."""
        for name in (module, "steps"):
            if name in self.columns:
                return self.columns[name]
        right = f"a column {module!r} or 'steps'"
        raise BadInput(
            f"the trace does not say how many iterations of {module} to run", where=self.where, right=right
        )


def read(path: Path, modules: list[str]) -> TraceFile:
    """Read a trace; *modules* are those whose iterations are wanted. Raises `BadInput` naming the wrong line."""
    text = read_text(path)
    where = str(path)
    rows = _json_rows(text, where) if path.suffix == ".json" else _csv_rows(text, where)
    wanted = ["steps", *modules]
    arrivals: list[float] = []
    columns: dict[str, list[int]] = {}
    for place, row in rows:
        time = _number(row.get("arrival"), f"{where}:{place}: arrival")
        if arrivals and time < arrivals[-1]:
            raise BadInput(
                f"{time:g} comes after {arrivals[-1]:g}", where=f"{where}:{place}: arrival", right="a later time"
            )
        arrivals.append(time)
        for name in wanted:
            if name in row:
                columns.setdefault(name, []).append(_steps(row[name], f"{where}:{place}: {name}"))
    if not arrivals:
        raise BadInput("the trace holds no request", where=where)
    if arrivals[-1] <= 0.0:
        raise BadInput("all requests arrive at 0", where=where, right="times in seconds since the start")
    return TraceFile(where, arrivals, columns, hashlib.sha256(text.encode()).hexdigest())


def _csv_rows(text: str, where: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines())
    header = [h.strip() for h in reader.fieldnames or []]
    if "arrival" not in header:
        right = suggest("arrival", header) if header else "arrival,steps"
        raise BadInput("the first line names no column 'arrival'", where=f"{where}:1", right=right)
    reader.fieldnames = header
    rows = []
    for row in reader:
        if None in row or None in row.values():
            right = f"{len(header)} values: {','.join(header)}"
            raise BadInput("the line does not fit the header", where=f"{where}:{reader.line_num}", right=right)
        rows.append((reader.line_num, row))
    return rows


def _json_rows(text: str, where: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"no valid JSON: {error.msg}", where=f"{where}:{error.lineno}") from None
    if not isinstance(data, dict) or not isinstance(data.get("arrival"), list):
        raise BadInput("there is no list 'arrival'", where=where, right='{"arrival": [...], "steps": [...]}')
    lists = {k: v for k, v in data.items() if isinstance(v, list)}
    for name, values in lists.items():
        if len(values) != len(lists["arrival"]):
            what = f"{name} has {len(values)} values, but arrival has {len(lists['arrival'])}"
            raise BadInput(what, where=where, right="lists of one length")
    return [(i, {k: v[i] for k, v in lists.items()}) for i in range(len(lists["arrival"]))]


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0.0 or isinstance(value, bool):
        raise BadInput(f"{value!r} is no time", where=where, right="seconds, 0 or more")
    return number


def _steps(value: Any, where: str) -> int:
    try:
        steps = int(value)
    except (TypeError, ValueError):
        steps = 0
    if steps < 1 or isinstance(value, bool | float):
        raise BadInput(f"{value!r} is no number of steps", where=where, right="a whole number, 1 or more")
    return steps
