"""Published figures into one folder: ``servetwin figures``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from servetwin.core import BadInput

from ..bound import sweep_bounds
from ..sweeps import sweep
from ..sweeps.point import Row
from ..validation.comparison import run_table
from . import paper_figures_agents
from .paper_figures import batch_figure, goodput_figure, token_figure
from .style import ENDINGS, Sheet

#: Figures by their numbers in the NeuStream paper; those of agents and language models can be drawn over many seeds.
GOODPUT, BATCHES = (11, 12), 13
DRAWN: dict[int, Callable[[Sequence[Row]], Sheet]] = {
    14: token_figure,
    15: token_figure,
    17: paper_figures_agents.agents_figure,
    19: paper_figures_agents.first_and_last_figure,
}
NUMBERS = (*GOODPUT, BATCHES, *DRAWN)


def check(numbers: Sequence[int], endings: Sequence[str], seeds: int | None, *, bound: bool = False) -> None:
    """Raise `BadInput` if a figure has no such number, a file no such ending, or *seeds* or *bound* are of no use."""
    for number in numbers:
        if number not in NUMBERS:
            raise BadInput(f"there is no figure {number}", where="FIGURES", right=", ".join(map(str, NUMBERS)))
    for ending in endings:
        if ending not in ENDINGS:
            raise BadInput(f"{ending!r} is no format", where="--format", right=" or ".join(ENDINGS))
    if seeds is not None and numbers and not set(numbers) & set(DRAWN):
        what = "Figures 11 to 13 have the arrivals of the measured runs, whatever the seed"
        raise BadInput(what, where="--seeds", right=f"with one of {', '.join(map(str, DRAWN))}")
    if bound and numbers and not set(numbers) & set(GOODPUT):
        what = "a bound is of requests met, which Figures 11 and 12 show"
        raise BadInput(what, where="--bound", right="with 11 or 12")


def draw_all(
    out: Path,
    numbers: Sequence[int] = (),
    *,
    endings: Sequence[str] = ("png",),
    jobs: int = -1,
    seeds: int | None = None,
    bound: bool = False,
    progress: Callable[..., None] | None = None,
) -> list[Path]:
    """Draw the figures with these *numbers* (all of `NUMBERS`) into the folder *out*, in each of the formats
    *endings*; the files written.

    Beside each figure is what it shows (``NAME.data.csv``) and, but for the third, the table of its sweep. With
    *seeds* those of language models are means over so many, with intervals; else they are one draw. With *bound*
    Figures 11 and 12 show the most that any schedule could meet. Raises `BadInput`.
    """
    check(numbers, endings, seeds, bound=bound)
    files: list[Path] = []
    for number in [n for n in NUMBERS if not numbers or n in numbers]:
        name = f"figure{number}"
        report = partial(progress, name) if progress is not None else None
        paths = [out / f"{name}.{ending}" for ending in dict.fromkeys(endings)]
        if number == BATCHES:
            path = sweep.find(name)
            experiments, _ = sweep.points(sweep.read(path), path)
            files += batch_figure(experiments).save(*paths)
            continue
        table = out / f"{name}.csv"
        repeats = None if number in GOODPUT else seeds
        beside = sweep_bounds if bound and number in GOODPUT else None
        rows = sweep.sweep(name, table, jobs=jobs, seeds=repeats, beside=beside, progress=report)
        sheet = _goodput(rows) if number in GOODPUT else DRAWN[number](rows)
        files += [*sheet.save(*paths), table]
    return files


def _goodput(rows: Sequence[Row]) -> Sheet:
    _, runs = run_table.read(run_table.NEUSTREAM)
    return goodput_figure(rows, runs)
