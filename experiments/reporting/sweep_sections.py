"""The sections of a report about a sweep's table: curves over each setting, who is best where, how far it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Any

from servetwin.core.arithmetic import float_sum

from .document import Note, Part, Plot, Plots, Section, Styles, Table, number, percent, plain, plural
from .figures import Series, lines
from .sweep_columns import LINE, name_lines, number_in, short, varied_columns

Row = dict[str, Any]

#: What an axis is called.
AXES = {
    "rate": "rate, requests/s",
    "cv": "cv of the gaps between arrivals",
    "slo_factor": "SLO, times the latency alone",
    "prefill_slo": "prefill SLO, times the latency alone",
    "decode_slo": "decode SLO, times the latency alone",
    "deployment.replicas": "replicas",
}
#: What is drawn over each axis: column, title, axis, whether it is a share; what follows, over the first axis only.
MAIN = (
    ("attainment", "Attainment", "requests that met their SLO", True, 1.0),
    ("request_goodput", "Goodput", "goodput, requests/s", False, 1.0),
)
MORE = (
    ("quality_goodput", "Quality in time", "quality of those in time per second", False, 1.0),
    ("mean_quality", "Quality, mean", "quality", False, 1.0),
    ("token_goodput", "Tokens on time", "tokens on time per second", False, 1.0),
    ("p99_e2el_ms", "Latency, p99", "latency p99, s", False, 1e-3),
    ("p99_ttft_ms", "TTFT, p99", "TTFT p99, ms", False, 1.0),
    ("p99_tpot_ms", "TPOT, p99", "TPOT p99, ms", False, 1.0),
    ("mean_batch_size", "Batch size, mean", "requests", False, 1.0),
)
#: The most rows of a table that a page shows.
ROWS = 40


@dataclass
class Grid:
    """A sweep's rows, with the names of their lines, and by which settings they differ. *measured* are points of real
    runs, to be laid over."""

    rows: list[Row]
    where: str
    measured: list[Row] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [dict(row) for row in self.rows]
        self.others = name_lines(self.rows, varied_columns(self.rows, self.where), "policy")
        self.others = [name for name in self.others if name != "policy"]

    @property
    def lines(self) -> list[str]:
        return list(dict.fromkeys(row[LINE] for row in self.rows))

    @property
    def axes(self) -> list[str]:
        """The settings that vary and are numbers, rate, SLO and cv first."""
        first = {name: i for i, name in enumerate(AXES)}
        numeric = [n for n in self.others if all(number_in(row.get(n)) is not None for row in self.rows)]
        return sorted(numeric, key=lambda n: first.get(n, len(first)))

    @property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(str(row["workload"]) for row in self.rows))

    def setting(self, row: Row, but: str | None = None) -> tuple[tuple[str, str], ...]:
        return tuple((name, str(row.get(name))) for name in self.others if name != but)

    def panels(self, axis: str) -> dict[tuple[tuple[str, str], ...], list[Row]]:
        """The rows over an *axis* by all other settings; those with one place on it tell nothing of it."""
        found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in self.rows:
            found.setdefault(self.setting(row, axis), []).append(row)
        several = {key: own for key, own in found.items() if len({number_in(row[axis]) for row in own}) > 1}
        return several or found

    def by_setting(self) -> dict[tuple[tuple[str, str], ...], dict[str, list[Row]]]:
        found: dict[tuple[tuple[str, str], ...], dict[str, list[Row]]] = {}
        for row in self.rows:
            found.setdefault(self.setting(row), {}).setdefault(row[LINE], []).append(row)
        return found


def title_of(setting: Sequence[tuple[str, str]]) -> str:
    """A *setting* in words."""
    words = {"slo_factor": "SLO", "workload": "", "policy": ""}
    said = [f"{words.get(name, name)} {_as_given(value)}".strip() for name, value in setting]
    return ", ".join(said) or "all settings"


def _as_given(text: str) -> str:
    value = number_in(text)
    return text if value is None else plain(value)


def mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [v for row in rows if (v := number_in(row.get(name))) is not None]
    return fmean(known) if known else None


def question(grid: Grid) -> str:
    spans = []
    for name in grid.axes:
        places = sorted({number_in(row[name]) or 0.0 for row in grid.rows})
        label = {"slo_factor": "SLO factor"}.get(name, name)
        few = " and ".join(f"{p:g}" for p in places) if len(places) <= 2 else f"{places[0]:g} to {places[-1]:g}"
        spans.append(f"{label} {few}")
    what = f"of {', '.join(grid.workloads)}" if len(grid.workloads) <= 3 else f"of {len(grid.workloads)} workloads"
    over = f", over {', '.join(spans)}" if spans else ""
    if len(grid.lines) == 1:
        return f"How many requests {what} does {grid.lines[0]} serve within their SLO{over}?"
    names = ", ".join(grid.lines) if len(grid.lines) <= 6 else f"{len(grid.lines)} systems"
    return f"Which of {names} serves most requests {what} within their SLO{over}?"


@dataclass(frozen=True)
class Standing:
    """How a line fares among the others: its mean attainment over the settings that all have, in how many of them it
    is best (ties count for all who share them), and in how many of these beyond chance (`_surely`). *quality* is the
    quality in time per second (``quality_goodput``) with the ends of its interval, averaged alike; None where a
    setting has none."""

    line: str
    attainment: float
    best: int
    surely: int
    settings: int
    quality: tuple[float, float | None, float | None] | None = None


def _surely(first: Sequence[Row], second: Sequence[Row]) -> bool:
    """Whether attainment of the *first* is above that of the *second* beyond chance: by the differences seed by seed
    where the sweep has them (``--versus``), else as their intervals do not overlap."""
    for rows, against, sign in ((first, second, 1.0), (second, first, -1.0)):
        columns = f"attainment_minus_{against[0].get('policy')}"
        low, high = mean(rows, f"{columns}_low"), mean(rows, f"{columns}_high")
        if low is not None and high is not None:
            return min(sign * low, sign * high) > 0.0
    low, high = mean(first, "attainment_low"), mean(second, "attainment_high")
    return low is not None and high is not None and high < low


def standings(grid: Grid) -> list[Standing]:
    """The lines of a grid, the best on average first."""
    names = grid.lines
    common = [own for own in grid.by_setting().values() if all(name in own for name in names)]
    sums, best, surely = (dict.fromkeys(names, 0.0) for _ in range(3))
    for own in common:
        at = {name: mean(rows, "attainment") or 0.0 for name, rows in own.items()}
        most = max(at.values())
        for name in names:
            sums[name] += at[name]
            if most - at[name] > 1e-9:
                continue
            best[name] += 1
            surely[name] += all(_surely(own[name], own[other]) for other in names if other != name)
    n = len(common)
    if not n:
        return []
    worth = {name: _quality([own[name] for own in common]) for name in names}
    found = [Standing(name, sums[name] / n, int(best[name]), int(surely[name]), n, worth[name]) for name in names]
    return sorted(found, key=lambda s: -s.attainment)


def _quality(settings: Sequence[Sequence[Row]]) -> tuple[float, float | None, float | None] | None:
    """`Standing.quality` of a line with these rows by setting."""
    ends: list[float | None] = []
    for column in ("quality_goodput", "quality_goodput_low", "quality_goodput_high"):
        known = [value for rows in settings if (value := mean(rows, column)) is not None]
        ends.append(fmean(known) if len(known) == len(settings) else None)
    return None if ends[0] is None else (ends[0], ends[1], ends[2])


def by_quality(ranked: Sequence[Standing]) -> list[tuple[Standing, str]]:
    """Those of *ranked* with their quality in time, in words, the highest first; none if one of them has none. Of one
    setting the interval is said, too."""
    found = []
    for one in ranked:
        if one.quality is None:
            return []
        value, low, high = one.quality
        span = f" ({low:.3f} to {high:.3f})" if one.settings == 1 and low is not None and high is not None else ""
        found.append((value, one, f"{value:.3f}/s{span}"))
    return [(one, said) for _, one, said in sorted(found, key=lambda each: -each[0])]


def alike(ranked: Sequence[Standing]) -> list[str]:
    """The lines that are first among *ranked*: more than one where their attainments are equal."""
    return [one.line for one in ranked if ranked[0].attainment - one.attainment <= 1e-9]


def listed(names: Sequence[str]) -> str:
    """*names* in a sentence."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def holding(grid: Grid, target: float) -> dict[tuple[tuple[str, str], ...], dict[str, float | None]]:
    """By setting and line, the largest rate of the grid up to which attainment holds *target* (percent) at each rate
    from the lowest on; None if it does not at the lowest."""
    if "rate" not in grid.axes:
        return {}
    found: dict[tuple[tuple[str, str], ...], dict[str, float | None]] = {}
    for setting, rows in grid.panels("rate").items():
        for name in dict.fromkeys(row[LINE] for row in rows):
            own: dict[float, list[Row]] = {}
            for row in rows:
                if row[LINE] == name:
                    own.setdefault(number_in(row["rate"]) or 0.0, []).append(row)
            held: float | None = None
            for rate in sorted(own):
                if 100.0 * (mean(own[rate], "attainment") or 0.0) < target:
                    break
                held = rate
            found.setdefault(setting, {})[name] = held
    return found


def answer(grid: Grid, target: float) -> str:
    ranked = standings(grid)
    shares = [v for row in grid.rows if (v := number_in(row.get("attainment"))) is not None]
    if len(grid.lines) == 1 or not ranked:
        said = f"{grid.lines[0]} meets" if len(grid.lines) == 1 else "They meet"
        text = f"{said} {percent(min(shares))} to {percent(max(shares))} of the requests"
    else:
        first, same = ranked[0], alike(ranked)
        who = f"{first.line} meets most" if len(same) == 1 else f"{listed(same)} meet alike"
        text = f"{who} on average, {percent(first.attainment)} of the requests"
        for second in ranked[len(same) : len(same) + 1]:
            text += f" ({second.line}, the next, {percent(second.attainment)})"
        if len(same) == 1:
            text += f", and is best in {first.best} of {plural(first.settings, 'setting')}"
            if any("attainment_low" in row for row in grid.rows):
                text += f", in {first.surely} of them beyond the intervals"
        if worth := by_quality(ranked):
            text += f". Quality in time is highest with {worth[0][0].line}, {worth[0][1]}"
    return f"{text}{_held_by(grid, target)}."


def _held_by(grid: Grid, target: float) -> str:
    """Who holds *target* on most curves over the rate, and up to which; those who hold it alike are named together.
    Then those who come next."""
    held = holding(grid, target)
    if not held:
        return ""
    curves = plural(len(held), "curve")
    alike: dict[tuple[int, float], list[str]] = {}
    for name in grid.lines:
        rates = [rate for own in held.values() if (rate := own.get(name)) is not None]
        if rates:
            alike.setdefault((len(rates), max(rates)), []).append(name)
    if not alike:
        return f". {target:g} % is held by nobody, on none of {curves} over the rate"
    said = [
        f"by {listed(names)} on {count} (up to {plain(most)} requests/s)"
        for (count, most), names in sorted(alike.items(), reverse=True)[:2]
    ]
    return f". {target:g} % is held {', '.join(said)} of {curves} over the rate"


def facts(grid: Grid) -> list[tuple[str, str]]:
    found = [("points", str(len(grid.rows))), ("systems", str(len(grid.lines)))]
    seeds = {n for row in grid.rows if (n := number_in(row.get("seeds"))) is not None}
    if seeds:
        found.append(("seeds per point", " to ".join(f"{s:g}" for s in sorted({min(seeds), max(seeds)}))))
    total = float_sum((number_in(row.get("requests")) or 0) * (number_in(row.get("seeds")) or 1) for row in grid.rows)
    if total:
        found.append(("requests", f"{total:,.0f}".replace(",", " ")))
    if grid.measured:
        found.append(("measured points", str(len(grid.measured))))
    return found


def sections(grid: Grid, styles: Styles, target: float) -> list[Section]:
    for name in grid.lines:
        styles.of(name)
    found = [Section("Who serves most", [*ranking_table(grid), *holding_table(grid, target)])]
    for number_of, axis in enumerate(grid.axes):
        parts: list[Plots] = []
        for column, title, label, share, scale in (*MAIN, *(MORE if number_of == 0 else ())):
            parts += curves(grid, axis, column, title, label, styles, share=share, scale=scale)
        if parts:
            found.append(Section(f"Over the {AXES.get(axis, axis).partition(',')[0]}", together(parts)))
    return found


def together(parts: Sequence[Plots]) -> list[Plots]:
    """The *parts* in one, where each has one figure."""
    if any(len(part.plots) > 1 for part in parts) or not parts:
        return [*parts]
    legend = dict(line for part in parts for line in part.lines)
    return [Plots([plot for part in parts for plot in part.plots], [*legend.items()], shown=8, more="more figures")]


def ranking_table(grid: Grid) -> list[Part]:
    ranked = standings(grid)
    if len(ranked) < 2:
        return []
    intervals = any("attainment_low" in row for row in grid.rows)
    rows = [
        [s.line, percent(s.attainment), f"{s.best} of {s.settings}", *([str(s.surely)] if intervals else [])]
        for s in ranked
    ]
    columns = ["", "mean attainment", "best in settings", *(["of these beyond the intervals"] if intervals else [])]
    if worth := {one.line: said for one, said in by_quality(ranked)}:
        columns.append("quality in time")
        rows = [[*row, worth[row[0]]] for row in rows]
    caption = "Over the settings that all have; ties count for all who share them"
    return [Table(columns, rows, caption)]


def holding_table(grid: Grid, target: float) -> list[Part]:
    held = holding(grid, target)
    if not held:
        return []
    names = grid.lines
    rows = [
        [
            title_of(setting),
            *(plain(own[n]) if own.get(n) is not None else "none" if n in own else "–" for n in names),
        ]
        for setting, own in held.items()
    ]
    caption = f"Largest rate of the grid, in requests/s, up to which attainment holds {target:g} %"
    parts: list[Part] = [Table(["setting", *names], rows[:ROWS], caption)]
    if len(rows) > ROWS:
        parts.append(Note(f"{len(rows) - ROWS} more settings are in the table itself."))
    return parts


def curves(
    grid: Grid, axis: str, column: str, title: str, label: str, styles: Styles, *, share: bool, scale: float
) -> list[Plots]:
    """A figure of *column*, times *scale*, over *axis* for each setting of the rest; nothing if the table has no such
    column."""
    if all(number_in(row.get(column)) is None for row in grid.rows):
        return []
    plots: list[Plot] = []
    used: dict[str, str] = {}
    for setting, rows in grid.panels(axis).items():
        series = [
            made
            for name in dict.fromkeys(row[LINE] for row in rows)
            if (made := _series(name, [row for row in rows if row[LINE] == name], axis, column, scale))
        ]
        series += _measured(grid, setting, rows, axis, column, scale)
        if not series:
            continue
        used |= {one.name: "line" for one in series}
        says = "; ".join(
            f"{one.name} from {_say(one.y[0], share)} to {_say(one.y[-1], share)}" for one in series if not one.marks
        )
        figure = lines(series, styles, x=AXES.get(axis, axis), y=label, share=share)
        plots.append(Plot(f"{title}: {title_of(setting)}" if setting else title, figure, says))
    legend = list(used.items())
    if any(trace.get("mode") == "markers" for plot in plots for trace in plot.figure["data"]):
        legend.append(("measured", "measured"))
    return [Plots(plots, legend)] if plots else []


def _say(value: float | None, share: bool) -> str:
    return percent(value) if share else number(value)


def _series(name: str, rows: Sequence[Row], axis: str, column: str, scale: float) -> Series | None:
    at: dict[float, list[Row]] = {}
    for row in rows:
        place = number_in(row[axis])
        if place is not None and number_in(row.get(column)) is not None:
            at.setdefault(place, []).append(row)
    places = sorted(at)
    if not places:
        return None

    def over(what: str) -> list[float]:
        return [scale * (mean(at[p], what) or 0.0) for p in places]

    ends = (f"{column}_low", f"{column}_high")
    # What an interval says of a count below zero is no news.
    known = all(number_in(row.get(end)) is not None for end, p in product(ends, places) for row in at[p])
    low, high = ([max(v, 0.0) for v in over(end)] if known else None for end in ends)
    return Series(name, places, over(column), low, high)


def _measured(
    grid: Grid, setting: Sequence[tuple[str, str]], rows: Sequence[Row], axis: str, column: str, scale: float
) -> list[Series]:
    """The measured points of a panel: those of the same workload and of its policies, at its rate, cv and SLO."""
    first = rows[0]
    fixed = [name for name in ("rate", "cv", "slo_factor") if name != axis]
    places = [number_in(row[axis]) or 0.0 for row in rows]
    policies = {row["policy"] for row in rows}

    def fits(m: Row) -> bool:
        place = number_in(m.get(axis))
        inside = place is not None and min(places) <= place <= max(places)
        same = m["workload"] == first["workload"] and all(_equal(m.get(n), first.get(n)) for n in fixed)
        return inside and same and m["policy"] in policies and number_in(m.get(column)) is not None

    own = [m for m in grid.measured if fits(m)]
    found = []
    for policy in dict.fromkeys(m["policy"] for m in own):
        name = next((row[LINE] for row in rows if row["policy"] == policy), short(str(policy)))
        points = sorted(
            (number_in(m[axis]) or 0.0, scale * (number_in(m[column]) or 0.0)) for m in own if m["policy"] == policy
        )
        found.append(Series(name, [x for x, _ in points], [y for _, y in points], marks=True))
    return found


def _equal(a: Any, b: Any) -> bool:
    first, second = number_in(a), number_in(b)
    if first is None or second is None:
        return first is second
    return abs(first - second) <= 1e-9 * max(abs(first), abs(second), 1e-9)
