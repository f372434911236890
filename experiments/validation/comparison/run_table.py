"""Tables of measured runs, and the experiments that repeat them in simulation.

A table is a CSV file with the columns of `COLUMNS`, and, where known, *start* (date and time of the run, which tells
sessions apart) and *step_delta*. *variant* and *deployment* say which of the workload's the run had, where it was not
its default. Other columns are carried along.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ...registry.catalog import MEASURED, suggest, workload_names
from ...registry.policy_registry import policy_names, same_policy
from ...spec.experiment import Experiment, Gamma, RelativeSLO
from ...spec.loading import layers, load
from ...spec.overrides import Override
from ...spec.variants import Layer
from ...spec.yaml_io import read_text

COLUMNS = ("workload", "policy", "rate", "cv", "slo_factor", "requests", "met", "finished")

#: The runs of the NeuStream artifact (see README.md beside it).
NEUSTREAM = MEASURED / "neustream_ae.csv"


@dataclass(frozen=True)
class MeasuredRun:
    """One run on a real system. *cells* is its line as it stands; *met* and *finished* may be unknown. Rate, cv and
    SLO factor are nan where a run has none, which no table says.
    """

    line: int
    cells: dict[str, str]
    workload: str
    policy: str
    rate: float
    cv: float
    slo_factor: float
    requests: int
    met: int | None
    finished: int | None
    start: str | None
    step_delta: float | None
    variant: str | None = None
    deployment: str | None = None

    def overrides(self) -> list[Override]:
        """What to set in the workload to repeat this run."""
        named = [(key, value) for key in ("variant", "deployment") if (value := getattr(self, key)) is not None]
        found: list[Override] = [
            *named,
            ("policy", self.policy),
            ("rate", self.rate),
            ("cv", self.cv),
            ("slo_factor", self.slo_factor),
            ("requests", self.requests),
        ]
        if self.step_delta is not None:
            found.append(("step_delta", self.step_delta))
        return found


def read(path: Path) -> tuple[list[str], list[MeasuredRun]]:
    """The header and the runs of a table. Raises `BadInput` naming the line that is wrong."""
    reader = csv.DictReader(read_text(path).splitlines())
    try:
        return _runs_of(reader, path)
    except csv.Error as error:  # a field of more than 131,072 characters, say
        raise BadInput(f"no CSV: {error}", where=f"{path}:{reader.line_num + 1}") from None


def _runs_of(reader: csv.DictReader[str], path: Path) -> tuple[list[str], list[MeasuredRun]]:
    header = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = header
    for name in COLUMNS:
        if name not in header:
            right = f"the columns {','.join(COLUMNS)}"
            raise BadInput(f"column {name!r} is missing", where=f"{path}:1", right=right)
    runs, workloads = [], workload_names()
    for cells in reader:
        where = f"{path}:{reader.line_num}"
        if None in cells or None in cells.values():
            right = f"{len(header)} values, as in the first line"
            raise BadInput("the line does not fit the header", where=where, right=right)
        runs.append(_run(reader.line_num, {k: v.strip() for k, v in cells.items()}, where, workloads))
    if not runs:
        raise BadInput("the table holds no run", where=str(path))
    return header, runs


def _run(line: int, cells: dict[str, str], where: str, workloads: Sequence[str]) -> MeasuredRun:
    if cells["workload"] not in workloads:
        right = suggest(cells["workload"], workloads)
        raise BadInput(f"unknown workload {cells['workload']!r}", where=f"{where}: workload", right=right)
    if cells["policy"] not in policy_names():
        right = suggest(cells["policy"], policy_names())
        raise BadInput(f"unknown policy {cells['policy']!r}", where=f"{where}: policy", right=right)
    requests = _count(cells["requests"], f"{where}: requests", 1, None)
    if cells.get("mean_batch"):  # which scores divide by
        _number(cells["mean_batch"], f"{where}: mean_batch")
    return MeasuredRun(
        line=line,
        cells=cells,
        workload=cells["workload"],
        policy=cells["policy"],
        rate=_number(cells["rate"], f"{where}: rate"),
        cv=_number(cells["cv"], f"{where}: cv"),
        slo_factor=_number(cells["slo_factor"], f"{where}: slo_factor"),
        requests=requests,
        met=_count(cells["met"], f"{where}: met", 0, requests) if cells["met"] else None,
        finished=_count(cells["finished"], f"{where}: finished", 0, requests) if cells["finished"] else None,
        start=_moment(cells["start"], f"{where}: start") if cells.get("start") else None,
        step_delta=_number(cells["step_delta"], f"{where}: step_delta") if cells.get("step_delta") else None,
        variant=cells.get("variant") or None,
        deployment=cells.get("deployment") or None,
    )


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0.0:
        raise BadInput(f"{text!r} does not fit", where=where, right="a number above 0")
    return value


def _count(text: str, where: str, least: int, most: int | None) -> int:
    right = f"a whole number from {least} to {most}" if most is not None else f"a whole number, {least} or more"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value.is_integer() or value < least or (most is not None and value > most):
        raise BadInput(f"{text!r} does not fit", where=where, right=right)
    return int(value)


def _moment(text: str, where: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        raise BadInput(f"{text!r} is no date and time", where=where, right="2024-04-28 17:41:55") from None


def experiments(runs: Iterable[MeasuredRun], path: Path, more: Iterable[Override] = ()) -> list[Experiment]:
    """For each run the experiment that repeats it, with the overrides *more*."""
    chains: dict[str, list[Layer]] = {}
    more = list(more)
    found = []
    for run in runs:
        if run.workload not in chains:
            chains[run.workload] = layers(run.workload)
        try:
            own: list[Any] = run.overrides()
            found.append(load(run.workload, [*own, *more], session=run.start, chain=chains[run.workload]))
        except BadInput as error:
            where = f"{path}:{run.line}: {error.where}" if error.where else f"{path}:{run.line}"
            raise BadInput(error.what, where=where, right=error.right) from None
    return found


def matching(experiment: Experiment) -> list[MeasuredRun]:
    """The runs of the NeuStream artifact that were set up as *experiment* is, if there are any."""
    if experiment.workload.draws != "published":
        return []
    _, runs = read(NEUSTREAM)
    return set_up_as(experiment, runs)


def set_up_as(experiment: Experiment, runs: Iterable[MeasuredRun]) -> list[MeasuredRun]:
    """Those of *runs* of the NeuStream artifact that were set up as *experiment* is, whatever arrivals it draws."""
    load, slo = experiment.workload, experiment.slo
    if not isinstance(load.arrivals, Gamma) or not isinstance(slo, RelativeSLO):
        return []
    wanted = (experiment.name, load.arrivals.rate, load.arrivals.cv, slo.factor, load.requests)
    alike = [r for r in runs if (r.workload, r.rate, r.cv, r.slo_factor, r.requests) == wanted]
    alike = [r for r in alike if same_policy(r.policy, experiment.policy.name)]
    return [r for r, e in zip(alike, experiments(alike, NEUSTREAM), strict=True) if _set_up_alike(e, experiment)]


def _set_up_alike(one: Experiment, other: Experiment) -> bool:
    """Whether two experiments have the same parameters of the policy, deployment, system and SLO."""
    a, b = (
        (e.policy.params, e.deployment.workers, e.deployment.devices, e.deployment.estimates, e.system, e.slo)
        for e in (one, other)
    )
    return bool(a == b)
