"""Runs repeated in simulation with their very own requests: those that were sent, when they were sent, with the work
and the deadline that they had.

So the arrivals are no part of the gap between a real run and its repetition, late as the client may have been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servetwin.core import BadInput, Request, RunFolder, ServeTwinError

from ..assembly import build, inputs, same_run
from ..spec import device_profiles
from ..spec.experiment import Experiment
from ..spec.loading import load
from ..spec.overrides import Override
from ..sweeps.point import AVERAGED, Row, main_worker, results_of, settings_of
from .compare_runs import RunRecords, find_runs, is_run, read
from .run_files import request_lines
from .run_table import MeasuredRun


@dataclass(frozen=True)
class Replay:
    """A run folder and the experiment that repeats it."""

    run: RunRecords
    experiment: Experiment

    @property
    def changed(self) -> list[str]:
        """The profiles and policies, and our code, that are no longer what they were when the run was made."""
        return [
            *same_run.changed(self.run.meta, self.experiment),
            *same_run.ours_changed(self.run.meta, self.experiment),
        ]


def find(folder: Path, overrides: Iterable[Override] = (), *, as_they_are: bool = False) -> list[Replay]:
    """The runs in *folder*, or *folder* itself, that came to their end. Raises `BadInput` if there are none, or if
    one cannot be repeated here: also if a profile or a user's policy is not what it was when the run was made, unless
    they are taken *as_they_are*. That our own code is another is what repeating is for.
    """
    folders = [folder] if is_run(folder) else find_runs(folder)
    if not folders:
        right = "run folders that `servetwin run --out` wrote"
        raise BadInput("there is no run in it that came to its end", where=str(folder), right=right)
    overrides = list(overrides)
    found = []
    for place in folders:
        run = read(place)
        try:
            experiment = load(run.meta.get("experiment", {}), overrides)
            device_profiles.load_profiles(experiment)
            if any(spec.llm for spec in experiment.pipeline.modules.values()):
                # Of what did not finish, nobody knows how much it would have generated.
                raise BadInput("a run of a language model cannot be repeated with its own requests", right="a sweep")
            if not as_they_are and (differing := same_run.changed(run.meta, experiment)):
                what = f"not what it was when the run was made: {'; '.join(differing)}"
                raise BadInput(what, right="what it was made with; or --as-they-are")
        except BadInput as error:
            where = f"{place}: {error.where}" if error.where else str(place)
            raise BadInput(error.what, where=where, right=error.right) from None
        found.append(Replay(run, experiment))
    return found


def requests_of(folder: Path) -> list[Request]:
    """The requests of a run, in order of arrival, as if none had been served."""
    lines = sorted(request_lines(folder), key=lambda r: (r["arrival"], r["id"]))
    return [Request(r["id"], r["arrival"], _slo(r), r["work"], **_terms(r)) for r in lines]


def _terms(record: Row) -> dict[str, Any]:
    said: dict[str, Any] = {name: record[name] for name in ("priority", "tenant", "weight") if name in record}
    return {**said, "class_name": record["class"]} if "class" in record else said


def _slo(record: Row) -> float:
    return math.inf if record["deadline"] is None else record["deadline"] - record["arrival"]


def replay(folder: Path, experiment: Experiment, out: Path | None = None) -> Row:
    """Repeat the run in *folder* as *experiment*; the row of its results. With *out*, leave its records there."""
    if out is None:
        run = build.build(experiment)
        run.source = iter(requests_of(folder))
        return results_of(experiment, run.play())
    recorder = build.folder_for(experiment, out, {**build.describe(experiment), "replay_of": folder.name})
    complete = False
    try:
        run = build.build(experiment, recorder)
        run.source = iter(requests_of(folder))
        row = results_of(experiment, run.play())
        complete = True
    finally:
        assert isinstance(recorder, RunFolder)
        recorder.close(complete=complete)
    return row


def replay_all(
    found: Sequence[Replay],
    seeds: int,
    *,
    jobs: int = -1,
    keep: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """A row per run: the mean over *seeds* seeds of the simulated noise (the run's own seed and those that follow).
    With *keep*, the first of them leaves its records in a folder of the run's name there.
    """
    from joblib import Parallel, delayed

    before = [inputs.inputs_of(r.experiment) for r in found]
    tasks = []
    for number, r in enumerate(found):
        for k in range(seeds):
            experiment = r.experiment.model_copy(update={"seed": r.experiment.seed + k})
            out = keep / r.run.folder.name if keep is not None and k == 0 else None
            tasks.append((number, r.run.folder, experiment, out))
    rows: list[list[Row]] = [[] for _ in found]
    pool = Parallel(n_jobs=1 if len(tasks) < 4 else jobs, return_as="generator")
    for done, (number, row) in enumerate(pool(delayed(_numbered)(*task) for task in tasks), 1):
        rows[number].append(row)
        if progress is not None:
            progress(done)
    for r, made_of in zip(found, before, strict=True):
        if differing := inputs.difference(made_of, inputs.inputs_of(r.experiment)):
            raise ServeTwinError(
                f"{', '.join(differing)} was changed while the runs were repeated: run the same again"
            )
    return [_mean_of(same) for same in rows]


def _numbered(number: int, folder: Path, experiment: Experiment, out: Path | None) -> tuple[int, Row]:
    return number, replay(folder, experiment, out)


def _mean_of(rows: Sequence[Row]) -> Row:
    mean = dict(rows[0])
    for name in (name for name in AVERAGED if name in mean):
        known = [row[name] for row in rows if row[name] is not None]
        mean[name] = sum(known) / len(known) if known else None
    return mean


def measured(found: Replay) -> MeasuredRun:
    """The run as a line of a table of measured runs."""
    row, summary = settings_of(found.experiment), found.run.summary
    main = summary["workers"].get(main_worker(found.experiment), {})
    counts = {name: summary[name] for name in ("requests", "met", "finished")}
    cells = {"folder": found.run.folder.name, **row, **counts, "mean_batch": main.get("mean_batch_size")}
    return MeasuredRun(
        line=0,
        cells={name: "" if value is None else str(value) for name, value in cells.items()},
        workload=row["workload"],
        policy=row["policy"],
        rate=_known(row["rate"]),
        cv=_known(row["cv"]),
        slo_factor=_known(row["slo_factor"]),
        **counts,
        start=None,
        step_delta=None,
    )


def _known(x: float | None) -> float:
    return math.nan if x is None else x
