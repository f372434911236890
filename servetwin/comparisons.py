"""Two runs, or two collections of runs, side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Error, spoken
from .results import Result, records_of
from .sweeps import Sweep
from .tables import Table, table_of

if TYPE_CHECKING:
    from servetwin.experiments.validation.comparison.compare_grids import Entry


class Comparison(Table):
    """How the second differs from the first.

    Of two runs, a row per metric: *metric*, *unit*, *first*, *second*, *gap* (second minus first). Of two
    collections, a row per cell that both have (*workload*, *rate*, *cv*, *slo_factor*, *policy*), with *attainment*,
    *finished* (percent of the requests), *goodput* (requests per second) and *batch* (mean size), and where steps may
    be left out *quality* (mean) and *quality_goodput* (in time, per second), each as ``_first``, ``_second`` and
    ``_gap``. *details* is all that ``servetwin compare --json`` prints: iterations by batch size,
    tokens, or decisions (docs/explanation/validation.md).
    """

    details: dict[str, Any]

    def __init__(self, table: Table, details: dict[str, Any]) -> None:
        super().__init__({name: table[name] for name in table.columns})
        self.details = details


@spoken
def compare(
    first: Result | Sweep | str | os.PathLike[str],
    second: Result | Sweep | str | os.PathLike[str],
    *,
    target: float = 0.9,
    floor: float | None = None,
    strict: bool = False,
) -> Comparison:
    """Compare two runs, each a `Result` or a run folder; or two collections of runs, each a `Sweep`, a folder of run
    folders or a sweep's table.

    For collections *target* is the attainment (a share) that a rate must hold, and *floor* the difference in
    percentage points that decides nothing, told from repeats in the first unless it is given.
    Where it is *strict*, simulated runs that are outside of what was validated by recorded ones are an error.

    Raises `Error` if one is a run and the other a collection, or what is there cannot be read.
    """
    from servetwin.experiments.validation.comparison import compare_runs as engine

    if not 0.0 < target < 1.0:
        raise Error(f"{target!r} is no attainment", where="target", right="a share between 0 and 1")
    a, b = _place(first), _place(second)
    runs = [isinstance(x, Path) and engine.is_run(x) for x in (a, b)]
    stands = _standings(a, b, strict)
    if isinstance(a, Path) and isinstance(b, Path):
        if engine.are_runs(a, b):
            details = {**engine.compare(a, b), "validity": stands}
            return Comparison(table_of(_metrics(details)), details)
    elif any(runs):
        one = "first" if runs[0] else "second"
        raise Error("this is one run, the other are many", where=one, right="two runs, or two collections")
    found = _grids(a, b, target, floor)
    found.details["validity"] = stands
    return found


def _standings(first: Path | Sweep, second: Path | Sweep, strict: bool) -> dict[str, Any]:
    """Where simulated runs of both stand, as in JSON. Raises `Error` where it is *strict* and one is outside."""
    from servetwin.experiments.validation.envelope import places, standing

    found = {}
    for name, side in (("A", first), ("B", second)):
        stands = side.validity if isinstance(side, Sweep) else places.simulated(side)
        if strict:
            standing.refuse(stands)
        if stands:
            found[name] = stands
    return places.as_dict(found)


def _grids(a: Path | Sweep, b: Path | Sweep, target: float, floor: float | None) -> Comparison:
    from servetwin.experiments.validation.comparison.compare_grids import compare_grids, grids_dict

    rows, decisions = compare_grids(_entries(a, "first"), _entries(b, "second"), target=100 * target, floor=floor)
    return Comparison(table_of(rows), grids_dict(rows, decisions))


def _place(given: object) -> Path | Sweep:
    """What is to be read: a folder or file, or a table that is there already."""
    if isinstance(given, Sweep):
        return given
    if isinstance(given, Result):
        return records_of(given)
    if isinstance(given, str | os.PathLike):
        return Path(given).expanduser()
    raise TypeError(f"{given!r} cannot be compared (right would be: a result, a sweep, or a path)")


def _entries(given: Path | Sweep, where: str) -> list[Entry]:
    from servetwin.experiments.validation.comparison.compare_grids import entries_of, read_collection

    return read_collection(given) if isinstance(given, Path) else entries_of(given, where)


def _metrics(details: dict[str, Any]) -> list[dict[str, Any]]:
    from servetwin.experiments.validation.comparison import compare_quality
    from servetwin.experiments.validation.comparison.compare_fleets import COMPARED
    from servetwin.experiments.validation.comparison.compare_llm_runs import rows_of
    from servetwin.experiments.validation.comparison.compare_runs import PERCENTILES

    found = [(name, "%", details[name]) for name in ("attainment", "finished", "dropped")]
    found += [("goodput", "requests/s", details["goodput"])]
    worth = details.get("quality", {})
    found += [(key, unit, worth[key]) for _, key, _, unit in compare_quality.FIGURES if key in worth]
    found += [(f"p{p}_latency", "s", details[f"e2el_p{p}"]) for p in PERCENTILES]
    for worker, w in details["workers"].items():
        found.append((f"mean_batch_size of {worker}", "requests", w["mean_batch_size"]))
    for stage, figures in details["tokens"].items():
        found += [(f"{label} of {stage}", "", figures[key]) for label, key, _ in rows_of(figures)]
    for part, own in COMPARED.items():
        found += [(label, "", details[part][key]) for key, label, _ in own if part in details]
    return [{"metric": name, "unit": unit, **pair} for name, unit, pair in found]
