"""The demonstration: NeuStream and Clockwork on simulated GPUs, beside what was measured on real ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...plotting.paper_figures import goodput_figure
from ...sweeps import tables
from ...sweeps.point import Progress, Row, run_all_averaged, settings_of
from ...validation.comparison import run_table
from ...validation.comparison.run_table import MeasuredRun
from ...validation.score import Scored

#: Every other rate of each workload, and all of DiT-S/2: with both policies some fifty runs.
EVERY = {"dit-s2-256-rtx4090": 1}

#: Seeds of the noise that each run is averaged over.
SEEDS = 5


@dataclass(frozen=True)
class Demo:
    """What the demonstration shows."""

    scored: list[Scored]
    figure: Path

    def example(self) -> list[Scored]:
        """DiT-S/2 at 4 requests per second, the point of the first paragraph of the README."""
        return [s for s in self.scored if s.run.workload == "dit-s2-256-rtx4090" and s.run.rate == 4.0]


def chosen_runs() -> list[MeasuredRun]:
    """The measured runs that are repeated: the rate axes, one run per point."""
    _, runs = run_table.read(run_table.NEUSTREAM)
    first: dict[tuple[str, str, float], MeasuredRun] = {}
    for run in runs:
        if run.cells["axis"] == "rate":
            first.setdefault((run.workload, run.policy, run.rate), run)
    chosen = []
    for workload in dict.fromkeys(w for w, _, _ in first):
        rates = sorted({r for w, _, r in first if w == workload})[:: -EVERY.get(workload, 2)]
        chosen += [run for (w, _, rate), run in first.items() if w == workload and rate in rates]
    return chosen


def demo(out: Path, *, jobs: int = -1, progress: Progress | None = None) -> Demo:
    """Repeat the chosen runs in simulation and draw them into the folder *out*."""
    runs = chosen_runs()
    experiments = run_table.experiments(runs, run_table.NEUSTREAM)
    report = (lambda done, share: progress(done, SEEDS * len(runs), share)) if progress else None
    results = run_all_averaged(experiments, SEEDS, jobs=jobs, progress=report)
    tables.make_folder(out)
    rows: list[Row] = [{**settings_of(e), **r} for e, r in zip(experiments, results, strict=True)]
    figure = out / "demo.png"
    goodput_figure(rows, runs, axes=("rate",)).save(figure)
    return Demo([Scored(run, result) for run, result in zip(runs, results, strict=True)], figure)
