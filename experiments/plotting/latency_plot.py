"""A figure of run folders: distributions of latencies, a line per run (or class, or tenant), a panel per latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from servetwin.core import BadInput

from ..registry.catalog import suggest
from ..reporting.run_sections import CLASSES, stay_latencies
from ..reporting.sweep_columns import short
from ..validation.comparison.compare_runs import read as read_run
from ..validation.comparison.run_files import request_lines
from .style import COLUMN, PAGE, WIDTHS, Sheet, check_ending, drawing, look

#: The most points of a line: more cannot be told apart.
POINTS = 400
METRICS = ("e2el", "ttft", "tpot", "itl")

#: Panel title, name of its axis -> line -> values
Found = dict[tuple[str, str], dict[str, list[float]]]


def draw(
    folders: Sequence[Path], *outs: Path, y: str | None = None, by: str = "run", width: str | None = None
) -> tuple[int, list[Path]]:
    """Draw the latencies in the run *folders* to *outs*; the number of panels, and the files written.

    *y* is one of `METRICS`, None for all that there are; lines are told apart *by* "run", "class", "tenant" or
    "priority". Raises `BadInput`.
    """
    for out in outs:
        check_ending(out)
    for option, value, known in (("--y", y, METRICS), ("--by", by, ("run", *CLASSES)), ("--width", width, WIDTHS)):
        if value is not None and value not in known:
            raise BadInput(f"{value!r} is none of runs", where=option, right=suggest(value, tuple(known)))
    found = _latencies(folders, y, by)
    if not found:
        what = "no request has finished" if y in (None, "e2el") else f"nothing is recorded of {y}"
        raise BadInput(what, where=str(folders[0]), right="--y e2el, or runs that served something")
    names = [*dict.fromkeys(name for own in found.values() for name in own)]
    across = min(len(found), 3)
    shape = (-(-len(found) // across), across)
    with drawing():
        wide = WIDTHS[width] if width is not None else COLUMN if len(found) == 1 else PAGE
        sheet = Sheet(*shape, width=wide, height=1.7)
        for panel, ((title, axis), own) in zip(sheet.panels.flat, found.items(), strict=False):
            sheet.describe(panel, title, axis, "share of requests" if "gap" not in axis else "share of gaps")
            for name, values in own.items():
                places, shares = _distribution(values)
                looks = look(names.index(name))
                sheet.line(panel, name, looks, places, shares, marked=False, drawstyle="steps-post")
            panel.set_ylim(0, 1.02)
            if all(min(values) > 0 for values in own.values()) and _far(own):
                panel.set_xscale("log")
            else:
                panel.set_xlim(left=0)
        for panel in list(sheet.panels.flat)[len(found) :]:
            panel.set_axis_off()
        sheet.legend()
    return len(found), sheet.save(*outs)


def _latencies(folders: Sequence[Path], y: str | None, by: str) -> Found:
    found: Found = {}

    def add(metric: str, title: str, axis: str, name: str, values: Sequence[float]) -> None:
        if values and y in (None, metric):
            found.setdefault((title, axis), {}).setdefault(name, []).extend(values)

    for folder, run in zip(folders, _names(folders), strict=True):
        for record in request_lines(folder):
            name = run if by == "run" else _of_class(record, by, run if len(folders) > 1 else "")
            if record["finished"] is not None:
                add("e2el", "end to end", "latency (s)", name, [record["finished"] - record["arrival"]])
            for stay in record["stages"]:
                for what, values in stay_latencies(record, stay):
                    axis = {"TTFT": "time to first token (ms)", "TPOT": "time per output token (ms)"}.get(what)
                    add(what.lower(), f"{what}, {stay['stage']}", axis or "gap between tokens (ms)", name, values)
    order = {metric: i for i, metric in enumerate(METRICS)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0][0].partition(",")[0].lower(), -1)))


def _names(folders: Sequence[Path]) -> list[str]:
    """What the lines of *folders* are called: by policy and world where that tells them apart, else by folder."""
    told = []
    for folder in folders:
        meta = read_run(folder).meta
        policy = short(str(meta.get("experiment", {}).get("policy", {}).get("name", folder.name)))
        told.append(f"{policy}, {'measured' if meta.get('kind') == 'real' else 'simulated'}")
    if len(set(told)) == len(told):
        return told
    names = Counter(folder.name for folder in folders)
    return [folder.name if names[folder.name] == 1 else str(folder) for folder in folders]


def _of_class(record: dict[str, Any], by: str, run: str) -> str:
    value = record.get(by, CLASSES[by])
    own = f"{by} {value}" if value != "" else f"no {by}"
    return f"{run}, {own}" if run else own


def _distribution(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Places, and the share of *values* up to each."""
    ordered = np.sort(np.asarray(values, dtype=float))
    kept = np.unique(np.linspace(0, len(ordered) - 1, min(POINTS, len(ordered))).round().astype(int))
    return ordered[kept].tolist(), ((kept + 1) / len(ordered)).tolist()


def _far(own: dict[str, list[float]]) -> bool:
    """Whether values differ by so much that a linear axis would hide most of them."""
    values = np.concatenate([np.asarray(v) for v in own.values()])
    return bool(values.max() > 50 * np.median(values))
