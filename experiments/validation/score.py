"""Scoring: every run of a table of measured runs, or of a folder of them, simulated, and the gap between the two.

Of a table the settings are known, and the requests are drawn as they were then. A run folder holds the requests
themselves, and these are repeated.

Of recordings, the terms of simulated time can be switched off (``--set time.contention=false``).

A gap is simulated minus measured, in percentage points of the requests sent. The simulated counts are means over
several seeds of the noise, so they need not be whole numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum
from servetwin.core.processes.temporary_folders import temporary_folder

from ..spec.experiment import Experiment, Time
from ..spec.overrides import Override
from ..sweeps import tables
from ..sweeps.point import Progress, Row, run_all_averaged
from ..sweeps.pool import pooled
from .comparison import bench_runs, run_table
from .comparison.compare_grids import PARAMS, Entry, Setting
from .comparison.run_settings import otherwise
from .comparison.run_table import MeasuredRun
from .replay import (
    agents as replay_agents,
)
from .replay import (
    chat as replay_chat,
)
from .replay import (
    external as replay_external,
)
from .replay import (
    folder as replay_folder,
)
from .replay import (
    llm as replay_llm,
)
from .replay import (
    packed_runs,
)
from .replay.host_band import by_own_host

if TYPE_CHECKING:
    from servetwin.sim.measured import TimeOptions

    from .replay.diffusion import RecordedRun, Recording
    from .replay.external import Means

#: Seeds per run: the spread of a mean over ten is well below the spread between measured repeats.
SEEDS = 10

ADDED = ("sim_met", "sim_finished", "gap_met_pp", "gap_finished_pp")


@dataclass(frozen=True)
class Scored:
    """A measured run with what the simulation made of it; gaps are None where nothing was measured."""

    run: MeasuredRun
    result: Row
    changed: tuple[str, ...] = ()  # what is not as it was when the run was made
    others: Mapping[str, str] = field(default_factory=dict)  # what else tells it from repeats, by key
    seed: int | None = None  # which requests were sent, where the line of the table does not say
    latencies: tuple[Means, ...] = ()  # of a language model, as measured and as simulated, in seconds
    notes: tuple[str, ...] = ()  # what is to be said of the run

    @property
    def gap_met(self) -> float | None:
        return self._gap(self.result["met"], self.run.met)

    @property
    def gap_finished(self) -> float | None:
        return self._gap(self.result["finished"], self.run.finished)

    @property
    def gap_batch(self) -> float | None:
        """The relative gap of the mean batch size in percent, where the table has a column *mean_batch*."""
        text = self.run.cells.get("mean_batch")
        simulated = self.result["mean_batch_size"]
        return 100.0 * (simulated / float(text) - 1.0) if text and simulated else None

    def _gap(self, simulated: float, was: int | None) -> float | None:
        return None if was is None else 100.0 * (simulated - was) / self.run.requests

    def line(self) -> Row:
        """The line of the table, with what is added to it."""
        gaps = [None if g is None else round(g, 6) for g in (self.gap_met, self.gap_finished)]
        added = (round(self.result["met"], 6), round(self.result["finished"], 6), *gaps)
        shown: Row = {}
        for m in self.latencies:
            name = f"{m.what.replace(' ', '_')}_ms"
            shown |= {name: round(1e3 * (m.measured or 0.0), 6), f"sim_{name}": round(1e3 * m.simulated, 6)}
        return {**self.run.cells, **dict(zip(ADDED, added, strict=True)), **shown}


def score(
    path: Path,
    out: Path | None = None,
    overrides: Iterable[Override] = (),
    *,
    seeds: int = SEEDS,
    jobs: int = -1,
    keep: Path | None = None,
    progress: Progress | None = None,
    as_they_are: bool = False,
    dates: bool = True,
    experiment: Experiment | None = None,
) -> list[Scored]:
    """Simulate each run of the table, or of the folder, at *path* with *seeds* seeds; write the table and the results
    to *out*. Without *dates* nobody knows when the runs of a table were made, nor what is known of that day. With
    *keep*, the records of the repetitions of run folders are left there. Run folders whose profiles or policies are
    not what they were are refused, unless these are taken *as_they_are*. Files of ``vllm bench serve`` are judged as
    runs of *experiment*, whose requests are then theirs.
    """
    if out is not None:
        tables.check_target(out)
    benches = [] if path.is_dir() and experiment is None else bench_runs.files(path)
    if benches or experiment is not None:
        how: dict[str, Any] = {"seeds": seeds, "jobs": jobs, "keep": keep, "progress": progress}
        return _score_benches(path, benches, experiment, out, overrides, **how)
    recordings = _recordings_in(path)
    packed = [recording for recording in recordings if packed_runs.is_packed(recording)]
    if packed and len(packed) == len(recordings):
        how = {"seeds": seeds, "jobs": jobs, "keep": keep, "progress": progress}
        return _score_packed(packed, out, overrides, as_they_are=as_they_are, **how)
    if packed:
        raise BadInput("holds packed run folders beside other recordings", where=str(path), right="one of them")
    if recordings:
        if keep is not None:
            raise BadInput("recordings are repeated as they are", where="--keep", right="a table, or run folders")
        terms = _terms(list(overrides), recordings)
        return _score_recordings(recordings, out, terms, seeds=seeds, jobs=jobs, progress=progress)
    if path.is_dir():
        found = replay_folder.find(path, overrides, as_they_are=as_they_are)
        return _score_folders(found, out, seeds=seeds, jobs=jobs, keep=keep, progress=progress)
    if keep is not None:
        raise BadInput("only repetitions of run folders are kept", where=f"--keep {keep}", right="a folder of runs")
    header, runs = run_table.read(path)
    if not dates:
        runs = [replace(run, start=None) for run in runs]
    experiments = run_table.experiments(runs, path, overrides)
    report = (lambda done, share: progress(done, seeds * len(runs), share)) if progress else None
    results = run_all_averaged(experiments, seeds, jobs=jobs, progress=report)
    scored = [
        Scored(run, result, others=_told_by_table(experiment))
        for run, result, experiment in zip(runs, results, experiments, strict=True)
    ]
    if out is not None:
        tables.write(out, [s.line() for s in scored], list(dict.fromkeys([*header, *ADDED])))
    return scored


def _told_by_table(experiment: Experiment) -> dict[str, str]:
    """What the lines of a table can differ in, beside what each names: the number of requests, and what the policy
    was told. That a session was faster than another is among what repeats differ by."""
    return {k: text for k, text in otherwise(experiment).items() if k == "requests" or k.startswith(PARAMS)}


def _score_folders(
    found: Sequence[replay_folder.Replay],
    out: Path | None,
    *,
    seeds: int,
    jobs: int,
    keep: Path | None,
    progress: Progress | None,
) -> list[Scored]:
    report = (lambda done, share: progress(done, seeds * len(found), share)) if progress else None
    rows = replay_folder.replay_all(found, seeds, jobs=jobs, keep=keep, progress=report)
    scored = [
        Scored(
            replay_folder.measured(r),
            row,
            tuple(r.changed),
            otherwise(r.experiment),
            latencies=tuple(replay_folder.latencies(r, row)),
            notes=(*replay_folder.off_profile(r), *by_own_host(r, row, seeds, jobs)),
        )
        for r, row in zip(found, rows, strict=True)
    ]
    if out is not None:
        tables.write(out, [s.line() for s in scored])
    return scored


def _score_packed(
    packed: Sequence[Path], out: Path | None, overrides: Iterable[Override], *, as_they_are: bool, **how: Any
) -> list[Scored]:
    """Policies in files of their own go by these files' names."""
    with packed_runs.unpacked(packed) as folder:
        found = replay_folder.find(folder, overrides, as_they_are=as_they_are)
        scored = []
        for s in _score_folders(found, None, **how):
            policy = Path(s.run.policy).name
            run = replace(s.run, policy=policy, cells={**s.run.cells, "policy": policy})
            scored.append(replace(s, run=run))
    if out is not None:
        tables.write(out, [s.line() for s in scored])
    return scored


def _score_benches(
    path: Path,
    benches: Sequence[Path],
    experiment: Experiment | None,
    out: Path | None,
    overrides: Iterable[Override],
    **how: Any,
) -> list[Scored]:
    if experiment is None:
        what = "a file of vllm bench serve does not say by which profile, policy and SLO it is to be judged"
        raise BadInput(what, where=str(path), right="--experiment FILE, which says it")
    if not benches:
        what = "there is no file of vllm bench serve"
        raise BadInput(what, where=str(path), right="one, or a folder of them; other runs say what they are of")
    given = list(overrides)
    with temporary_folder() as work:
        for bench in benches:
            made = bench_runs.with_requests_of(bench, experiment.as_dict(), given)
            bench_runs.as_run(bench, made, work / bench.stem)
        scored = _score_folders(replay_folder.find(Path(work)), None, **how)
    notes = {bench.stem: tuple(bench_runs.told(bench)) for bench in benches}
    scored = [replace(s, notes=(*s.notes, *notes[s.run.cells["folder"]])) for s in scored]
    if out is not None:
        tables.write(out, [s.line() for s in scored])
    return scored


def _terms(overrides: Sequence[Override], recordings: Sequence[Path]) -> TimeOptions:
    """What simulated time is made of by *overrides*, the only ones that recordings take. Raises `BadInput`."""
    from servetwin.sim.measured import TimeOptions

    terms = [name for name in Time.model_fields if name not in ("session", "hold")]
    given: dict[str, Any] = {}
    for path, value in overrides:
        section, _, name = path.partition(".")
        if section != "time" or name not in terms:
            right = "a table, or run folders; of recordings only " + ", ".join(f"time.{name}" for name in terms)
            raise BadInput("recordings are repeated as they are", where=f"--set {path}", right=right)
        given[name] = value
    kinds = (replay_llm.is_campaign, replay_external.is_external, replay_chat.is_chat, replay_agents.is_agents)
    tokens = [path for path in recordings if any(is_one(path) for is_one in kinds)]
    if given and (campaign := next(iter(tokens), None)) is not None:
        what = "recordings of language models are repeated as they are"
        raise BadInput(
            what, where=f"--set time.{next(iter(given))}", right=f"recordings of diffusion, not {campaign}"
        )
    try:
        time = Time.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        right = first["msg"].removeprefix("Input should be ")
        raise BadInput(f"{given[name]!r} does not fit", where=f"--set time.{name}", right=right) from None
    if time.host is not None:
        what = "launches are those of engines of language models"
        raise BadInput(what, where="--set time.host", right="to leave it out")
    return TimeOptions(**{**time.model_dump(exclude={"host"}), "session": None})


def _recordings_in(path: Path) -> list[Path]:
    """Compact recordings (see `replay.diffusion` and `replay.llm`): *path* itself, or those in it and in its
    folders."""
    if path.is_dir():
        return sorted(path.rglob("*.json.gz"))
    return [path] if path.name.endswith(".json.gz") else []


def _score_recordings(
    paths: Sequence[Path],
    out: Path | None,
    terms: TimeOptions,
    *,
    seeds: int,
    jobs: int,
    progress: Progress | None,
) -> list[Scored]:
    from joblib import delayed

    from .replay.diffusion import read_recording

    campaigns = [path for path in paths if replay_llm.is_campaign(path)]
    externals = [path for path in paths if replay_external.is_external(path)]
    chats = [path for path in paths if replay_chat.is_chat(path)]
    agents = [path for path in paths if replay_agents.is_agents(path)]
    others = [path for path in paths if path not in (*campaigns, *externals, *chats, *agents)]
    found = [(recording, run) for recording in map(read_recording, others) for run in recording.runs]
    tasks = [(recording, run, seed, terms) for recording, run in found for seed in range(seeds)]
    rows = []
    for row in pooled(jobs, (delayed(_replayed)(*task) for task in tasks)):
        rows.append(row)
        if progress is not None:
            sent, met = (
                sum(len(run.outcome) for _, run, *_ in tasks[: len(rows)]),
                float_sum(row["met"] for row in rows),
            )
            progress(len(rows), len(tasks), met / sent)
    scored = []
    for i, (recording, run) in enumerate(found):
        same = rows[i * seeds : (i + 1) * seeds]
        mean: Row = {name: float_sum(row[name] for row in same) / seeds for name in ("met", "finished")}
        mean["met_by_seed"] = [row["met"] for row in same]
        sent, met = len(run.outcome), run.outcome.count("m")
        measured = MeasuredRun(
            line=0,
            cells={},
            workload=recording.model,
            policy=run.policy,
            rate=run.rate,
            cv=run.cv,
            slo_factor=run.slo_factor,
            requests=sent,
            met=met,
            finished=met + run.outcome.count("l"),
            start=None,
            step_delta=None,
        )
        known = (*run_table.COLUMNS, "repeat")
        cells = {name: str(getattr(run if name == "repeat" else measured, name)) for name in known}
        measured = replace(measured, cells=cells)
        sent_ones = _number_of((run.steps, [round(x, 3) for x in run.slo]))
        scored.append(Scored(measured, {**mean, "mean_batch_size": None}, seed=sent_ones))
    for path in campaigns:
        scored += _score_campaign(path, seeds, jobs)
    for path in chats:
        scored += _score_chat(path, seeds)
    for path in agents:
        scored += _score_agents(path)
    open_ones = [path for path in externals if replay_external.read(path).measured is not None]
    for path in open_ones or externals[: not scored]:
        scored += _score_external(path)
    if out is not None:
        tables.write(out, [s.line() for s in scored])
    return scored


def _score_campaign(path: Path, seeds: int, jobs: int) -> list[Scored]:
    """Runs of a language model."""
    from servetwin.profiles import load

    campaign = replay_llm.read(path)
    if campaign.profile is None:
        raise BadInput("does not say by which profile its runs are to be repeated", where=str(path), right="profile")
    return of_tokens(campaign, replay_llm.scored(campaign, load(campaign.profile), seeds, jobs))


def _score_chat(path: Path, seeds: int) -> list[Scored]:
    """Runs of a language model under limits on ttft and tpot."""
    profile, runs = replay_chat.read(path)
    scored = []
    for run in runs:
        simulated = replay_chat.simulate(run, profile, seeds)
        with run.spec(profile) as experiment:
            arrivals: Any = experiment.workload.arrivals
        measured = MeasuredRun(
            line=0,
            cells={},
            workload=profile,
            policy=run.policy,
            rate=getattr(arrivals, "rate", math.nan),
            cv=getattr(arrivals, "cv", math.nan),
            slo_factor=math.nan,
            requests=len(run.requests),
            met=run.met,
            finished=run.finished,
            start=None,
            step_delta=None,
        )
        cells = {"run": run.name, **{name: str(getattr(measured, name)) for name in run_table.COLUMNS}}
        row: Row = {"met": simulated.met, "finished": simulated.finished, "mean_batch_size": None}
        row["met_by_seed"] = list(simulated.met_by_seed)
        sent_ones = _number_of([row[1:4] for row in run.requests])
        scored.append(Scored(replace(measured, cells=cells), row, seed=sent_ones))
    return scored


def _score_agents(path: Path) -> list[Scored]:
    """Runs of a pipeline of language models. Their seeds draw their requests, so each is simulated once."""
    recording = replay_agents.read(path)
    scored = []
    for one in replay_agents.compare(recording):
        measured = MeasuredRun(
            line=0,
            cells={},
            workload=recording["workload"],
            policy=one.policy,
            rate=one.rate,
            cv=math.nan,
            slo_factor=math.nan,
            requests=one.requests,
            met=one.met[0],
            finished=one.finished[0],
            start=None,
            step_delta=None,
        )
        cells = {"run": one.name, **{name: str(getattr(measured, name)) for name in run_table.COLUMNS}}
        row: Row = {"met": one.met[1], "finished": one.finished[1], "mean_batch_size": None}
        row["met_by_seed"] = [one.met[1]]
        scored.append(Scored(replace(measured, cells=cells), row))
    return scored


def _score_external(path: Path) -> list[Scored]:
    """A run that somebody else measured: a row for each pair of limits on ttft and tpot."""
    run = replay_external.read(path)
    scored = []
    for at in replay_external.goodput(run, replay_external.simulate(run)):
        measured = MeasuredRun(
            line=0,
            cells={},
            workload=run.name,
            policy="vllm-v1",
            rate=math.nan,
            cv=math.nan,
            slo_factor=math.nan,
            requests=len(run.requests),
            met=at.measured,
            finished=len(run.requests),
            start=None,
            step_delta=None,
        )
        cells = {name: str(getattr(measured, name)) for name in run_table.COLUMNS}
        limits = {"ttft_limit_s": f"{at.ttft:.6g}", "tpot_limit_s": f"{at.tpot:.6g}"}
        row: Row = {"met": at.simulated, "finished": len(run.requests), "mean_batch_size": None}
        row["met_by_seed"] = [at.simulated]
        scored.append(Scored(replace(measured, cells={**cells, **limits}), row))
    return scored


def external_means(path: Path) -> list[tuple[str, str | None, list[replay_external.Means]]]:
    """Of each run at *path* that somebody else measured: its name, what its profile stands on, and its means."""
    from servetwin.profiles import load, verdict

    found = []
    for recording in filter(replay_external.is_external, _recordings_in(path)):
        run = replay_external.read(recording)
        basis = verdict.basis(load(run.profile).data)
        found.append((run.name, basis, replay_external.means(run, replay_external.simulate(run))))
    return found


def of_tokens(campaign: replay_llm.Campaign, pairs: Iterable[replay_llm.Pair]) -> list[Scored]:
    """What `replay_llm.scored` gives of the runs of a language model, as rows. Met is who had all tokens on time."""
    scored = []
    for run, slo, real, simulated in pairs:
        measured = MeasuredRun(
            line=0,
            cells={},
            workload=f"{campaign.profile} {slo}",
            policy=run.policy,
            rate=run.rate,
            cv=run.cv,
            slo_factor=math.nan,
            requests=real.requests,
            met=int(real.good),
            finished=int(real.finished),
            start=None,
            step_delta=None,
        )
        known = (*run_table.COLUMNS, "repeat")
        cells = {name: str(getattr(run if name == "repeat" else measured, name)) for name in known}
        row: Row = {"met": simulated.good, "finished": simulated.finished, "mean_batch_size": None}
        row["met_by_seed"] = list(simulated.by_draw)
        sent_ones = _number_of([(sent.prompt, sent.limit) for sent in run.requests])
        scored.append(Scored(replace(measured, cells=cells), row, seed=sent_ones))
    return scored


def _number_of(requests: Any) -> int:
    """A number that is the same for the same *requests*: recordings do not say which seed drew them."""
    return zlib.crc32(repr(requests).encode())


def _replayed(recording: Recording, run: RecordedRun, seed: int, terms: TimeOptions) -> Row:
    summary = recording.replay(run, options=terms, seed=seed)
    return {"met": summary.met, "finished": summary.finished}


def entries(scored: Sequence[Scored]) -> tuple[list[Entry], list[Entry]]:
    """The two sides of *scored*, measured and simulated, as collections over one grid, for `compare_grids.grids_of`.
    Where only those that finished were counted they stand for those that met their SLO, on both sides.
    """
    sides: tuple[list[Entry], list[Entry]] = ([], [])
    for s in scored:
        run, share = s.run, 100.0 / s.run.requests
        if "ttft_limit_s" in run.cells:
            continue  # of one run under many limits there is nothing to decide
        counted = "met" if run.met is not None else "finished"
        was = getattr(run, counted)
        if was is None:
            continue
        rate, cv, factor = (None if math.isnan(x) else x for x in (run.rate, run.cv, run.slo_factor))
        setting = Setting(run.workload, rate, cv, factor)
        seed = int(run.cells["seed"]) if run.cells.get("seed") else s.seed
        for side, met, finished in (
            (sides[0], was, run.finished if run.finished is not None else was),
            (sides[1], s.result[counted], s.result["finished"]),
        ):
            served = run.deployment or run.cells.get("deployment") or run.variant
            shares = (share * met, share * finished)
            side.append(Entry(setting, run.policy, seed, *shares, deployment=served, others=s.others))
    return sides


@dataclass(frozen=True)
class Gaps:
    """The gaps of a part of the runs: mean and largest absolute value, or None without any."""

    workload: str
    policy: str
    runs: int
    met: tuple[float, float] | None
    finished: tuple[float, float] | None
    batch: tuple[float, float] | None


def gaps_of(scored: Sequence[Scored]) -> list[Gaps]:
    """The gaps per workload and policy, and in all (last, under the name "all")."""
    groups: dict[tuple[str, str], list[Scored]] = {}
    for s in scored:
        groups.setdefault((s.run.workload, s.run.policy), []).append(s)
    if len(groups) > 1:
        groups["all", ""] = list(scored)
    return [_gaps(name, policy, group) for (name, policy), group in groups.items()]


def _gaps(workload: str, policy: str, group: list[Scored]) -> Gaps:
    return Gaps(
        workload,
        policy,
        len(group),
        _mean_and_max(s.gap_met for s in group),
        _mean_and_max(s.gap_finished for s in group),
        _mean_and_max(s.gap_batch for s in group),
    )


def _mean_and_max(gaps: Iterable[float | None]) -> tuple[float, float] | None:
    sizes = [abs(g) for g in gaps if g is not None]
    return (float_sum(sizes) / len(sizes), max(sizes)) if sizes else None
