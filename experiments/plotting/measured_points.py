"""Points that were measured, to be laid over a sweep's: of the NeuStream artifact, and of tables and run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from servetwin.core import BadInput

from ..spec import yaml_io
from ..spec.experiment import Experiment
from ..sweeps import sweep
from ..sweeps.point import Row, settings_of
from ..validation.comparison import run_table
from ..validation.comparison.compare_grids import read_rows
from ..validation.comparison.compare_runs import find_runs
from ..validation.comparison.compare_runs import read as read_run
from ..validation.comparison.run_table import MeasuredRun

#: Where a row keeps the points that belong to it.
COLUMN = "measured: "
#: The settings by which a point belongs to a row, where both have them.
PLACE = ("rate", "cv", "slo_factor", "prefill_slo", "decode_slo")
RIGHT = "run folders, a folder of them, or a table of measured runs, of sweep or of score"


def beside(table: Path, rows: Sequence[Row]) -> list[list[Row]]:
    """For each of the *rows* of a sweep's *table* the runs of the NeuStream artifact that were set up as it is: the
    same workload, policy, deployment, system, rate, cv and SLO, and as many requests. What a row's setup is stands in
    the file that the sweep wrote beside its table; without that, nothing belongs to any."""
    path = table.with_name(f"{table.name}.spec.yaml")
    if not path.is_file():
        return []
    try:
        data, _ = yaml_io.read(path)
        own = {key: data[key] for key in ("name", "about", "sweeps") if key in data}
        experiments, _ = sweep.points(sweep.SweepFile.model_validate(own), path, data.get("of"))
    except (BadInput, ValidationError, TypeError):  # a policy's file that is not here any more, say
        return []
    if len(experiments) != len(rows):
        return []
    _, runs = run_table.read(run_table.NEUSTREAM)
    return [[_of_run(run) for run in run_table.set_up_as(e, runs)] for e in experiments]


def _of_run(run: MeasuredRun) -> Row:
    row: Row = {"workload": run.workload, "policy": run.policy, "rate": run.rate, "cv": run.cv}
    row |= {"slo_factor": run.slo_factor, "met": run.met, "finished": run.finished}
    row["attainment"] = run.met / run.requests if run.met is not None else None
    return row


def read(path: Path) -> list[Row]:
    """The measured points in *path*, see `RIGHT`. Raises `BadInput`."""
    if path.is_dir():
        folders = find_runs(path)
        if not folders:
            raise BadInput("there is no run in it that came to its end", where=str(path), right=RIGHT)
        return [_of_folder(folder) for folder in folders]
    if path.suffix not in (".csv", ".parquet") or not path.is_file():
        what = "these are no measured points" if path.exists() else "there is no such file or folder"
        raise BadInput(what, where=str(path), right=RIGHT)
    rows = read_rows(path)
    if not rows or not {"workload", "policy"} <= rows[0].keys():
        raise BadInput("these are no measured points", where=str(path), right=RIGHT)
    if "attainment" in rows[0]:
        return rows
    if "met" not in rows[0] or "requests" not in rows[0]:
        raise BadInput("these are no measured points", where=str(path), right=RIGHT)
    return [{**row, "attainment": _share(row["met"], row["requests"])} for row in rows]


def _share(met: Any, requests: Any) -> float | None:
    try:
        return float(met) / float(requests)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _of_folder(folder: Path) -> Row:
    run = read_run(folder)
    try:
        experiment = Experiment.model_validate(run.meta.get("experiment"))
    except ValidationError:
        what = "its meta.json holds no experiment of this version"
        raise BadInput(what, where=str(folder), right="a folder that `servetwin run --out` wrote") from None
    summary = {key: value for key, value in run.summary.items() if isinstance(value, int | float | str | None)}
    return {**settings_of(experiment), **summary}


def fits(point: Mapping[str, Any], row: Mapping[str, Any], x: str) -> bool:
    """Whether a measured *point* belongs to the line of *row* over the axis *x*: the same workload and policy, at the
    same place on all other axes, and on the same deployment, where both say so."""
    if (point.get("workload"), point.get("policy")) != (row.get("workload"), row.get("policy")):
        return False
    one, other = point.get("deployment"), row.get("deployment")
    if one and other and one != other:
        return False
    return all(_equal(point.get(name), row.get(name)) for name in PLACE if name != x)


def _equal(a: Any, b: Any) -> bool:
    if a in (None, "") or b in (None, ""):
        return True  # not said
    try:
        return abs(float(a) - float(b)) <= 1e-9 * max(abs(float(a)), abs(float(b)), 1e-9)
    except ValueError:
        return bool(a == b)
