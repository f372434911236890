"""Each measured run beside its simulation: the points that the rows of the scoreboard are made of.

``python -m servetwin.experiments.validation.scoreboard`` keeps them in ``experiments/measured/points.csv`` and writes
them into docs/reference/scoreboard-points.md. A point is *inside* if the simulation is within `LIMIT` of what was
measured. The simulation is the same for the same seed, so a test that simulates a point with the first one or two of
its seeds knows whether it has moved (`judge`); it fails where a point that was inside is outside.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..registry.catalog import MEASURED

if TYPE_CHECKING:
    from .score import Scored

#: What is kept.
KEPT = MEASURED / "points.csv"

#: How far off the simulation may be, in percentage points of the requests of a run.
LIMIT = 3.0

COLUMNS = ("row", "point", "blind", "requests", "measured", "simulated", "gap", "limit", "stands", "by_seed")


@dataclass(frozen=True)
class Point:
    """A run under one SLO: how many of its *requests* met it when *measured*, and in simulation by each seed.

    *row* is the name of its row of the scoreboard, *name* its own there. *blind* says whether the simulation was
    fixed before the run was seen: ``yes``; ``then`` if the program has changed since; ``no``.
    """

    row: str
    name: str
    blind: str
    requests: int
    measured: int
    by_seed: tuple[float, ...]

    @property
    def simulated(self) -> float:
        return float_sum(self.by_seed) / len(self.by_seed)

    def gap(self, simulated: float | None = None) -> float:
        """Simulated minus measured, in percentage points of the requests."""
        met = self.simulated if simulated is None else simulated
        return 100.0 * (met - self.measured) / self.requests

    @property
    def within_limit(self) -> bool:
        return is_within(self.gap())

    def cells(self) -> tuple[str, ...]:
        told = "inside" if self.within_limit else "outside"
        numbers = (f"{self.requests}", f"{self.measured}", f"{self.simulated:.10g}", f"{self.gap():.2f}")
        seeds = " ".join(f"{met:g}" for met in self.by_seed)
        return (self.row, self.name, self.blind, *numbers, f"{LIMIT:g}", told, seeds)


def is_within(gap: float) -> bool:
    """Sums of shares that are exactly at the limit are not to fall beyond it by their last bit."""
    return abs(gap) <= LIMIT + 1e-9


def points_of(row: str, blind: str, scored: Iterable[Scored]) -> list[Point]:
    """The points of what `score` gave for the runs of *row*; runs whose met requests nobody counted are none."""
    found, seen = [], dict[str, int]()
    for s in scored:
        if s.run.met is None:
            continue
        name = name_of(s)
        seen[name] = seen.get(name, 0) + 1
        numbered = f"{name} ({seen[name]})" if seen[name] > 1 else name
        found.append(Point(row, numbered, blind, s.run.requests, s.run.met, tuple(s.result["met_by_seed"])))
    return found


def name_of(s: Scored) -> str:
    """What tells a run from the others of its row: its own name, or its settings."""
    run, cells = s.run, s.run.cells
    if cells.get("run"):
        return cells["run"]
    if cells.get("folder"):
        return f"{run.workload} {cells['folder']}"  # of one model; another one's may be called the same
    if "ttft_limit_s" in cells:
        return f"{run.workload} ttft {cells['ttft_limit_s']} tpot {cells['tpot_limit_s']}"
    numbers = (("rate", run.rate), ("cv", run.cv), ("slo", run.slo_factor))
    told = [f"{name} {value:g}" for name, value in numbers if not math.isnan(value)]
    repeat = f"repeat {cells['repeat']}" if cells.get("repeat", "0") not in ("", "0") else ""
    return " ".join(filter(None, (run.workload, run.policy, *told, repeat)))


# -- what is kept ---------------------------------------------------------------------------------------


def kept(path: Path | None = None) -> dict[str, list[Point]]:
    """The points by row, as they were scored last. Raises `BadInput`."""
    path = path or KEPT
    found: dict[str, list[Point]] = {}
    if not path.exists():
        return found
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise BadInput("has other columns than points have", where=str(path), right=", ".join(COLUMNS))
        for line in reader:
            seeds = tuple(map(float, line["by_seed"].split()))
            numbers = (int(line["requests"]), int(line["measured"]), seeds)
            point = Point(line["row"], line["point"], line["blind"], *numbers)
            found.setdefault(point.row, []).append(point)
    return found


def text(rows: Iterable[Sequence[Point]]) -> str:
    """The content of the file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(point.cells() for points in rows for point in points)
    return out.getvalue()


# -- what has changed -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What is to be said of points that were simulated again, a line each: those that *left* the limit, those that
    *came* inside, and those that *moved* on one side of it."""

    left: tuple[str, ...] = ()
    came: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()

    def __add__(self, other: Judged) -> Judged:
        return Judged(self.left + other.left, self.came + other.came, self.moved + other.moved)


def judge(before: Iterable[Point], now: Mapping[str, float], seeds: int) -> Judged:
    """Of *before*, those that were simulated again with their first *seeds* seeds; *now* is what these met on
    average, by the points' names. What the same seeds met before is known, so that the difference is that of the
    program and no draw of the noise. Raises `BadInput` if one of *now* is not known.
    """
    known = {point.name: point for point in before}
    if unknown := sorted(now.keys() - known.keys()):
        what = f"{unknown[0]} is not among the points that are kept"
        right = "python -m servetwin.experiments.validation.scoreboard"
        raise BadInput(what, where=KEPT.name, right=right)
    lines: dict[tuple[bool, bool], list[str]] = {}
    for name, met in now.items():
        point = known[name]
        first = point.by_seed[:seeds]
        shift = met - float_sum(first) / len(first)
        if abs(shift) < 1e-6:
            continue
        gap = point.gap(point.simulated + shift)
        line = f"{point.row}: {name} was {point.gap():+.2f} points off and is {gap:+.2f} (limit {LIMIT:g})"
        lines.setdefault((point.within_limit, is_within(gap)), []).append(line)
    stayed = (*lines.get((True, True), ()), *lines.get((False, False), ()))
    return Judged(tuple(lines.get((True, False), ())), tuple(lines.get((False, True), ())), stayed)


def judge_all(before: Iterable[Point], after: Iterable[Point]) -> Judged:
    """Likewise of points all of whose seeds were simulated again; those that are new are passed by."""
    old = {point.name: point for point in before}
    new = [point for point in after if point.name in old]
    found = Judged()
    for point in new:
        was = old[point.name]
        found += judge([was], {point.name: point.simulated}, len(was.by_seed))
    return found


# -- tables ---------------------------------------------------------------------------------------------


def table(title: str, blind: str, points: Sequence[Point]) -> str:
    """The points of a row, as a section of the page; shares in percent of the requests."""
    within = sum(point.within_limit for point in points)
    lines = [
        f"## {title}",
        "",
        f"Blind? {blind[:1].upper()}{blind[1:]}. Inside: {within} of {len(points)}.",
        "",
        "| run | requests | measured | simulated | gap | |",
        "|---|---|---|---|---|---|",
    ]
    for point in points:
        share = 100.0 / point.requests
        was, said = f"{share * point.measured:.2f}", f"{share * point.simulated:.2f}"
        stands = "inside" if point.within_limit else "**outside**"
        lines.append(f"| {point.name} | {point.requests} | {was} | {said} | {point.gap():+.2f} | {stands} |")
    return "\n".join(lines)
