"""All published figures into one folder: ``servetwin plot``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..sweeps import sweep
from ..sweeps.point import Row
from ..validation import run_table
from . import paper_figures_agents
from .paper_figures import batch_figure, goodput_figure, token_figure


def draw_all(
    out: Path,
    *,
    ending: str = "png",
    jobs: int = -1,
    seeds: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draw Figures 11 to 15, 17 and 19 into the folder *out*; the points behind all but the third are kept as CSV.
    With *seeds* those of language models are means over so many, with intervals; else they are one draw."""
    _, runs = run_table.read(run_table.NEUSTREAM)
    files = []
    for name in ("figure11", "figure12"):
        table = out / f"{name}.csv"
        rows = sweep.sweep(name, table, jobs=jobs, progress=progress)
        files += [table, goodput_figure(rows, runs, out / f"{name}.{ending}")]
    path = sweep.find("figure13")
    experiments, _ = sweep.points(sweep.read(path), path)
    files.append(batch_figure(out / f"figure13.{ending}", experiments))
    drawn: dict[str, Callable[[Sequence[Row], Path], Path]] = {
        "figure14": token_figure,
        "figure15": token_figure,
        "figure17": paper_figures_agents.agents_figure,
        "figure19": paper_figures_agents.first_and_last_figure,
    }
    for name, draw in drawn.items():
        table = out / f"{name}.csv"
        rows = sweep.sweep(name, table, jobs=jobs, seeds=seeds, progress=progress)
        files += [table, draw(rows, out / f"{name}.{ending}")]
    return files
