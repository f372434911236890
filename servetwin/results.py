"""What a run came to: a summary, and tables of its requests, stages and batches, read when they are asked for.

A `Result` is a run folder (see `servetwin.core.records`): one that `run` made for it, which goes when the result
does, or one that is there, which `load` opens.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .errors import Error, spoken
from .tables import Table, table_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from servetwin.experiments.validation.envelope.standing import Standing

OUTCOMES = ("met", "late", "dropped", "failed")
#: What records say of a request only where it is not the usual one.
TERMS = {"class": "", "tenant": "", "priority": 0, "weight": 1.0}


class Result:
    """One run. Counts are in requests, times in seconds since the run began, shares between 0 and 1.

    *folder* holds its records, or is None if none were kept. *experiment* is the content of the resolved experiment
    file. *summary* is the content of ``summary.json`` (latencies
    in milliseconds there, under names that end in ``_ms``), *real* that of ``real.json``, None of a simulation.
    """

    summary: dict[str, Any]
    experiment: dict[str, Any]
    real: dict[str, Any] | None
    folder: Path | None

    def __init__(
        self,
        summary: Mapping[str, Any],
        experiment: Mapping[str, Any],
        *,
        folder: Path | None = None,
        real: Mapping[str, Any] | None = None,
    ) -> None:
        self.summary = dict(summary)
        self.experiment = dict(experiment)
        self.real = dict(real) if real is not None else None
        self.folder = folder

    # -- what it came to --------------------------------------------------------------------------------

    @property
    def attainment(self) -> float:
        """The share of all requests that met their SLO, from 0 to 1; nan if there was no request."""
        share = self.summary["attainment"]
        return float("nan") if share is None else float(share)

    @property
    def goodput(self) -> float:
        """Requests that met their SLO, per second from the first arrival to the last end."""
        return float(self.summary["request_goodput"] or 0.0)

    @property
    def met(self) -> int:
        """Requests that finished within their SLO."""
        return int(self.summary["met"])

    @property
    def finished(self) -> int:
        """Requests that ran to their end, late ones included."""
        return int(self.summary["finished"])

    @property
    def policy(self) -> str:
        """The name of the policy that decided."""
        return str(self.experiment["policy"]["name"])

    @cached_property
    @spoken
    def validity(self) -> Standing | None:
        """Where it stands against the recorded runs by which the simulation was validated; None of a real run."""
        from servetwin.experiments.spec.experiment import Experiment
        from servetwin.experiments.validation.envelope import standing

        return None if self.real is not None else standing.of(Experiment.model_validate(self.experiment))

    # -- its records ------------------------------------------------------------------------------------

    @cached_property
    @spoken
    def meta(self) -> dict[str, Any]:
        """The content of ``meta.json``: the resolved experiment, versions, hashes of profiles and policies."""
        from servetwin.experiments.validation.comparison.run_files import read_json

        return read_json(records_of(self) / "meta.json", "not a run folder: it has no meta.json")

    @cached_property
    @spoken
    def requests(self) -> Table:
        """A row per request, by *id*: *arrival*, *deadline* (None without one), *outcome* (met, late, dropped,
        failed), *reason* (of those that did not finish), *finished*, *latency* (seconds), ``steps.MODULE`` for each
        loop module; of a single language model also *prompt* and *generated* (tokens), *ttft* and *tpot* (seconds,
        None where there was no first, or no second, token) and *preemptions*. *class*, *tenant*, *priority* and
        *weight* are there where requests of the run say them."""
        from servetwin.experiments.validation.comparison.run_files import request_lines

        records = sorted(request_lines(records_of(self)), key=lambda record: record["id"])
        named = {name: usual for name, usual in TERMS.items() if any(name in record for record in records)}
        return table_of(_request_row(record, named) for record in records)

    @cached_property
    @spoken
    def stages(self) -> Table:
        """A row per stay of a request at a stage, by *request*: *stage*, *worker*, *queued*, *admitted*, *started*,
        *finished*, and *iterations*, or *prompt*, *limit*, *generated*, *first_token*, *last_token*, *preemptions* at
        a language model."""
        from servetwin.experiments.validation.comparison.run_files import request_lines

        records = sorted(request_lines(records_of(self)), key=lambda record: record["id"])
        return table_of({"request": record["id"], **stay} for record in records for stay in record["stages"])

    @cached_property
    @spoken
    def batches(self) -> Table:
        """A row per batch in the order of their ends: *id*, *worker*, *modules*, *start*, *end*, *size* (requests in
        it), *iterations* (of a batch of whole requests, all of them), *requests* (their ids), *ends* (of its
        iterations, where it ran several); of a step of a language model *prefill* (lists of id, tokens, tokens
        before), *decode* (requests), *context* (tokens) and *preempted* (ids)."""
        from servetwin.experiments.validation.comparison.run_files import batch_lines

        return table_of(_batch_row(line) for line in batch_lines(records_of(self)))

    @spoken
    def by(self, key: str | Callable[[dict[str, Any]], Any]) -> Table:
        """Metrics by class of requests: those with the same value in column *key* of `requests`, or for which *key*
        (called with a row) gives the same. A row per class, in order of appearance: its value under the column's name
        (or ``class``), *requests*, a count for each outcome, *attainment* (0 to 1), *mean_latency* and *p99_latency*
        (seconds, of those that finished; None if none did).

        Raises `KeyError` if there is no such column.
        """
        name = key if isinstance(key, str) else "class"
        values = self.requests[key] if isinstance(key, str) else [key(row) for row in self.requests]
        groups: dict[Any, list[dict[str, Any]]] = {}
        for value, row in zip(values, self.requests, strict=True):
            groups.setdefault(value, []).append(row)
        return table_of({name: value, **_metrics(rows)} for value, rows in groups.items())

    # -- what to do with it -----------------------------------------------------------------------------

    @spoken
    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the run's records to *folder*, which is made and must hold no run; `load` opens them again, and the
        command line compares, scores and traces them. Gives the folder. Raises `Error`."""
        target = Path(folder).expanduser()
        if (target / "meta.json").exists():
            raise Error("the folder holds a run already", where=str(target), right="another folder")
        records = records_of(self)
        try:
            shutil.copytree(records, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("summary.json"))
            shutil.copy2(records / "summary.json", target)  # last: a folder without it is of no whole run
        except OSError as error:
            reason = error.strerror or "cannot be written"
            raise Error(reason, where=str(target), right="a folder of yours") from None
        return target

    @spoken
    def plot(self) -> Figure:
        """A matplotlib figure: the latency of each request over its arrival, by outcome, and the size of each
        worker's batches over time."""
        from .figures import of_run

        title = repr(self)[len("<Result ") : -1]
        return of_run(title, self.requests.to_dicts(), self.batches.to_dicts())

    def __repr__(self) -> str:
        total = self.summary["requests"]
        name, share = self.experiment.get("name", "?"), f"{100 * self.attainment:.1f} % met"
        return f"<Result {name}, {self.policy}: {total} requests, {share}, goodput {self.goodput:.3f}/s>"


def records_of(result: Result) -> Path:
    """The folder with the records of *result*. Raises `Error` if it kept none."""
    if result.folder is None:
        raise Error("this run kept no records", right="run(..., records=True)")
    return result.folder


@spoken
def load(folder: str | os.PathLike[str]) -> Result:
    """The run whose records are in *folder*: of `Result.save`, ``run(..., folder=...)`` or ``servetwin run --out``,
    simulated or real. Raises `Error` if there is none that came to its end."""
    from servetwin.experiments.validation.comparison.run_files import read_json

    place = Path(folder).expanduser()
    if not place.is_dir():
        raise Error("there is no such folder", where=str(place), right="a run folder")
    meta = read_json(place / "meta.json", "not a run folder: it has no meta.json")
    summary = read_json(place / "summary.json", "the run did not come to its end: it has no summary.json")
    real = read_json(place / "real.json", "") if (place / "real.json").exists() else None
    return Result(summary, meta["experiment"], folder=place, real=real)


def _request_row(record: dict[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    arrival, finished = record["arrival"], record["finished"]
    row = {name: record[name] for name in ("id", "arrival", "deadline", "outcome", "reason", "finished")}
    row["latency"] = None if finished is None else finished - arrival
    row |= {name: record.get(name, usual) for name, usual in named.items()}
    row |= {f"steps.{module}": steps for module, steps in record["work"].items()}
    if len(record["stages"]) == 1 and "prompt" in record["stages"][0]:
        stay = record["stages"][0]
        first, generated = stay["first_token"], stay["generated"]
        row |= {"prompt": stay["prompt"], "generated": generated}
        row["ttft"] = None if first is None else first - arrival
        row["tpot"] = (finished - first) / (generated - 1) if finished is not None and generated > 1 else None
        row["preemptions"] = stay["preemptions"]
    return row


def _batch_row(line: dict[str, Any]) -> dict[str, Any]:
    size = len(line["requests"])
    if "prefill" in line:
        size = line["decode"] + len(line["prefill"])
    row = {name: line[name] for name in ("id", "worker", "modules", "start", "end")}
    return {**row, "size": size, **{k: v for k, v in line.items() if k not in row}}


def _metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from numpy import percentile

    counts = {outcome: sum(bool(row["outcome"] == outcome) for row in rows) for outcome in OUTCOMES}
    latencies = [row["latency"] for row in rows if row["latency"] is not None]
    return {
        "requests": len(rows),
        **counts,
        "attainment": counts["met"] / len(rows),
        "mean_latency": fmean(latencies) if latencies else None,
        "p99_latency": float(percentile(latencies, 99)) if latencies else None,
    }
