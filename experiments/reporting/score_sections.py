"""The sections of a report about pairs of measured and simulated runs: a score's table, or a comparison's cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..validation.comparison.compare_grids import Decisions, Entry, Setting, decide, grids_of
from .document import Note, Part, Plot, Plots, Section, Styles, Table, number, percent, plural
from .figures import against
from .sweep_columns import number_in
from .sweep_sections import Grid, curves

Row = dict[str, Any]

#: The runs that are furthest off, of which this many are listed.
WORST = 10


@dataclass(frozen=True)
class Pair:
    """A setting under a policy, measured and simulated; shares of requests from 0 to 1. *counted* says of whom."""

    workload: str
    policy: str
    rate: float | None
    cv: float | None
    slo_factor: float | None
    measured: float
    simulated: float
    counted: str = "met"
    variant: str | None = None

    @property
    def gap(self) -> float:
        """Simulated minus measured, in points."""
        return 100.0 * (self.simulated - self.measured)

    def __str__(self) -> str:
        numbers = (("rate", self.rate), ("cv", self.cv), ("SLO", self.slo_factor))
        said = [f"{name} {x:g}" for name, x in numbers if x is not None]
        return ", ".join([self.workload, self.policy, *said])


def of_score(rows: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """The pairs of a table that `servetwin score` wrote; by requests that finished, where only these were counted."""
    pairs = []
    for row in rows:
        requests = number_in(row.get("requests"))
        for counted in ("met", "finished"):
            was, is_now = number_in(row.get(counted)), number_in(row.get(f"sim_{counted}"))
            if requests and was is not None and is_now is not None:
                rate, cv, factor = (number_in(row.get(key)) for key in ("rate", "cv", "slo_factor"))
                variant = row.get("variant") or row.get("deployment") or None
                shares = was / requests, is_now / requests
                pairs.append(
                    Pair(str(row["workload"]), str(row["policy"]), rate, cv, factor, *shares, counted, variant)
                )
                break
    return pairs


def of_cells(rows: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """The pairs of a table that `servetwin compare` wrote of two collections."""
    pairs = []
    for row in rows:
        first, second = number_in(row.get("attainment_first")), number_in(row.get("attainment_second"))
        if first is not None and second is not None:
            rate, cv, factor = (number_in(row.get(key)) for key in ("rate", "cv", "slo_factor"))
            pairs.append(Pair(str(row["workload"]), str(row["policy"]), rate, cv, factor, first / 100, second / 100))
    return pairs


def question(pairs: Sequence[Pair], names: tuple[str, str]) -> str:
    workloads = list(dict.fromkeys(p.workload for p in pairs))
    of = ", ".join(workloads) if len(workloads) <= 3 else f"{len(workloads)} workloads"
    if names == ("measured", "simulated"):
        return f"How far are simulated attainments from measured ones, over {plural(len(pairs), 'run')} of {of}?"
    return f"How far are two collections of runs apart, over {plural(len(pairs), 'cell')} of {of}?"


def answer(pairs: Sequence[Pair], target: float) -> str:
    gaps = [p.gap for p in pairs]
    sizes = [abs(g) for g in gaps]
    worst = max(pairs, key=lambda p: abs(p.gap))
    text = (
        f"By {fmean(sizes):.2f} points on average ({fmean(gaps):+.2f} with the sign), by {max(sizes):.2f} at"
        f" most ({worst})"
    )
    found = decisions(pairs, target)
    if found.decided:
        text += f"; both name the same best policy in {found.same} of {found.decided} settings where one is ahead"
    return text + "."


def decisions(pairs: Sequence[Pair], target: float) -> Decisions:
    """What one would decide from either side; *target* in percent."""
    sides: tuple[list[Entry], list[Entry]] = ([], [])
    for p in pairs:
        setting = Setting(p.workload, p.rate, p.cv, p.slo_factor)
        for side, share in zip(sides, (p.measured, p.simulated), strict=True):
            side.append(Entry(setting, p.policy, None, 100 * share, 100 * share, deployment=p.variant))
    return decide(*grids_of(*sides), target=target)


def facts(pairs: Sequence[Pair], target: float) -> list[tuple[str, str]]:
    sizes = [abs(p.gap) for p in pairs]
    found = decisions(pairs, target)
    said = [("runs", str(len(pairs))), ("mean gap", f"{fmean(sizes):.2f} points")]
    said.append(("largest gap", f"{max(sizes):.2f} points"))
    if found.decided:
        said.append(("same best policy", f"{found.same} of {found.decided}"))
    if found.pairs:
        said.append(("same order of two", f"{found.same_order} of {found.pairs}"))
    return said


def sections(pairs: Sequence[Pair], styles: Styles, target: float, names: tuple[str, str]) -> list[Section]:
    parts: list[Part] = [*scatters(pairs, styles, names), gap_table(pairs), worst_table(pairs, names)]
    if any(p.counted == "finished" for p in pairs):
        parts.append(Note("Where only requests that finished were counted, these are compared instead of those met."))
    found = [Section("Gaps", parts)]
    said = decision_notes(decisions(pairs, target))
    if said:
        found.append(Section("Decisions", said))
    found += _over_axes(pairs, styles, names)
    return found


def scatters(pairs: Sequence[Pair], styles: Styles, names: tuple[str, str]) -> list[Plots]:
    """One over the other, a figure for each workload; of one workload by cv and so on that is one figure."""
    by_workload: dict[str, dict[str, list[tuple[float, float, str]]]] = {}
    for p in pairs:
        own = by_workload.setdefault(p.workload, {}).setdefault(p.policy, [])
        own.append((p.measured, p.simulated, str(p)))
    policies = list(dict.fromkeys(p.policy for p in pairs))
    for policy in policies:
        styles.of(policy)
    plots = []
    for workload, points in by_workload.items():
        mine = [p for p in pairs if p.workload == workload]
        says = f"{plural(len(mine), 'point')}, {number(fmean(abs(p.gap) for p in mine))} points apart on average"
        what = "finished" if all(p.counted == "finished" for p in mine) else "attainment"
        plots.append(Plot(workload, against(points, styles, what=what, names=names), says))
    return [Plots(plots, [(policy, "marks") for policy in policies], shown=9, more="more workloads")]


def gap_table(pairs: Sequence[Pair]) -> Table:
    groups: dict[tuple[str, str], list[float]] = {}
    for p in pairs:
        groups.setdefault((p.workload, p.policy), []).append(p.gap)
    if len(groups) > 1:
        groups["all", ""] = [p.gap for p in pairs]
    rows = [
        [*key, str(len(gaps)), f"{fmean(map(abs, gaps)):.2f}", f"{max(map(abs, gaps)):.2f}", f"{fmean(gaps):+.2f}"]
        for key, gaps in groups.items()
    ]
    columns = ["workload", "policy", "runs", "mean gap", "largest gap", "mean with its sign"]
    return Table(columns, rows, "Gaps in percentage points of the requests sent")


def worst_table(pairs: Sequence[Pair], names: tuple[str, str]) -> Table:
    worst = sorted(pairs, key=lambda p: -abs(p.gap))[:WORST]
    rows = [[str(p), percent(p.measured), percent(p.simulated), f"{p.gap:+.2f}"] for p in worst]
    return Table(["run", *names, "gap, points"], rows, f"The {len(worst)} furthest off")


def decision_notes(found: Decisions) -> list[Part]:
    """What `servetwin score` says of decisions."""
    if not found.settings and not found.curves:
        return []
    rows = []
    if found.settings:
        rows.append(["best policy of a setting", f"{found.same} of {found.decided}"])
        rows.append(["settings within the noise, which decide nothing", str(found.settings - found.decided)])
        rows.append(["order of two policies", f"{found.same_order} of {found.pairs}"])
    if found.tau is not None:
        rows.append(["Kendall's tau, mean over settings", f"{found.tau:.2f}"])
    if found.curves:
        label = f"largest rate at {found.target:g} % within one step of the grid"
        rows.append([label, f"{found.within} of {found.curves}"])
    parts: list[Part] = [Table(["the same on both sides", ""], rows)]
    lines = [
        *(f"Another best policy: {line}." for line in found.others),
        *(f"Another order: {line}." for line in [*found.swaps, *found.ties]),
        *(f"Another rate: {line}." for line in found.off),
    ]
    return [*parts, *(Note(line) for line in lines[:20])]


def _over_axes(pairs: Sequence[Pair], styles: Styles, names: tuple[str, str]) -> list[Section]:
    """Simulated lines with measured points over each setting that varies."""

    def row(p: Pair, share: float) -> Row:
        where = {"workload": p.workload, "policy": p.policy, "rate": p.rate, "cv": p.cv, "slo_factor": p.slo_factor}
        return {**where, "deployment": p.variant, "met": share, "attainment": share}

    grid = Grid([row(p, p.simulated) for p in pairs], "the table", [row(p, p.measured) for p in pairs])
    found = []
    for axis in grid.axes:
        label = "requests that met their SLO" if all(p.counted == "met" for p in pairs) else "requests"
        parts = curves(grid, axis, "attainment", "Attainment", label, styles, share=True, scale=1.0)
        if parts:
            words = {"rate": "rate", "slo_factor": "SLO"}
            found.append(
                Section(
                    f"Over the {words.get(axis, axis)}",
                    [Note(f"Lines: {names[1]}. Open marks: {names[0]}.", of_plots=True), *parts],
                )
            )
    return found
