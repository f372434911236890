"""A report about results: run folders, sweeps' tables, scores' tables and comparisons', into one `Document`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ..spec import yaml_io
from ..spec.experiment import Experiment
from ..sweeps import sweep, tables
from ..sweeps.point import settings_of
from ..validation.comparison import compare_runs
from ..validation.comparison.compare_grids import read_rows
from . import run_sections, score_sections, sweep_sections, validity, windows
from .document import Document, Listing, Note, Part, Section, Styles, percent, plural
from .markdown import markdown
from .page import page
from .sweep_columns import number_in

Row = dict[str, Any]
#: The seconds of windows that a run is told by (None: some thirty), and an objective.
ByWindow = tuple[float | None, float | None]
NOT_SAID: ByWindow = (None, None)

RIGHT = "a run folder, a folder of them, or a table of `servetwin sweep`, `score` or `compare`"
#: Up to so many runs of one folder are shown one by one; more are a grid.
FEW = 4
#: Settings of a sweep that `servetwin run` has options for.
OPTIONS = ("policy", "rate", "cv", "slo", "requests", "seed")
#: What the two sides of pairs are called.
SCORED, COMPARED = ("measured", "simulated"), ("first", "second")


@dataclass
class _Results:
    """What was given, by kind."""

    runs: list[Path] = field(default_factory=list)
    sweeps: list[tuple[Path, list[Row]]] = field(default_factory=list)
    pairs: list[tuple[Path, list[score_sections.Pair], tuple[str, str]]] = field(default_factory=list)
    measured: list[Row] = field(default_factory=list)


@dataclass
class _Chapter:
    """What a report says of one kind of results."""

    title: str
    question: str
    answer: str
    facts: list[tuple[str, str]]
    sections: list[Section]


def write(
    results: Sequence[Path],
    out: Path,
    *,
    target: float = 90.0,
    window: str | None = None,
    by_window: ByWindow = NOT_SAID,
    command: Sequence[str] = (),
) -> None:
    """Write a page about *results* to *out* (.html). Raises `BadInput`; then nothing is written."""
    tables.check_target(out, (".html",), "page")
    text = page(
        document(results, target=target, window=window, by_window=by_window, command=command), made_by(command)
    )
    tables.write_text(out, text)


def as_markdown(
    results: Sequence[Path],
    *,
    target: float = 90.0,
    window: str | None = None,
    by_window: ByWindow = NOT_SAID,
    command: Sequence[str] = (),
) -> str:
    """The same as Markdown. Raises `BadInput`."""
    said = document(results, target=target, window=window, by_window=by_window, command=command)
    return markdown(said, made_by(command))


def made_by(command: Sequence[str]) -> str:
    try:
        release = version("servetwin")
    except PackageNotFoundError:
        release = "from a checkout"
    return f"ServeTwin {release}" + (f": {shlex.join(command)}" if command else "")


def document(
    results: Sequence[Path],
    *,
    target: float = 90.0,
    window: str | None = None,
    by_window: ByWindow = NOT_SAID,
    command: Sequence[str] = (),
) -> Document:
    """What there is to say of *results*. *target* is the attainment, in percent, of "largest rate that holds";
    *window* (``START:SECONDS``) is what the closer look at a run shows, *by_window* are the seconds of windows that
    runs are told by, and an objective (`windows`). Raises `BadInput`."""
    windows.check(*by_window)
    if not 0.0 < target <= 100.0:
        raise BadInput(f"{target:g} is no attainment to hold", where="--target", right="percent, above 0 to 100")
    from .gantt import window_of

    chosen = window_of(window) if window is not None else None
    given = _sorted(results)
    if window is not None and not given.runs:
        raise BadInput("there is no run to look at closely", where="--window", right="a run folder")
    if by_window != NOT_SAID and not given.runs:
        raise BadInput("there is no run to tell by windows", where="--windows", right="a run folder")
    styles = Styles()
    chapters = [*_of_pairs(given, styles, target), *_of_sweeps(given, styles, target)]
    if given.runs:
        chapters.append(_of_runs(given.runs, styles, chosen, by_window))
    sections = list(chapters[0].sections)
    for chapter in chapters[1:]:
        sections.append(Section(chapter.title, [Note(chapter.question), Note(chapter.answer)]))
        sections += chapter.sections
    if command:
        note = "This report is made again, where its results are, by"
        sections.append(Section("Make it again", [Listing(note, shlex.join(command), folded=False)]))
    first = chapters[0]
    return Document(first.title, first.question, first.answer, first.facts, sections, styles)


def _sorted(results: Sequence[Path]) -> _Results:
    """The *results* by kind. Raises `BadInput` for what is none."""
    given = _Results()
    for path in dict.fromkeys(results):
        if path.is_dir():
            _add_folder(given, path)
        elif path.suffix in (".csv", ".parquet"):
            _add_table(given, path)
        else:
            what = "this is no result" if path.exists() else "there is no such file or folder"
            raise BadInput(what, where=str(path), right=RIGHT)
    if given.measured and not given.sweeps and not given.pairs:
        given.sweeps.append((Path("measured runs"), given.measured))
        given.measured = []
    return given


def _add_folder(given: _Results, folder: Path) -> None:
    if compare_runs.is_run(folder):
        given.runs.append(folder)
        return
    found = compare_runs.find_runs(folder)
    if not found:
        raise BadInput("there is no run in it that came to its end", where=str(folder), right=RIGHT)
    if len(found) <= FEW:
        given.runs += found
        return
    rows = [(_row_of(run), compare_runs.read(run).meta.get("kind")) for run in found]
    given.measured += [row for row, kind in rows if kind == "real"]
    simulated = [row for row, kind in rows if kind != "real"]
    if simulated:
        given.sweeps.append((folder, simulated))


def _row_of(folder: Path) -> Row:
    """A run as a row of a sweep's table. Raises `BadInput`."""
    run = compare_runs.read(folder)
    experiment = validity.experiment_of(run.meta.get("experiment"))
    if experiment is None:
        what = "its meta.json holds no experiment of this version"
        raise BadInput(what, where=str(folder), right="a folder that `servetwin run --out` wrote")
    summary = {key: value for key, value in run.summary.items() if isinstance(value, int | float | str | None)}
    return {**settings_of(experiment), "requests": 0, "met": 0, **summary}


def _add_table(given: _Results, path: Path) -> None:
    rows = read_rows(path)
    columns = set(rows[0]) if rows else set()
    if {"sim_met", "workload", "policy", "requests"} <= columns:
        pairs = score_sections.of_score(rows)
        _some(pairs, path)
        given.pairs.append((path, pairs, SCORED))
        given.measured += [
            {**row, "attainment": (number_in(row["met"]) or 0.0) / (number_in(row["requests"]) or 1.0)}
            for row in rows
            if number_in(row.get("met")) is not None
        ]
    elif {"attainment_first", "attainment_second", "workload", "policy"} <= columns:
        pairs = score_sections.of_cells(rows)
        _some(pairs, path)
        given.pairs.append((path, pairs, COMPARED))
    elif {"attainment", "met", "workload", "policy"} <= columns:
        given.sweeps.append((path, rows))
    else:
        raise BadInput("this is no table that a report can be made of", where=str(path), right=RIGHT)


def _some(pairs: Sequence[Any], path: Path) -> None:
    if not pairs:
        raise BadInput("no row has both a measured and a simulated count", where=str(path), right=RIGHT)


# -- what there is to say -------------------------------------------------------------------------------


def _of_pairs(given: _Results, styles: Styles, target: float) -> list[_Chapter]:
    chapters = []
    for path, pairs, names in given.pairs:
        title = f"{'Score' if names == SCORED else 'Comparison'}: {path.name}"
        sections = score_sections.sections(pairs, styles, target, names)
        if names == SCORED:
            where = [validity.Setting(p.workload, p.policy, p.rate, p.cv, p.slo_factor) for p in pairs]
            sections.append(validity.section(_known_by_name(p.workload for p in pairs), where))
        chapters.append(
            _Chapter(
                title,
                score_sections.question(pairs, names),
                score_sections.answer(pairs, target),
                score_sections.facts(pairs, target),
                sections,
            )
        )
    if given.sweeps and given.pairs:  # the sweep is what was asked, and the measured points are laid over it
        return [chapter for chapter, (_, _, names) in zip(chapters, given.pairs, strict=True) if names == COMPARED]
    return chapters


def _known_by_name(names: Any) -> list[Experiment]:
    """The workloads that come with ServeTwin, of those that are named."""
    from ..registry.catalog import workload_names
    from ..spec.loading import load

    known = set(workload_names())
    return [load(name) for name in dict.fromkeys(names) if name in known]


def _of_sweeps(given: _Results, styles: Styles, target: float) -> list[_Chapter]:
    chapters = []
    for path, rows in given.sweeps:
        grid = sweep_sections.Grid(rows, str(path), given.measured)
        spec = sweep.spec_beside(path)
        experiments, doubts = _experiments_of(spec, path)
        points = experiments
        if not experiments:
            experiments = _known_by_name(grid.workloads)
        where = [
            validity.Setting(str(r["workload"]), str(r["policy"]), *(number_in(r.get(k)) for k, _ in validity.RANGES))
            for r in rows
        ]
        beyond = sum((number_in(row.get("steps_beyond_measured")) or 0) > 0 for row in rows)
        if beyond:
            doubts.append(f"{plural(beyond, 'point')} went beyond what its profile measured, and held the last value")
        sections = sweep_sections.sections(grid, styles, target)
        sections += [
            *_over_time(spec, experiments, rows),
            validity.section(experiments, where, doubts, points),
            *_asked(spec, rows),
        ]
        called = spec.name if spec is not None and spec.name != "sweep" else path.name
        title = spec.about or called if spec is not None else called
        question, answer = sweep_sections.question(grid), sweep_sections.answer(grid, target)
        chapters.append(_Chapter(f"Sweep: {title}", question, answer, sweep_sections.facts(grid), sections))
    return chapters


def _experiments_of(spec: sweep.SweepFile | None, path: Path) -> tuple[list[Experiment], list[str]]:
    """The experiments of a sweep, as its files are now; and what is to be said of that."""
    if spec is None:
        return [], ["beside the table lies no file that says what was asked"]
    try:
        return sweep.points(spec, path.with_name(path.name + ".spec.yaml"))[0], []
    except BadInput as error:
        return [], [f"what was asked cannot be resolved here any more: {error.what}"]


def _over_time(spec: sweep.SweepFile | None, experiments: Sequence[Experiment], rows: Sequence[Row]) -> list[Section]:
    """How one sees what a sweep keeps no records of, for the last of its points that a command can name. Of a point
    that was repeated (then its row has a number of seeds) that is a run with the first of its seeds."""
    seeds = max((int(number_in(row.get("seeds")) or 0) for row in rows), default=0)
    # Repeated points are drawn from their seeds, also where the workload's draws are published ones.
    redrawn = seeds > 0 and not (experiments and all(e.workload.draws == "seeded" for e in experiments))
    for block in reversed(spec.sweeps if spec is not None else ()):
        values = {**block.set, **list(sweep.combinations(block, "sweep"))[-1]}
        source = values.pop("workload", values.pop("extends", block.extends))
        if not isinstance(source, str):
            continue
        if redrawn:
            values["workload.draws"] = "seeded"
        words = ["servetwin", "run", source]
        for key, value in values.items():
            told = value if isinstance(value, str) else json.dumps(value)
            words += (
                [f"--{key}", told] if key in OPTIONS and not isinstance(value, dict) else ["--set", f"{key}={told}"]
            )
        note = (
            "A sweep keeps counts and latencies of its points, and no records. Queues, batch sizes, KV cache use and"
            " busy devices over time are in the report of a run that leaves records. For one of the points"
        )
        note += f", with the first of its {seeds} seeds:" if seeds > 1 else ":"
        commands = f"{shlex.join([*words, '--out', 'point'])}\nservetwin report point --out point.html"
        return [Section("Over time", [Listing(note, commands, folded=False)])]
    return []


def _asked(spec: sweep.SweepFile | None, rows: Sequence[Row]) -> list[Section]:
    """What was swept, in full."""
    if spec is None:
        return []
    text = yaml_io.write(
        {"name": spec.name, "about": spec.about, "sweeps": spec.model_dump(exclude_defaults=True)["sweeps"]}
    )
    seeds = {int(n) for row in rows if (n := number_in(row.get("seeds"))) is not None}
    option = f" --seeds {max(seeds)}" if len(seeds) == 1 else " --until ..." if seeds else ""
    note = f"The sweep: as sweep.yaml, it runs again by servetwin sweep sweep.yaml --out sweep.csv{option}"
    return [Section("What was run", [Listing(note, text)])]


def _of_runs(
    folders: Sequence[Path], styles: Styles, window: tuple[float, float] | None, by_window: ByWindow
) -> _Chapter:
    runs = run_sections.read(folders)
    run_sections.style(runs, styles)
    sections = run_sections.sections(runs, styles, window, by_window)
    if len(runs) == 2:
        sections.insert(0, run_sections.comparison(*runs))
    known = [e for run in runs if (e := validity.experiment_of(run.experiment)) is not None]
    simulated = [run for run in runs if run.kind != "real"]
    where = [
        validity.Setting(s["workload"], s["policy"], s["rate"], s["cv"], s["slo_factor"])
        for run in simulated
        if (experiment := validity.experiment_of(run.experiment)) is not None
        for s in (settings_of(experiment),)
    ]
    points = [e for run in simulated if (e := validity.experiment_of(run.experiment)) is not None]
    sections.append(validity.section(known, where, run_sections.held(runs), points))
    sections.append(Section("What was run", _listings(runs)))
    if len(runs) == 1:
        run = runs[0]
        title = f"Run: {run.name}"
        return _Chapter(
            title, run_sections.question(run), run_sections.answer(run), run_sections.facts(run), sections
        )
    ranked = sorted(runs, key=lambda run: -(run.summary["attainment"] or 0.0))
    said = ", ".join(f"{run.name} {percent(run.summary['attainment'])}" for run in ranked)
    facts = [(run.name, percent(run.summary["attainment"])) for run in runs]
    title = "Runs: " + ", ".join(run.name for run in runs)
    asked, found = f"How do {len(runs)} runs compare?", f"Requests that met their SLO: {said}."
    if len(runs) == 2:
        asked, found = run_sections.difference(*runs)
    return _Chapter(title, asked, found, facts, sections)


def _listings(runs: Sequence[run_sections.Run]) -> list[Part]:
    """The experiments in full, and how to run them again."""
    parts: list[Part] = []
    for run in runs:
        path = run.records.folder / "experiment.yaml"
        text = yaml_io.read_text(path) if path.is_file() else yaml_io.write(run.experiment)
        again = "servetwin run experiment.yaml --out again"
        if run.kind == "real":
            again = f"{again} --backend real (or vllm), on such devices"
        parts.append(Listing(f"The experiment of {run.name}: as experiment.yaml, it runs again by {again}", text))
    return parts
