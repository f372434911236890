"""Figures: goodput along the axes (11 and 12) and batch size over time (13), with what was measured drawn in."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from servetwin.core import Batch, Recorder

from ..assembly.build import build
from ..spec.catalog import MEASURED
from ..spec.experiment import Experiment
from ..sweeps.point import Row, main_worker
from ..validation.run_table import MeasuredRun

AXES = {"rate": "rate (requests/s)", "cv": "cv of the gaps", "slo_factor": "SLO (x solo latency)"}
TOKEN_AXES = {"rate": AXES["rate"], "cv": AXES["cv"], "decode_slo": "SLO of decoding (x alone)"}
LOOKS = {
    "neustream": ("#1f6fb4", "o"),
    "clockwork": ("#c8553d", "s"),
    "neustream-llm": ("#1f6fb4", "o"),
    "vllm": ("#c8553d", "s"),
}
OTHER_LOOK = ("#5b8c5a", "^")
NOTE = "DiT-S/2 under Clockwork: finished requests (its met count moved by 73 between two measured repeats)"
BINS = 150

#: matplotlib's own font and no time stamp: equal inputs give equal files.
STYLE: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "servetwin"}


class Drawing(Figure):
    """A figure that notebooks show, also without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=150)
        return content.getvalue()


def counted(workload: str, policy: str) -> str:
    """Which count is drawn; see `NOTE`."""
    return "finished" if (workload, policy) == ("dit-s2-256-rtx4090", "clockwork") else "met"


def label_of(policy: str, rows: Sequence[Row]) -> str:
    """What the line of *policy* is called among *rows*: with its deployment, where not all have the same."""
    if len({row.get("deployment") for row in rows}) < 2:
        return policy
    own = dict.fromkeys(str(row["deployment"]) for row in rows if row["policy"] == policy and row.get("deployment"))
    return f"{policy} ({', '.join(own)})" if own else policy


def goodput_figure(
    rows: Sequence[Row], runs: Sequence[MeasuredRun], path: Path, *, axes: Sequence[str] = tuple(AXES)
) -> Path:
    """Draw requests that met their SLO along each axis: lines simulated, marks measured.

    Each workload has a row of panels, or a single panel where there is one axis only.
    """
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    across = len(axes) == 1
    shape = (1, len(workloads)) if across else (len(workloads), len(axes))
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=((2.4 if across else 3.1) * shape[1] + 0.4, 2.1 * shape[0] + 0.7), layout="constrained"
        )
        panels = figure.subplots(*shape, squeeze=False)
        for i, workload in enumerate(workloads):
            own = [row for row in rows if row["workload"] == workload]
            base = base_of(own)
            for j, axis in enumerate(axes):
                panel = panels[0][i] if across else panels[i][j]
                _goodput_panel(panel, own, [r for r in runs if r.workload == workload], axis, base)
                panel.set_title(workload if j == 0 else "", loc="left", fontweight="bold")
                panel.set_xlabel(AXES[axis])
        for line in panels:
            line[0].set_ylabel("requests met")
        legend(figure, panels, any(counted(r["workload"], r["policy"]) == "finished" for r in rows))
        save(figure, path)
    return path


def save(figure: Figure, path: Path) -> None:
    """Write *figure*, without the date or the version of whatever wrote it."""
    unsaid: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    figure.savefig(path, dpi=150, metadata=unsaid.get(path.suffix[1:]))


def token_figure(rows: Sequence[Row], path: Path) -> Path:
    """Draw tokens on time per second along each axis, simulated; a row of panels for each workload.

    No run of these was ever logged, so nothing measured can be laid over.
    """
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * len(TOKEN_AXES) + 0.4, 2.1 * len(workloads) + 0.7), layout="constrained")
        panels = figure.subplots(len(workloads), len(TOKEN_AXES), squeeze=False)
        for line, workload in zip(panels, workloads, strict=True):
            own = [row for row in rows if row["workload"] == workload]
            base = base_of(own, TOKEN_AXES)
            for panel, axis in zip(line, TOKEN_AXES, strict=True):
                _token_panel(panel, own, axis, base)
                panel.set_title(workload if axis == "rate" else "", loc="left", fontweight="bold")
                panel.set_xlabel(TOKEN_AXES[axis])
            line[0].set_ylabel("tokens on time/s")
        legend(figure, panels)
        draws_note(figure, rows)
        save(figure, path)
    return path


def _token_panel(panel: Any, rows: Sequence[Row], axis: str, base: dict[str, float]) -> None:
    for policy in dict.fromkeys(row["policy"] for row in rows):
        colour, mark = LOOKS.get(policy, OTHER_LOOK)
        own = [
            row
            for row in rows
            if row["policy"] == policy and all(row[other] == base[other] for other in TOKEN_AXES if other != axis)
        ]
        if own:
            look = {"color": colour, "marker": mark, "markersize": 3, "linewidth": 1.2}
            line_with_intervals(
                panel, own, axis, "token_goodput", label=f"{label_of(policy, rows)}, simulated", **look
            )
    panel.set_ylim(0, 1.04 * max(row["token_goodput"] for row in rows))
    panel.grid(alpha=0.25, linewidth=0.5)


def line_with_intervals(panel: Any, rows: Sequence[Row], axis: str, column: str, **look: Any) -> None:
    """Draw *column* over *axis*, with the rows' intervals where they have them."""
    rows = sorted(rows, key=lambda row: float(row[axis]))
    places = [row[axis] for row in rows]
    panel.plot(places, [row[column] for row in rows], **look)
    ends = [(row.get(f"{column}_low"), row.get(f"{column}_high")) for row in rows]
    if all(low is not None for low, _ in ends):
        panel.fill_between(places, *zip(*ends, strict=True), color=look["color"], alpha=0.2, linewidth=0)


def draws_note(figure: Figure, rows: Sequence[Row]) -> None:
    """Say below *figure* on how many draws its *rows* stand."""
    seeds = min(int(row.get("seeds") or 1) for row in rows)
    told = (
        "one draw of arrivals and lengths: no intervals" if seeds < 2 else f"means over {seeds} seeds, 95 % intervals"
    )
    figure.supxlabel(told, fontsize=6.5, color="0.35")


def base_of(rows: Sequence[Row], axes: Iterable[str] = AXES) -> dict[str, float]:
    """The values around which each of *axes* is varied: those that most points share."""
    base = {}
    for axis in axes:
        values = [row[axis] for row in rows]
        base[axis] = max(dict.fromkeys(values), key=values.count)
    return base


def _on_axis(values: Callable[[str], Any], axis: str, base: dict[str, float]) -> bool:
    return all(values(other) == base[other] for other in AXES if other != axis)


def _goodput_panel(
    panel: Any, rows: Sequence[Row], runs: Sequence[MeasuredRun], axis: str, base: dict[str, float]
) -> None:
    for policy in dict.fromkeys(row["policy"] for row in rows):
        colour, mark = LOOKS.get(policy, OTHER_LOOK)
        count = counted(rows[0]["workload"], policy)
        line = sorted(
            (row[axis], row[count])
            for row in rows
            if row["policy"] == policy and _on_axis(row.__getitem__, axis, base)
        )
        points = [
            (getattr(run, axis), getattr(run, count))
            for run in runs
            if run.policy == policy and _on_axis(lambda name, run=run: getattr(run, name), axis, base)  # type: ignore[misc]
        ]
        if line:
            panel.plot(
                *zip(*line, strict=True), color=colour, linewidth=1.2, label=f"{label_of(policy, rows)}, simulated"
            )
        points = [(x, y) for x, y in points if y is not None]
        if points:
            look = {"linestyle": "none", "markersize": 4.5, "markerfacecolor": "none", "color": colour}
            panel.plot(*zip(*points, strict=True), marker=mark, label=f"{policy}, measured", **look)
    panel.set_ylim(0, 1.04 * rows[0]["requests"])
    panel.grid(alpha=0.25, linewidth=0.5)


def legend(figure: Figure, panels: Any, with_note: bool = False) -> None:
    """One legend for all *panels*, above them."""
    found: dict[str, Any] = {}
    for panel in panels.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=min(len(found), 4), frameon=False)
    if with_note:
        figure.supxlabel(NOTE, fontsize=6.5, color="0.35")


# -- batch size over time -------------------------------------------------------------------------------


class BatchSizes(Recorder):
    """Keeps the mean batch size of one worker over time, in *bins* of *width* seconds."""

    def __init__(self, worker: str, bins: int, width: float) -> None:
        super().__init__()
        self.worker, self.width = worker, width
        self.sizes = [0.0] * bins

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        if batch.worker.name != self.worker:
            return
        start, width = batch.start, self.width
        for number in range(int(start / width), len(self.sizes)):
            end = min(batch.end, (number + 1) * width)
            self.sizes[number] += batch.size * max(0.0, end - start) / width
            start = end
            if start >= batch.end:
                break


def batch_sizes(experiment: Experiment) -> tuple[list[float], list[float]]:
    """The middles of the bins in seconds, and the main worker's mean batch size in each."""
    span = 0.0
    for request in build(experiment).source:
        span = request.arrival
    recorder = BatchSizes(main_worker(experiment), BINS, span / BINS)
    build(experiment, recorder).play()
    return [(k + 0.5) * recorder.width for k in range(BINS)], recorder.sizes


def measured_batch_sizes() -> dict[tuple[str, str], tuple[str, list[float], list[float]]]:
    """(workload, policy) -> what was logged, times in seconds, sizes."""
    found: dict[tuple[str, str], tuple[str, list[float], list[float]]] = {}
    with (MEASURED / "batch_sizes.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            _, times, sizes = found.setdefault((row["workload"], row["policy"]), (row["kind"], [], []))
            times.append(float(row["t"]))
            sizes.append(float(row["size"]))
    return found


def batch_figure(path: Path, experiments: Sequence[Experiment]) -> Path:
    """Draw batch size over time: simulated as lines, measured as shades; a panel per workload and policy."""
    measured = measured_batch_sizes()
    workloads = list(dict.fromkeys(e.name for e in experiments))
    policies = list(dict.fromkeys(e.policy.name for e in experiments))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(policies), 1.6 * len(workloads) + 0.7), layout="constrained")
        panels = figure.subplots(len(workloads), len(policies), squeeze=False)
        for experiment in experiments:
            workload, policy = experiment.name, experiment.policy.name
            panel = panels[workloads.index(workload)][policies.index(policy)]
            if (workload, policy) in measured:
                kind, times, sizes = measured[workload, policy]
                label = "measured" if kind == "batch" else "measured: requests in flight that finished"
                panel.fill_between(times, sizes, step="mid", color="0.8" if kind == "batch" else "0.9", label=label)
            times, sizes = batch_sizes(experiment)
            panel.plot(
                times, sizes, color=LOOKS.get(policy, OTHER_LOOK)[0], linewidth=0.8, label=f"{policy}, simulated"
            )
            panel.set_title(f"{workload}, {policy}", loc="left", fontweight="bold")
            panel.set_ylim(bottom=0)
            panel.set_xlabel("time (s)")
        for row in panels:
            row[0].set_ylabel("batch size")
        legend(figure, panels)
        save(figure, path)
    return path
