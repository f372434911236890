"""Runs repeated in simulation with their very own requests: those that were sent, when they were sent, with the work
and the deadline that they had.

So the arrivals are no part of the gap between a real run and its repetition, late as the client may have been.
Those of sessions and closed loops too are sent when they were, not when those before them end in simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from servetwin.core import BadInput, Request, RunFolder, ServeTwinError
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm import TokenRequest
from servetwin.core.request import Shape

from ...assembly import build, inputs, same_run
from ...assembly.shapes import shapes_of
from ...spec import loading
from ...spec.experiment import Experiment
from ...spec.loading import load
from ...spec.overrides import Override
from ...sweeps.point import AVERAGED, TOKENS, Row, main_worker, mean_attainment, results_of, settings_of
from ...sweeps.pool import pooled
from ..comparison.compare_runs import RunRecords, find_runs, is_run, over_profile, read
from ..comparison.run_files import request_lines
from ..comparison.run_table import MeasuredRun
from .external import Means

#: What is told of latencies, in milliseconds: (statistic, metric).
STATISTICS = tuple((s, m) for m in ("ttft", "tpot", "itl", "e2el") for s in ("mean", "median", "p99"))
LATENCIES = tuple(f"{s}_{m}_ms" for s, m in STATISTICS if m == "e2el")

#: Steps that take this many times what a profile says, or that part of it, are told.
FAR = 1.25


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
            loading.load_profiles(experiment)
            if not as_they_are and (differing := same_run.changed(run.meta, experiment)):
                what = f"not what it was when the run was made: {'; '.join(differing)}"
                raise BadInput(what, right="what it was made with; or --as-they-are")
        except BadInput as error:
            where = f"{place}: {error.where}" if error.where else str(place)
            raise BadInput(error.what, where=where, right=error.right) from None
        found.append(Replay(run, experiment))
    return found


def requests_of(folder: Path, drawn: Iterable[Request] = ()) -> list[Request]:
    """The requests of a run, in order of arrival, as if none had been served.

    *drawn* are those that its experiment draws: of a language model they say how many tokens a request would have
    generated that was dropped or failed. Raises `BadInput` if they are not those of the run.
    """
    lines = sorted(request_lines(folder), key=lambda r: (r["arrival"], r["id"]))
    known = {r.id: r for r in drawn if isinstance(r, TokenRequest)}
    if known:
        return [_again(r, known.get(r["id"]), str(folder / "requests.jsonl")) for r in lines]
    return [Request(r["id"], r["arrival"], _slo(r), r["work"], **_terms(r)) for r in lines]


def _terms(record: Row) -> dict[str, Any]:
    said: dict[str, Any] = {name: record[name] for name in ("priority", "tenant", "weight") if name in record}
    if "session" in record:
        said["session"] = record["session"], record["turn"]
    if "shape" in record:
        said["shape"] = Shape(**record["shape"])
    return {**said, "class_name": record["class"]} if "class" in record else said


def _slo(record: Row) -> float:
    return math.inf if record["deadline"] is None else record["deadline"] - record["arrival"]


def _again(record: Row, drawn: TokenRequest | None, where: str) -> TokenRequest:
    """The request of a language model that *record* tells of, with the outputs of *drawn*."""
    number, right = record["id"], "the run of the experiment in its meta.json"
    if drawn is None:
        raise BadInput(f"request {number} is none that its experiment draws", where=where, right=right)
    tokens, outputs = dict(drawn.tokens), dict(drawn.outputs or {})
    for at in record["stages"]:
        name = at["stage"]
        if "prompt" not in at or name not in tokens:
            continue
        if not {"limit", "generated"} <= at.keys():
            raise BadInput(f"request {number} has a prompt, and not limit and generated", where=where, right=right)
        asked, output = tokens[name], outputs[name]
        if isinstance(asked, list) or isinstance(output, list):  # of several visits, each as it is drawn
            continue
        if isinstance(asked[0], int):
            # After a turn that was dropped a session has said less than was planned.
            if asked[0] != at["prompt"] and not (drawn.session is not None and at["prompt"] < asked[0]):
                what = f"request {number} has a prompt of {at['prompt']} tokens, its experiment draws {asked[0]}"
                raise BadInput(what, where=where, right=right)
            tokens[name] = (at["prompt"], at["limit"])
        made, wanted = at["generated"], min(output, at["limit"])
        if made > wanted or (at["finished"] is not None and made != wanted):
            what = f"request {number} generated {made} tokens, its experiment draws {wanted}"
            raise BadInput(what, where=where, right=right)
    return TokenRequest(number, record["arrival"], tokens, outputs, slo=drawn.slo, work=drawn.work, **drawn.terms)


def replay(folder: Path, experiment: Experiment, out: Path | None = None, seed: int | None = None) -> Row:
    """Repeat the run in *folder* as *experiment*; the row of its results. With *out*, leave its records there. *seed*
    is the run's own (None: the experiment's), of which its requests were drawn."""
    sent = requests_of(folder, _drawn(experiment, experiment.seed if seed is None else seed))
    _check_shapes(folder, sent, shapes_of(experiment))
    if out is None:
        run = build.build(experiment)
        run.send(sent)
        return results_of(experiment, run.play())
    recorder = build.folder_for(experiment, out, {**build.describe(experiment), "replay_of": folder.name})
    complete = False
    try:
        run = build.build(experiment, recorder)
        run.send(sent)
        row = results_of(experiment, run.play())
        complete = True
    finally:
        assert isinstance(recorder, RunFolder)
        recorder.close(complete=complete)
    return row


def _check_shapes(folder: Path, sent: Iterable[Request], known: Sequence[Shape]) -> None:
    """Raise `BadInput` if a request is of none of the *known* shapes of the experiment (none: all as measured)."""
    for request in sent:
        if request.shape not in (known or (None,)):
            what = f"request {request.id} is of {request.shape or 'no shape'}, its experiment knows none such"
            right = ", ".join(map(str, known)) or "requests without shapes"
            raise BadInput(what, where=str(folder / "requests.jsonl"), right=right)


def _drawn(experiment: Experiment, seed: int) -> Iterable[Request]:
    """The requests that *experiment* draws by *seed*, where a run's records do not tell all of its own."""
    return build.build(experiment.model_copy(update={"seed": seed})).planned() if experiment.pipeline.llms else ()


def replay_all(
    found: Sequence[Replay],
    seeds: int,
    *,
    jobs: int = -1,
    keep: Path | None = None,
    progress: Callable[[int, float | None], None] | None = None,
) -> list[Row]:
    """A row per run: the mean over *seeds* seeds of the simulated noise (the run's own seed and those that follow).
    What each seed met is under ``met_by_seed``. With *keep*, the first of them leaves its records in a folder of the
    run's name there.
    """
    from joblib import delayed

    before = [inputs.inputs_of(r.experiment) for r in found]
    tasks = []
    for number, r in enumerate(found):
        for k in range(seeds):
            experiment = r.experiment.model_copy(update={"seed": r.experiment.seed + k})
            out = keep / r.run.folder.name if keep is not None and k == 0 else None
            tasks.append((number, r.run.folder, experiment, out, r.experiment.seed))
    rows: list[list[Row]] = [[] for _ in found]
    replayed = pooled(1 if len(tasks) < 4 else jobs, (delayed(_numbered)(*task) for task in tasks))
    for done, (number, row) in enumerate(replayed, 1):
        rows[number].append(row)
        if progress is not None:
            progress(done, mean_attainment(row for own in rows for row in own))
    for r, made_of in zip(found, before, strict=True):
        if differing := inputs.difference(made_of, inputs.inputs_of(r.experiment)):
            raise ServeTwinError(
                f"{', '.join(differing)} was changed while the runs were repeated: run the same again"
            )
    return [_mean_of(same) for same in rows]


def _numbered(number: int, folder: Path, experiment: Experiment, out: Path | None, seed: int) -> tuple[int, Row]:
    return number, replay(folder, experiment, out, seed)


def _mean_of(rows: Sequence[Row]) -> Row:
    mean = {**rows[0], "met_by_seed": [row["met"] for row in rows]}
    for name in (name for name in (*AVERAGED, *LATENCIES, *TOKENS) if name in mean):
        known = [row[name] for row in rows if row[name] is not None]
        mean[name] = float_sum(known) / len(known) if known else None
    return mean


def latencies(found: Replay, row: Row) -> list[Means]:
    """Of a run of one language model its latencies in seconds, beside those of its repetition by its *row*."""
    if len(found.run.summary.get("llm", {})) != 1:
        return []
    (tokens,) = found.run.summary["llm"].values()
    means = []
    for statistic, metric in STATISTICS:
        key = f"{statistic}_{metric}_ms"
        was, now = (tokens if metric != "e2el" else found.run.summary).get(key), row.get(key)
        if was is not None and now is not None:
            means.append(Means(f"{statistic} {metric}", was / 1e3, now / 1e3))
    return means


def off_profile(found: Replay) -> list[str]:
    """A line for each worker of a real run whose steps took much more, or less, than its profile says: then that
    profile is not of what served, and the gap says little of the simulation."""
    if found.run.meta.get("kind") != "real":
        return []
    run = replace(found.run, meta={**found.run.meta, "experiment": found.experiment.as_dict()})
    return [
        f"{run.folder.name}: steps of {worker} took {ratio:.3g} times what the profile says"
        for worker, ratio in over_profile(run).items()
        if not 1.0 / FAR < ratio < FAR
    ]


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
