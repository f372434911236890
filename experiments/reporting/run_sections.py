"""The sections of a report about runs: outcomes, latencies, what happened over time, a window, two side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from servetwin.core.arithmetic import float_sum
from servetwin.core.records import sent_at

from ..validation.comparison import compare_quality, compare_runs
from ..validation.comparison.run_files import request_lines
from . import figures, gantt, windows
from .document import Note, Part, Plot, Plots, Section, Styles, Table, number, percent, plural, seconds
from .timeline import Timeline
from .timeline import read as read_timeline

#: Bins over the time of a run.
BINS = 240
#: Keys of a request's record by which outcomes and latencies are told apart, where a run has several, and what stands
#: for a request whose record has no such key.
CLASSES: dict[str, str | int] = {"class": "", "tenant": "", "priority": 0}


@dataclass(frozen=True)
class Run:
    """A run folder, read. *name* tells it from others in the report."""

    name: str
    records: compare_runs.RunRecords
    timeline: Timeline
    requests: list[dict[str, Any]]
    faults: list[dict[str, Any]] | None = None

    @property
    def summary(self) -> dict[str, Any]:
        return self.records.summary

    @property
    def kind(self) -> str:
        return str(self.records.meta.get("kind", "unknown"))

    @property
    def experiment(self) -> dict[str, Any]:
        found: dict[str, Any] = self.records.meta.get("experiment", {})
        return found


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs in *folders*, by names of their own. Raises `BadInput`."""
    runs = []
    names = Counter(folder.name for folder in folders)
    for folder in folders:
        name = folder.name if names[folder.name] == 1 else str(folder)
        records = compare_runs.read(folder)
        lines, faults = list(request_lines(folder)), windows.faults_of(folder)
        runs.append(Run(name, records, read_timeline(folder), lines, faults))
    return runs


def style(runs: Sequence[Run], styles: Styles) -> None:
    """Give each of *runs* a style. Of a single one lines are of workers, and the first is as the run is."""
    if len(runs) == 1:
        first = next(iter(runs[0].timeline.batches), None)
        styles.share(runs[0].name, first if first is not None else runs[0].name)
    for run in runs:
        styles.of(run.name)


def held(runs: Sequence[Run]) -> list[str]:
    """A line for each worker of *runs* that went beyond what its profile measured."""
    lines = []
    for run in runs:
        for beyond in run.summary.get("held", ()):
            asked = f"{beyond['steps']} steps of {beyond['worker']}, up to {beyond['largest_asked']} {beyond['of']}"
            known = f"{beyond['profile']} knows {beyond['largest_known']} at most, whose value was held"
            lines.append(f"{run.name} went beyond what was measured: {asked}; {known}")
    return lines


def load_of(experiment: Mapping[str, Any]) -> str:
    """What requests come, and what they ask for, in words."""
    workload = experiment.get("workload", {})
    arrivals = workload.get("arrivals", {})
    said = []
    if (process := arrivals.get("process")) in ("schedule", "by_class"):
        said.append("a load over time" if process == "schedule" else "classes that come each at times of their own")
    if isinstance(rate := arrivals.get("rate"), int | float):
        said.append(f"{rate:g} requests/s")
        if isinstance(cv := arrivals.get("cv"), int | float):
            said.append(f"cv {cv:g}")
    slo = experiment.get("slo") or {}
    if isinstance(factor := slo.get("factor"), int | float):
        said.append(f"an SLO of {factor:g} times the latency alone")
    elif isinstance(limit := slo.get("seconds"), int | float):
        said.append(f"an SLO of {limit:g} s")
    elif isinstance(slo.get("prefill"), int | float) and isinstance(slo.get("decode"), int | float):
        said.append(f"token SLOs of {slo['prefill']:g} (prefill) and {slo['decode']:g} (decode)")
    limits = slo.get("limits") or {}
    said += [f"{name.removesuffix('_ms')} within {ms:g} ms" for name, ms in limits.items() if ms is not None]
    return ", ".join(said)


def question(run: Run) -> str:
    experiment = run.experiment
    load = load_of(experiment)
    devices = sorted(set((experiment.get("deployment") or {}).get("devices", {}).values()))
    where = f" on {', '.join(devices)}" if devices else ""
    real = {"real": " (measured)", "simulated": " (simulated)"}.get(run.kind, "")
    under = experiment.get("policy", {}).get("name", "?")
    return f"How many requests of {experiment.get('name', '?')} meet their SLO under {under}{where}{real}" + (
        f", with {load}?" if load else "?"
    )


def answer(run: Run) -> str:
    s = run.summary
    if not s["requests"]:
        return "None was sent."
    parts = [f"{s['met']} of {plural(s['requests'], 'request')} ({percent(s['attainment'])})"]
    if s["request_goodput"] is not None:
        parts.append(f"a goodput of {number(s['request_goodput'])} requests/s")
    others = [f"{s[name]} {word}" for name, word in (("late", "late"), ("dropped", "dropped"), ("failed", "failed"))]
    return f"{', '.join(parts)}; {', '.join(others)}."


def facts(run: Run) -> list[tuple[str, str]]:
    s = run.summary
    found = [("attainment", percent(s["attainment"])), ("goodput, requests/s", number(s["request_goodput"]))]
    found.append((f"finished, of {s['requests']}", str(s["met"] + s["late"])))
    found += [
        ("latency p50 of these", seconds(_s(s.get("median_e2el_ms")))),
        ("latency p99", seconds(_s(s.get("p99_e2el_ms")))),
    ]
    worth = compare_quality.quality_of(s)
    for label, key, digits, _ in compare_quality.FIGURES[:2] if worth else ():
        found.append((label, "–" if worth[key] is None else f"{worth[key]:.{digits}f}"))
    for stage, tokens in s.get("llm", {}).items():
        of = f" of {stage}" if len(s["llm"]) > 1 else ""
        found.append((f"TTFT p99{of}", seconds(_s(tokens.get("p99_ttft_ms")))))
        found.append((f"TPOT p99{of}", seconds(_s(tokens.get("p99_tpot_ms")))))
    busy = [run.timeline.mean(level) for level in run.timeline.busy.values()]
    if busy:
        found.append(("devices busy", percent(float_sum(busy) / len(busy))))
    return found


def _s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3


def sections(
    runs: Sequence[Run],
    styles: Styles,
    window: tuple[float, float] | None,
    by_window: tuple[float | None, float | None] = (None, None),
) -> list[Section]:
    """The sections about *runs*; *by_window*: the seconds of windows that they are told by, and an objective."""
    found = [Section("Outcomes", [outcome_plots(runs), *tables(runs), *groups(runs), *_reasons(runs)])]
    if latencies := latency_plots(runs, styles):
        found.append(Section("Latencies", [*latencies, *unfinished(runs)]))
    found.append(Section("Over time", [*over_time(runs, styles), *kept_up(runs, styles, *by_window)]))
    charts = gantts(runs, window)
    if charts is not None:
        found.append(
            Section("A closer look", [charts, *(Note(text, of_plots=True) for text in (GANTT, *_undated(runs)))])
        )
    return found


GANTT = (
    "Each line is a request: dotted and thin while it waits, thick while it is served, with a mark where it ends"
    " (circle: met, diamond: late, cross: dropped, square: failed). Below are the batches of each worker; the darker,"
    " the larger."
)


def _undated(runs: Sequence[Run]) -> list[str]:
    """A sentence, where records do not say when a request was dropped or failed, as those of older versions."""
    gone = (r for run in runs for r in run.requests if r["outcome"] in ("dropped", "failed"))
    if all(record.get("ended") is not None for record in gone):
        return []
    return ["Where it is not recorded when a request was dropped, its line ends with the last that is known of it."]


def outcome_plots(runs: Sequence[Run]) -> Plots:
    counts: dict[str, dict[str, int]] = {}
    for run in runs:
        label = run.name if len(runs) > 1 else "all"
        counts[label] = {name: run.summary[name] for name in ("met", "late", "dropped", "failed")}
        of_class = _classes(run)
        for record in run.requests if of_class is not None else ():
            assert of_class is not None
            own = counts.setdefault(f"{run.name + ': ' if len(runs) > 1 else ''}{of_class(record)}", Counter())
            own[record["outcome"]] += 1
    says = "; ".join(f"{name}: " + ", ".join(f"{n} {o}" for o, n in own.items() if n) for name, own in counts.items())
    plot = Plot("How requests ended", figures.outcomes(counts), says, wide=True)
    kinds = [o for o in ("met", "late", "dropped", "failed") if any(own.get(o) for own in counts.values())]
    return Plots([plot], [(kind, "outcome") for kind in kinds])


def tables(runs: Sequence[Run]) -> list[Table]:
    """Counts and rates, latencies, batches, and what was handed over from prefill to decode, of each run."""
    first = [[n, *(str(run.summary[n]) for run in runs)] for n in ("requests", "met", "late", "dropped", "failed")]
    first.append(["attainment", *(percent(run.summary["attainment"]) for run in runs)])
    for label, key in (("goodput", "request_goodput"), ("throughput", "request_throughput")):
        first.append([f"{label}, requests/s", *(number(run.summary.get(key)) for run in runs)])
    second = [[run.name, *row] for run in runs for row in _latency_rows(run)]
    third = [
        [
            run.name,
            worker,
            str(own["iterations"]),
            number(own["mean_batch_size"]),
            str(own.get("max_batch_size", "–")),
        ]
        for run in runs
        for worker, own in run.summary["workers"].items()
    ]
    handed = [
        [run.name, stage, str(own["handovers"]), *(seconds(_s(own[f"mean_handover{k}_ms"])) for k in ("_wait", ""))]
        for run in runs
        for stage, own in run.summary.get("llm", {}).items()
        if own.get("handovers")
    ]
    skip = 1 if len(runs) == 1 else 0
    found = [
        Table(["", *(run.name for run in runs)], first, "Requests"),
        Table(["", *(run.name for run in runs)], _quality_rows(runs), "Quality, by the experiment's table"),
        Table(["", *(run.name for run in runs)], _fleet_rows(runs), "Replicas and what they cost"),
        Table(["run", "", "mean", "p50", "p90", "p99"][skip:], [row[skip:] for row in second], "Latencies"),
        Table(
            ["run", "worker", "iterations", "mean size", "largest"][skip:], [row[skip:] for row in third], "Batches"
        ),
        Table(
            ["run", "stage", "handed over", "mean wait", "mean time on the way"][skip:],
            [row[skip:] for row in handed],
            "From prefill to decode",
        ),
    ]
    return [table for table in found if table.rows]


#: What a summary says of replicas that come and go, and of money: the part, the key, and what it is called.
FLEET = (
    ("fleet", "mean_replicas", "replicas, mean"),
    ("fleet", "most_replicas", "replicas, at most"),
    ("fleet", "starts", "starts"),
    ("fleet", "waited_for_a_replica", "waits for a replica"),
    ("faults", "failures", "failures"),
    ("faults", "mean_availability", "availability, mean"),
    ("faults", "mean_seconds_to_notice", "seconds until a failure was noticed, mean"),
    ("faults", "visits_lost", "visits lost"),
    ("faults", "visits_retried", "visits sent again"),
    ("faults", "gave_up", "requests given up"),
    ("faults", "lost_device_seconds", "seconds of computing lost"),
    ("cost", "device_hours", "device-hours"),
    ("cost", "dollars", "dollars"),
    ("cost", "dollars_per_hour", "dollars per hour"),
    ("cost", "dollars_per_1000_requests", "dollars per 1,000 requests"),
    ("cost", "dollars_per_million_output_tokens", "dollars per million output tokens"),
    ("cost", "met_per_dollar", "met their SLO per dollar"),
)


def _fleet_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Replicas and dollars, where one of *runs* has any."""

    def told(value: float | None) -> str:
        return str(value) if isinstance(value, int) else number(value, 4)

    parts = [{key: run.summary.get(part, {}).get(key) for part, key, _ in FLEET} for run in runs]
    known = [(key, what) for part, key, what in FLEET if any(key in run.summary.get(part, {}) for run in runs)]
    return [[what, *(told(own[key]) for own in parts)] for key, what in known]


def _quality_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Quality beside goodput, where one of *runs* has any."""
    found = [compare_quality.quality_of(run.summary) for run in runs]
    if not any(found):
        return []
    known = [(label, digits, [own.get(key) for own in found]) for label, key, digits, _ in compare_quality.FIGURES]
    return [[label, *("–" if x is None else f"{x:.{digits}f}" for x in values)] for label, digits, values in known]


def _latency_rows(run: Run) -> list[list[str]]:
    """Mean, median and tails of each latency: as the summary says, and of the requests' records where it does not."""
    s = run.summary
    keys = ("mean", "median", "p90", "p99")
    rows = [["end to end", *(seconds(_s(s.get(f"{key}_e2el_ms"))) for key in keys)]]
    records = _token_latencies(run)
    for stage, tokens in s.get("llm", {}).items():
        of = f" of {stage}" if len(s["llm"]) > 1 else ""
        for metric in ("TTFT", "TPOT", "ITL"):
            found = {key: tokens.get(f"{key}_{metric.lower()}_ms") for key in keys}
            values = records.get((metric, stage))
            if found["p90"] is None and values:
                found["p90"] = float(np.percentile(values, 90))
            rows.append([f"{metric}{of}", *(seconds(_s(found[key])) for key in keys)])
    return rows


def _token_latencies(run: Run) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for record in run.requests:
        for stay in record["stages"]:
            for metric, values in stay_latencies(record, stay):
                found.setdefault((metric, stay["stage"]), []).extend(values)
    return found


def groups(runs: Sequence[Run]) -> list[Part]:
    """The results by class and by tenant, and how fairly tenants were served, where the summary has them."""
    rows, fair = [], []
    for run in runs:
        for kind in ("classes", "tenants"):
            for name, own in run.summary.get(kind, {}).items():
                label = f"{kind.removesuffix('es' if kind == 'classes' else 's')} {name or '(none)'}"
                figures_of = [str(own["requests"]), percent(own["attainment"]), number(own["request_goodput"])]
                tails = [seconds(_s(own.get(key))) for key in ("mean_e2el_ms", "p99_e2el_ms")]
                rows.append([run.name, label, *figures_of, *tails])
        if found := run.summary.get("fairness"):
            said = f"Jain's index over tenants: {number(found['jain_attainment'])} of attainments"
            fair.append(f"{said}, {number(found['jain_service'])} of service by weight ({run.name}; 1 is equal).")
    skip = 1 if len(runs) == 1 else 0
    columns = ["run", "", "requests", "attainment", "goodput, requests/s", "latency mean", "latency p99"]
    made: list[Part] = [Table(columns[skip:], [row[skip:] for row in rows], "By class and tenant")] if rows else []
    return [*made, *map(Note, fair)]


def _reasons(runs: Sequence[Run]) -> list[Table]:
    """Why requests were dropped or failed, where that is recorded."""
    found: Counter[tuple[str, str, str]] = Counter()
    for run in runs:
        for record in run.requests:
            if record["outcome"] in ("dropped", "failed"):
                found[run.name, record["outcome"], record["reason"] or "no reason recorded"] += 1
    rows = [[*key, str(n)] for key, n in found.most_common(20)]
    return [Table(["run", "outcome", "reason", "requests"], rows, "Why requests did not finish")] if rows else []


def _classes(run: Run) -> Callable[[Mapping[str, Any]], str] | None:
    """What class a record of the run is of, in words: by the first key in which its requests differ; None if they do
    not."""
    for key, usual in CLASSES.items():
        if 1 < len({record.get(key, usual) for record in run.requests}) <= 8:
            return partial(_class_of, key, usual)
    return None


def _class_of(key: str, usual: str | int, record: Mapping[str, Any]) -> str:
    value = record.get(key, usual)
    return f"no {key}" if value == "" else f"{key} {value}"


def latency_plots(runs: Sequence[Run], styles: Styles) -> list[Plots]:
    """Distributions: end to end, and of the tokens of each LLM stage; by class where requests have some."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        of_class = _classes(run)
        for record in run.requests:
            name = run.name
            if of_class is not None:
                name = of_class(record) if len(runs) == 1 else f"{run.name}, {of_class(record)}"
            if record["finished"] is not None:
                values = found.setdefault("latency end to end, s", {}).setdefault(name, [])
                values.append(record["finished"] - record["arrival"])
            for stay in record["stages"]:
                for what, value in stay_latencies(record, stay):
                    found.setdefault(f"{what} of {stay['stage']}, ms", {}).setdefault(name, []).extend(value)
    if not found:
        return []
    names = list(dict.fromkeys(name for own in found.values() for name in own))
    for name in names:
        styles.of(name)
    plots = []
    for title, own in found.items():
        medians = ", ".join(f"{name}: {number(float(np.median(v)))} in the median" for name, v in own.items() if v)
        plots.append(Plot(_capital(title.rpartition(",")[0]), figures.distribution(own, styles, x=title), medians))
    legend = [(name, "line") for name in names] if len(names) > 1 else []
    return [Plots(plots, legend, shown=8, more="more stages")]


def unfinished(runs: Sequence[Run]) -> list[Note]:
    """A sentence on who has no latency, where not all requests finished."""
    said = []
    for run in runs:
        s = run.summary
        finished = s["met"] + s["late"]
        if finished < s["requests"]:
            of = f" of {run.name}" if len(runs) > 1 else ""
            others = [f"{s[name]} {name}" for name in ("dropped", "failed") if s[name]]
            said.append(f"{finished} of {plural(s['requests'], 'request')}{of} finished; {' and '.join(others)} ones")
    return [Note(f"{'; '.join(said)} have no latency end to end.")] if said else []


def stay_latencies(record: Mapping[str, Any], stay: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """TTFT, TPOT and, where the times of tokens are kept, ITL of *stay*, a stage of a request's *record*, in
    milliseconds."""
    first, last = stay.get("first_token"), stay.get("last_token")
    if first is None:
        return []
    found = [("TTFT", [1e3 * (first - sent_at(record, stay))])]
    if last is not None and stay["finished"] is not None and stay.get("generated", 0) > 1:
        found.append(("TPOT", [1e3 * (last - first) / (stay["generated"] - 1)]))
    if len(stay.get("tokens", ())) > 1:
        found.append(("ITL", [*(1e3 * np.diff(stay["tokens"]))]))
    return found


def over_time(runs: Sequence[Run], styles: Styles) -> list[Plots | Note]:
    """Batch sizes, queues, KV cache use and how busy devices are, as means over `BINS` parts of each run; of several
    runs, a figure for each worker with a line for each run. A figure's only line is named in its title, the others in
    the legend."""
    end = max(run.timeline.end for run in runs)
    edges = np.linspace(0.0, max(end, 1e-9), BINS + 1)
    found: dict[tuple[str, str, bool], dict[str, Any]] = {}
    notes: dict[str, None] = {}
    for run in runs:
        line = run.timeline
        seen = edges[:-1] <= line.end
        for what, unit, share, levels in (
            ("Requests waiting", "requests", False, {w: v.means(edges) for w, v in line.waiting.items()}),
            ("Batch size", "requests", False, {w: b.mean_sizes(edges) for w, b in line.batches.items()}),
            ("KV cache use", "share of the cache", True, _kv_shares(line, edges)),
            ("KV cache", "tokens", False, {w: v.means(edges) for w, v in line.kv.items() if w not in line.capacity}),
            ("Device busy", "share of the time", True, {d: v.means(edges) for d, v in line.busy.items()}),
        ):
            for name, values in levels.items():
                title, shown = (what, name) if len(runs) == 1 else (f"{what}, {name}", run.name)
                values = np.where(seen, values.clip(0, 1 if share else None), np.nan)
                found.setdefault((title, unit, share), {})[shown] = values
        notes |= dict.fromkeys(f"KV cache use of {w} is not shown: {why}." for w, why in line.untold.items())
    names = list(dict.fromkeys(name for own in found.values() if len(own) > 1 for name in own))
    plots = []
    for (what, unit, share), own in found.items():
        title = f"{what}: {next(iter(own))}" if len(own) == 1 else what
        highest = {n: float(np.nanmax(v)) for n, v in own.items() if not np.all(np.isnan(v))}
        says = ", ".join(f"{n}: at most {percent(h) if share else number(h)}" for n, h in highest.items())
        plots.append(Plot(title, figures.over_time(own, edges, styles, y=unit, share=share), says))
    note = f"Means over {BINS} parts of {number(float(edges[1] - edges[0]))} s each."
    return [
        Plots(plots, [(name, "line") for name in names], shown=8, more="more workers"),
        *(Note(text, of_plots=True) for text in (note, *notes)),
    ]


def kept_up(
    runs: Sequence[Run], styles: Styles, width: float | None = None, objective: float | None = None
) -> list[Part]:
    """Whether each of *runs* kept up with its load, by windows of *width* seconds: who met the SLO of those
    that came in each, and each overload (`servetwin.experiments.reporting.windows`)."""
    found: dict[str, windows.Windows] = {}
    width = width or windows.neat(max(max(run.timeline.end for run in runs), 1e-9) / 30)
    for run in runs:
        found[run.name] = windows.of_records(run.requests, run.timeline, width, objective, run.faults)
    most = max((own.windows for own in found.values()), key=len)
    if not most:
        return []
    edges = np.array([*(w.begin for w in most), most[-1].end])
    lines: dict[str, Sequence[float]] = {
        name: [*(math.nan if w.attainment is None else w.attainment for w in own.windows)]
        + [math.nan] * (len(most) - len(own.windows))
        for name, own in found.items()
    }
    title = f"Attainment of those that came in each {number(width)} s"
    drawn = figures.over_time(lines, edges, styles, y="share that met its SLO", share=True)
    skip = 1 if len(runs) == 1 else 0
    says = "; ".join(f"{name + ': ' if not skip else ''}{own.lines()[0]}" for name, own in found.items())
    parts: list[Part] = [Plots([Plot(title, drawn, says)], [] if skip else [(name, "line") for name in found])]
    rows = [
        [
            name,
            *(f"{one.begin:.1f}", f"{one.peak:.1f}", str(one.waiting)),
            *(("–", "–") if one.end is None else (f"{one.end:.1f}", f"{one.recovery:.1f}")),
            f"{one.missed} of {one.requests}",
        ]
        for name, own in found.items()
        for one in own.overloads
    ]
    columns = ["run", "from, s", "longest at, s", "waiting then", "over at, s", "after, s", "missed their SLO"]
    if rows:
        parts.append(Table(columns[skip:], [row[skip:] for row in rows], "Overloads"))
    if failed := [[name, *_felt(fault)][skip:] for name, own in found.items() for fault in own.faults or ()]:
        columns = [
            "run",
            "at, s",
            "what",
            "until, s",
            "noticed at, s",
            "waited at most",
            "recovered after, s",
            "missed",
        ]
        parts.append(Table(columns[skip:], failed, "Faults"))
    budgets = [line for own in found.values() if own.budget is not None for line in own.lines()[-1:]]
    return [*parts, *(Note(f"{_capital(line)}.") for line in budgets)]


def _felt(fault: windows.Fault) -> list[str]:
    """A row of the table of faults, but for the run."""
    noticed, recovery = ("–" if x is None else f"{x:.1f}" for x in (fault.noticed, fault.recovery))
    until = "for ever" if fault.until is None else f"{fault.until:.1f}"
    missed = f"{fault.missed} of {fault.requests}"
    return [f"{fault.at:.1f}", f"{fault.kind}, {fault.what}", until, noticed, str(fault.waiting), recovery, missed]


def _kv_shares(line: Timeline, edges: np.ndarray) -> dict[str, np.ndarray]:
    return {w: level.means(edges) / line.capacity[w] for w, level in line.kv.items() if w in line.capacity}


def gantts(runs: Sequence[Run], window: tuple[float, float] | None) -> Plots | None:
    """A chart of a window for each run: the same for all, chosen by the first, if none is given."""
    chosen = window or gantt.choose(runs[0].timeline, [float(x) for x in runs[0].records.latencies])
    plots = []
    for run in runs[:4]:
        made = gantt.chart(run.timeline, run.requests, chosen)
        if made is not None:
            title = f"{run.name}: " if len(runs) > 1 else ""
            says = f"{made[1]}" if title else _capital(made[1])
            plots.append(
                Plot(f"{title}{chosen[1]:.3g} s from {chosen[0]:.4g} s on", made[0], says, wide=len(runs) == 1)
            )
    kinds = [kind for kind in ("met", "late", "dropped", "failed") if any(r.summary[kind] for r in runs)]
    legend = [("waiting", "outcome"), *((kind, "outcome") for kind in kinds)]
    return Plots(plots, legend) if plots else None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- two runs -------------------------------------------------------------------------------------------


def difference(first: Run, second: Run) -> tuple[str, str]:
    """What two runs are asked, and the answer: how far a simulation is from what was measured, if they are that."""
    kinds = {"real": "measured", "simulated": "simulated"}
    sides = [f"{run.name} ({kinds.get(run.kind, run.kind)})" for run in (first, second)]
    if {first.kind, second.kind} == {"real", "simulated"}:
        asked = f"How close are the simulated and the measured run, {sides[0]} and {sides[1]}?"
    else:
        asked = f"How does {sides[1]} differ from {sides[0]}?"
    a, b = (run.summary for run in (first, second))
    if a["attainment"] is None or b["attainment"] is None:
        return asked, "One of them sent no request."
    gap = 100 * (b["attainment"] - a["attainment"])
    return asked, (
        f"By {gap:+.1f} points of attainment: {percent(b['attainment'])} of the requests met their SLO against"
        f" {percent(a['attainment'])}; goodput {number(b['request_goodput'])} against {number(a['request_goodput'])}"
        " requests/s."
    )


def comparison(first: Run, second: Run) -> Section:
    """Two runs side by side, as `servetwin compare` has them."""
    found = compare_runs.compare(first.records.folder, second.records.folder)
    rows = []
    for label, key, digits in (
        ("attainment, %", "attainment", 2),
        ("finished, %", "finished", 2),
        ("dropped, %", "dropped", 2),
        ("goodput, requests/s", "goodput", 4),
        *((f"latency p{p}, s", f"e2el_p{p}", 3) for p in compare_runs.PERCENTILES),
    ):
        rows.append([label, *_pair(found[key], digits)])
    for label, key, digits, _ in compare_quality.FIGURES if "quality" in found else ():
        rows.append([label, *_pair(found["quality"][key], digits)])
    for worker, own in found["workers"].items():
        rows.append([f"mean batch of {worker}", *_pair(own["mean_batch_size"], 3)])
    for stage, own in found["tokens"].items():
        rows += [
            [f"{key.removesuffix('_ms').replace('_', ' ')} of {stage}, ms", *_pair(own[key], 1)]
            for key in own
            if key.endswith("_ms")
        ]
    parts: list[Any] = [Table(["", first.name, second.name, "second minus first"], rows)]
    if found["other_requests"] is not None:
        parts.append(Note(f"The two did not serve the same requests: {found['other_requests']}."))
    elif found["same_outcome"] is not None:
        parts.append(Note(f"{found['same_outcome']:.2f} % of the requests ended the same way in both."))
    return Section("Side by side", parts)


def _pair(pair: Mapping[str, float | None], digits: int) -> list[str]:
    first, second, gap = (pair[key] for key in ("first", "second", "gap"))
    cells = ["–" if x is None else f"{x:.{digits}f}" for x in (first, second)]
    return [*cells, "–" if gap is None else f"{gap:+.{digits}f}"]
