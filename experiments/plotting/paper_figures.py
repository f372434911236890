"""Figures: goodput along the axes (11, 12, 14, 15) and batch size over time (13), with what was measured drawn in.

Each function draws a `Sheet`; its `save` writes the figure, and what it shows as a table.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from servetwin.core import Batch, Recorder

from ..assembly.build import build
from ..registry.catalog import MEASURED
from ..spec.experiment import Experiment
from ..sweeps.point import Row, main_worker
from ..validation.comparison.run_table import MeasuredRun
from .style import Look, Sheet, drawing, look_of

AXES = {"rate": "rate (requests/s)", "cv": "cv of the gaps", "slo_factor": "SLO (× solo latency)"}
TOKEN_AXES = {"rate": AXES["rate"], "cv": AXES["cv"], "decode_slo": "SLO of decoding (× alone)"}
BINS = 150

#: Where what was met and what finished are drawn both: the met count moved by 73 between two measured repeats.
BOTH = {("dit-s2-256-rtx4090", "clockwork")}


def counts_of(workload: str, policy: str) -> tuple[str, ...]:
    """Which counts of requests are drawn, see `BOTH`."""
    return ("met", "finished") if (workload, policy) in BOTH else ("met",)


def deployments_of(rows: Sequence[Row]) -> str | None:
    """Which deployments the policies of *rows* ran on, in words, where not all ran on the same."""
    if len({row.get("deployment") for row in rows}) < 2:
        return None
    said = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = dict.fromkeys(str(row["deployment"]) for row in rows if row["policy"] == policy and row["deployment"])
        said.append(f"{policy} on {' or '.join(own)}")
    return f"deployments: {'; '.join(said)}"


def goodput_figure(rows: Sequence[Row], runs: Sequence[MeasuredRun], *, axes: Sequence[str] = tuple(AXES)) -> Sheet:
    """Requests that met their SLO along each axis: lines simulated, marks measured.

    Each workload has a row of panels, or a single panel where there is one axis only.
    """
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    across = len(axes) == 1
    shape = (1, len(workloads)) if across else (len(workloads), len(axes))
    with drawing():
        sheet = Sheet(*shape, sharey=across)
        for i, workload in enumerate(workloads):
            own = [row for row in rows if row["workload"] == workload]
            base = base_of(own)
            for j, axis in enumerate(axes):
                panel = sheet.panels[0][i] if across else sheet.panels[i][j]
                sheet.describe(panel, workload, AXES[axis], "requests met", titled=j == 0, edges=True)
                _goodput_panel(sheet, panel, own, [r for r in runs if r.workload == workload], axis, base)
        sheet.legend()
        if told := deployments_of(rows):
            sheet.note(told)
    return sheet


def token_figure(rows: Sequence[Row]) -> Sheet:
    """Tokens on time per second along each axis, simulated; a row of panels for each workload.

    No run of these was ever logged, so nothing measured can be laid over.
    """
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    with drawing():
        sheet = Sheet(len(workloads), len(TOKEN_AXES))
        for line, workload in zip(sheet.panels, workloads, strict=True):
            own = [row for row in rows if row["workload"] == workload]
            base = base_of(own, TOKEN_AXES)
            for panel, axis in zip(line, TOKEN_AXES, strict=True):
                name = TOKEN_AXES[axis]
                sheet.describe(panel, workload, name, "tokens on time/s", titled=axis == "rate", edges=True)
                _token_panel(sheet, panel, own, axis, base)
        sheet.legend()
        told = deployments_of([row for row in rows if row["workload"] == workloads[0]])
        sheet.note("; ".join(filter(None, (draws_of(rows), told))))
    return sheet


def _token_panel(sheet: Sheet, panel: Any, rows: Sequence[Row], axis: str, base: dict[str, float]) -> None:
    policies = [*dict.fromkeys(row["policy"] for row in rows)]
    for policy in policies:
        own = [
            row
            for row in rows
            if row["policy"] == policy and all(row[other] == base[other] for other in TOKEN_AXES if other != axis)
        ]
        if own:
            line_with_intervals(sheet, panel, policy, look_of(policy, policies), own, axis, "token_goodput")
    panel.set_ylim(0, 1.04 * max(row.get("token_goodput_high") or row["token_goodput"] for row in rows))


def line_with_intervals(
    sheet: Sheet, panel: Any, name: str, look: Look, rows: Sequence[Row], axis: str, column: str
) -> None:
    """Draw *column* over *axis*, with the rows' intervals where they have them."""
    rows = sorted(rows, key=lambda row: float(row[axis]))
    ends: list[list[Any]] = [[row.get(f"{column}_{end}") for row in rows] for end in ("low", "high")]
    known = all(end is not None for side in ends for end in side)
    places, values = ([row[what] for row in rows] for what in (axis, column))
    sheet.line(panel, name, look, places, values, (ends[0], ends[1]) if known else None)


def draws_of(rows: Sequence[Row]) -> str:
    """On how many draws the simulated *rows* stand."""
    seeds = min(int(row.get("seeds") or 1) for row in rows)
    if seeds < 2:
        return "simulated; one draw of arrivals and lengths: no intervals"
    return f"simulated; means over {seeds} seeds, 95 % intervals"


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
    sheet: Sheet,
    panel: Any,
    rows: Sequence[Row],
    runs: Sequence[MeasuredRun],
    axis: str,
    base: dict[str, float],
) -> None:
    policies = [*dict.fromkeys(row["policy"] for row in rows)]
    for policy in policies:
        own = [row for row in rows if row["policy"] == policy and _on_axis(row.__getitem__, axis, base)]
        own.sort(key=lambda row: float(row[axis]))
        measured = [r for r in runs if r.policy == policy and _on_axis(lambda n, r=r: getattr(r, n), axis, base)]  # type: ignore[misc]
        for count in counts_of(rows[0]["workload"], policy):
            look, name = look_of(policy, policies), policy
            if count == "finished":
                look, name = look.dashed("D"), f"{policy}, finished (DiT-S/2)"
            if own:
                sheet.line(panel, name, look, [r[axis] for r in own], [r[count] for r in own], marked=False)
            found = [(getattr(r, axis), getattr(r, count)) for r in measured if getattr(r, count) is not None]
            sheet.marks(panel, name, look, [x for x, _ in found], [y for _, y in found])
    most: dict[float, float] = {}
    for row in rows:
        if row.get("bound") is not None and _on_axis(row.__getitem__, axis, base):
            most[row[axis]] = max(most.get(row[axis], 0.0), row["bound"] * row["requests"])
    sheet.limit(panel, most)
    counts = [float(row["requests"]) for row in rows] + [float(run.requests) for run in runs]
    panel.set_ylim(0, 1.05 * max(counts))


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


def batch_figure(experiments: Sequence[Experiment]) -> Sheet:
    """Batch size over time: simulated as lines, measured as shades; a panel per workload and policy."""
    measured = measured_batch_sizes()
    workloads = list(dict.fromkeys(e.name for e in experiments))
    policies = list(dict.fromkeys(e.policy.name for e in experiments))
    with drawing():
        sheet = Sheet(len(workloads), len(policies), height=1.0)
        for experiment in experiments:
            workload, policy = experiment.name, experiment.policy.name
            panel = sheet.panels[workloads.index(workload)][policies.index(policy)]
            sheet.describe(panel, f"{workload}, {policy}", "time (s)", "batch size", edges=True)
            if (workload, policy) in measured:
                kind, times, sizes = measured[workload, policy]
                label = "measured" if kind == "batch" else "measured: requests in flight that finished"
                sheet.shade(panel, label, "0.8" if kind == "batch" else "0.9", times, sizes)
            times, sizes = batch_sizes(experiment)
            sheet.line(panel, f"{policy}, simulated", look_of(policy, policies), times, sizes, marked=False)
            panel.set_ylim(bottom=0)
        sheet.legend()
        sheet.note("one draw of arrivals and steps, that of the measured runs: no intervals")
    return sheet
