"""Sweeps: one experiment along axes, a row per point.

A sweep file holds one block, or several under ``sweeps``::

    extends: dit-s2-256-rtx4090          # a workload, or a file
    set: {slo: 4.0}                      # what holds for all points
    grid:                                # every combination of these
      policy: [neustream, clockwork]
    zip:                                 # these together, line by line
      seed: [1, 2, 3]
      workload.draws: [seeded, seeded, seeded]
    vary:                                # these one at a time, around the experiment as it is
      rate: [1.0, 2.0, 4.0]
      cv: [1.0, 2.0]

An axis is any key of the experiment, or a short name (rate, cv, slo, policy, requests, step_delta, seed); the axis
``workload`` takes the place of ``extends``. Points that come up twice are run once and have one row.

While it runs, each finished point is added to ``<out>.part``. A sweep that is killed and started again takes from
there what it had; what is no longer true is run anew, for rows are known by their points' keys.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field, ValidationError
from servetwin.core import BadInput
from servetwin.core.processes.one_at_a_time import open_alone

from ..assembly.build import stands_on, time_shared
from ..provenance.stored_rows import Kept, decode, encode
from ..registry.catalog import FIGURES, figure_names, suggest
from ..spec import yaml_io
from ..spec.experiment import Experiment
from ..spec.keys.field_types import Strict
from ..spec.loading import layers, load, load_profiles, locate
from ..spec.overrides import SHORT, ByOption
from ..spec.variants import Layer
from ..workload.seed_effect import along_seeds, check_seed_axis, check_seeds_once
from . import tables
from .cache import Cache
from .cluster import running_on
from .point import Changed, Point, Progress, Row, Together, run_all, settings_of
from .repeat import Repeated, repeat
from .repeat import versus as differences

#: How sure the intervals of a table are.
LEVEL = 0.95

Axis = Annotated[list[Any], Field(min_length=1)]
Values = dict[str, Any]


class Block(Strict):
    """One experiment and its axes."""

    extends: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Axis] = Field(default_factory=dict)
    zip: dict[str, Axis] = Field(default_factory=dict)
    vary: dict[str, Axis] = Field(default_factory=dict)


class SweepFile(Strict):
    """A sweep of several blocks."""

    name: str = "sweep"
    about: str = ""
    sweeps: Annotated[list[Block], Field(min_length=1)]


# -- reading --------------------------------------------------------------------------------------------


def find(source: str | Path) -> Path:
    """The sweep file that *source* means: a path, or the name of a figure that comes with ServeTwin."""
    text = str(source)
    if text.endswith((".yaml", ".yml")) or isinstance(source, Path):
        return Path(text).expanduser()
    known = figure_names()
    if text not in known:
        raise BadInput(f"unknown sweep {text!r}", right=f"{suggest(text, known)}; or a file, sweep.yaml")
    return FIGURES / f"{text}.yaml"


def read(path: Path) -> SweepFile:
    """Read a sweep file. Raises `BadInput`."""
    data, text = yaml_io.read(path)
    if not isinstance(data, dict):
        raise BadInput("there is no mapping of keys to values", where=str(path), right="extends: ..., grid: ...")
    one = "sweeps" not in data
    if one:
        _no_experiment(data, path)
        outer = {k: data.pop(k) for k in ("name", "about") if k in data}
        data = {**outer, "sweeps": [data]}
    try:
        return SweepFile.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        loc = tuple(p for p in first["loc"])
        line = yaml_io.line_of(text, loc) or yaml_io.line_of(text, loc[2:])
        key = ".".join(map(str, loc[2:] if one and loc[0] == "sweeps" else loc))
        where = f"{path}:{line}: {key}" if line else f"{path}: {key}"
        if first["type"] == "extra_forbidden":
            known = Block.model_fields if "sweeps" in loc[:-1] else SweepFile.model_fields
            raise BadInput(f"unknown key {str(loc[-1])!r}", where=where, right=suggest(str(loc[-1]), known)) from None
        right = first["msg"].removeprefix("Input should be ").removeprefix("List should have ")
        if first["type"] == "list_type" and not isinstance(first["input"], dict):
            right = f"a list: [{first['input']}]"
        raise BadInput("the value does not fit", where=where, right=right) from None


def spec_beside(table: Path) -> SweepFile | None:
    """What the sweep of *table* was asked, as the file beside that says; None if there is none that can be read."""
    beside = table.with_name(table.name + ".spec.yaml")
    if not beside.is_file():
        return None
    try:
        content, _ = yaml_io.read(beside)
        return SweepFile.model_validate({k: content[k] for k in ("name", "about", "sweeps") if k in content})
    except (BadInput, ValidationError, TypeError):
        return None


def _no_experiment(data: Values, path: Path) -> None:
    """Raise `BadInput` if *data*, the content of *path*, is an experiment."""
    keys = Experiment.model_fields.keys() - {"name", "about"}
    if keys & data.keys() and not data.keys() & {"set", "grid", "zip", "vary"}:
        right = f"a sweep file, which extends one: `extends: {path.name}` and `grid: {{rate: [1, 2]}}`"
        raise BadInput("this is an experiment, and no sweep", where=str(path), right=right)


def points(spec: SweepFile, path: Path, of: Mapping[str, Any] | None = None) -> tuple[list[Experiment], list[Values]]:
    """The experiments of a sweep, each once, and the values of their axes. Raises `BadInput` before anything runs.

    *path* is the file of *spec*, or where it would be. *of* is the content of an experiment file, for blocks that
    name none.
    """
    found: dict[str, tuple[Experiment, Values]] = {}
    chains: dict[str, list[Layer]] = {}
    differing = _between_blocks(spec)
    for number, block in enumerate(spec.sweeps):
        own = {_full(k): v for k, v in {"workload": block.extends, **block.set}.items()}
        for axes in combinations(block, f"{path}: sweeps.{number}"):
            values = {**block.set, **axes}
            source = values.pop("workload", values.pop("extends", block.extends))
            if source is None and of is not None:
                chain = chains.setdefault("", layers(dict(of)))
            elif not isinstance(source, str):
                right = "extends: dit-s2-256-rtx4090, or an axis workload"
                raise BadInput("there is nothing to sweep", where=f"{path}: sweeps.{number}", right=right)
            else:
                if source not in chains:
                    chains[source] = layers(locate(source, path.parent))
                chain = chains[source]
            asked = [(_named(key, block, path), value) for key, value in values.items()]
            experiment = load(source or "", asked, chain=chain)
            places = {**{key: own.get(key) for key in differing}, **{_full(k): v for k, v in axes.items()}}
            found.setdefault(experiment.digest(), (experiment, places))
    check_seed_axis((e for e, _ in found.values()), f"{path}: seed")
    return [e for e, _ in found.values()], [v for _, v in found.values()]


def _between_blocks(spec: SweepFile) -> list[str]:
    """What blocks set to different values: a table must tell their points apart by it, as by an axis."""
    every = [{_full(k): v for k, v in {"workload": b.extends, **b.set}.items()} for b in spec.sweeps]
    keys = dict.fromkeys(key for own in every for key in own)
    return [key for key in keys if len({repr(own.get(key)) for own in every}) > 1]


def _named(key: str, block: Block, path: Path) -> str:
    """*key*, with where in the file *path* it stands, if there is a file, for errors to name."""
    part = next((part for part in ("grid", "zip", "vary") if key in getattr(block, part)), "set")
    return ByOption(key, f"{path}: {part}.{key}") if path.is_file() else key


def _full(axis: str) -> str:
    return SHORT.get(axis, axis)


def combinations(block: Block, where: str) -> Iterator[Values]:
    """The values of the axes, point by point."""
    lengths = {len(v) for v in block.zip.values()}
    if len(lengths) > 1:
        sizes = ", ".join(f"{k}: {len(v)}" for k, v in block.zip.items())
        raise BadInput(f"zipped axes differ in length ({sizes})", where=f"{where}.zip", right="lists of one length")
    grid = [[(axis, value) for value in values] for axis, values in block.grid.items()]
    together = [dict(zip(block.zip, values, strict=True)) for values in zip(*block.zip.values(), strict=True)] or [{}]
    alone: list[Values] = [{axis: value} for axis, values in block.vary.items() for value in values] or [{}]
    for cell in itertools.product(*grid):
        for line in together:
            for one in alone:
                yield {**dict(cell), **line, **one}


# -- running --------------------------------------------------------------------------------------------


def _shared(experiments: Sequence[Experiment]) -> list[str]:
    """Who shares a device in time in *experiments*, since nobody measured them together; each line once."""
    alike = {(repr(e.deployment), repr(e.pipeline), e.time.unmeasured): e for e in experiments}
    return [*dict.fromkeys(line for e in alike.values() for line in (*time_shared(e), *stands_on(e)))]


def _empty(points: Sequence[Repeated]) -> list[str]:
    """Where in *points* nothing is sent under some of several seeds, by the experiment's name."""
    names = {p.experiment.name: None for p in points if len(p.rows) > 1 and not p.all_send}
    return [f"{name}: no request is sent under some seed: attainment of that point is left empty" for name in names]


class Beside(Protocol):
    """What further columns come from, of runs of another kind than the points' own; `check` raises `BadInput` before
    anything runs."""

    def check(self, experiments: Sequence[Experiment], /) -> None: ...

    def columns(
        self, points: Sequence[Repeated], run: Callable[[Sequence[Experiment], Point], list[Row]], level: float, /
    ) -> list[Row]: ...


def sweep(
    source: str | Path | SweepFile,
    out: Path | None,
    *,
    of: Mapping[str, Any] | None = None,
    jobs: int = -1,
    progress: Progress | None = None,
    cache: Cache | None = None,
    cluster: str | None = None,
    seeds: int | None = None,
    until: float | None = None,
    most: int = 100,
    versus: str | None = None,
    beside: Beside | None = None,
    say: Callable[[str], None] | None = None,
    look: Callable[[Sequence[Experiment]], None] | None = None,
) -> list[Row]:
    """Run the sweep *source* (a file, a figure's name, or the content of a file) and write its table to *out*, if
    that is given; returns the rows. *of* is as in `point`.

    With *seeds* or *until* each point is repeated (see `servetwin.experiments.sweeps.repeat`), and its row holds
    means and intervals; with *versus*, also how it differs from that policy; with *beside*, what that has to say of
    it (`servetwin.experiments.bound.sweep_bounds`). *cache* knows points of other sweeps,
    *cluster* is the address of one to run on. *look* is shown the experiments, row by row, before anything runs.

    All rows are of one version of policies, profiles and traces: if one is changed while the sweep runs, it begins
    again with what there is then, of which *say* hears, as of rows that could not be kept. Raises `Changed` if that
    does not end.
    """
    if out is not None:
        tables.check_target(out)
    path = Path.cwd() / "sweep" if isinstance(source, SweepFile) else find(source)
    say = say or (lambda _: None)
    with Partial(out) as partial:
        for attempt in range(_TRIES):
            together = Together()
            spec = source if isinstance(source, SweepFile) else read(path)
            experiments, axes = points(spec, path, of)
            (look or (lambda _: None))(experiments)
            if seeds is not None or until is not None:
                check_seeds_once(experiments, "--until" if seeds is None else "--seeds")
            for deployed in {str(e.deployment.devices): e for e in experiments}.values():
                load_profiles(deployed)  # one that is missing shows before anything is written
            if beside is not None:
                beside.check(experiments)
            run = _Runs(partial, cache, jobs, progress, len(experiments), together)
            try:
                with running_on(cluster):
                    if seeds is None and until is None and versus is None:
                        results = run(experiments)
                        repeated = [Repeated(e, [row]) for e, row in zip(experiments, results, strict=True)]
                    else:
                        repeated = repeat(experiments, run, seeds=seeds, until=until, most=most)
                        results = [point.summary(LEVEL) for point in repeated]
                    more = [differences(repeated, axes, versus, LEVEL)] if versus is not None else []
                    more += [beside.columns(repeated, run, LEVEL)] if beside is not None else []
                results = [
                    {k: v for part in parts for k, v in part.items()} for parts in zip(results, *more, strict=True)
                ]
                break
            except Changed as change:
                if attempt == _TRIES - 1:
                    raise
                say(f"{str(change).partition(';')[0]}: the sweep begins again with what there is now")
        for line in (*_shared(experiments), *_empty(repeated)):
            say(line)
        for line in along_seeds(experiments, results) if seeds is None and until is None and versus is None else ():
            say(line)
        for doubt in together.doubts if cache is not None else ():
            say(f"rows are not kept, so that they are run each time: {doubt}")
        rows = _rows(experiments, axes, results)
        if out is not None:
            copy = {"name": spec.name, "about": spec.about, **together.made_of()}
            copy["sweeps"] = spec.model_dump()["sweeps"]
            if of is not None:
                copy["of"] = dict(of)
            tables.write(out, rows)
            tables.write_text(out.with_name(out.name + ".spec.yaml"), yaml_io.write(copy))
            partial.remove()
    return rows


#: How often a sweep begins again when something that it is made of was changed.
_TRIES = 5


class _Runs:
    """Runs the points of a sweep, batch by batch."""

    def __init__(
        self,
        partial: Partial,
        cache: Cache | None,
        jobs: int,
        progress: Progress | None,
        expected: int,
        together: Together,
    ) -> None:
        self.partial, self.cache, self.jobs = partial, cache, jobs
        self.progress, self.expected, self.together = progress, expected, together
        self.ended = 0

    def __call__(self, batch: Sequence[Experiment], point: Point | None = None) -> list[Row]:
        """The rows of *batch*; runs of another *point* than the sweep's own answer another question, and are all of
        one version among themselves."""
        self.expected = max(self.expected, self.ended + len(batch))
        rows = run_all(
            batch,
            jobs=self.jobs,
            known=self._known,
            finished=self._finished,
            progress=self._report if self.progress is not None else None,
            together=self.together if point is None else Together(),
            point=point,
        )
        self.ended += len(batch)
        return rows

    def _report(self, done: int, share: float | None) -> None:
        assert self.progress is not None
        self.progress(self.ended + done, self.expected, share)

    def _known(self, key: str) -> Kept | None:
        kept = self.partial.find(key)
        return kept if kept is not None or self.cache is None else self.cache.find(key)

    def _finished(self, key: str, row: Row, reads: Mapping[str, str]) -> None:
        self.partial.add(key, row, reads)
        if self.cache is not None:
            self.cache.add(key, row, reads)


_COLUMN_OF = {
    "policy.name": "policy",
    "workload.arrivals.rate": "rate",
    "workload.arrivals.cv": "cv",
    "deployment.name": "deployment",
}


def _rows(experiments: Sequence[Experiment], axes: Sequence[Values], results: Sequence[Row]) -> list[Row]:
    told = any(isinstance(a.get("policy.name"), dict) for a in axes)
    return [row_of(e, a, r, params=told) for e, a, r in zip(experiments, axes, results, strict=True)]


def row_of(experiment: Experiment, axes: Values, results: Row, *, params: bool = False) -> Row:
    """A line of the table: what the point is, where it lies on its axes, what came out. With *params* there is a
    column for the parameters that the axis gives its policy, empty where it gives none."""
    row = settings_of(experiment)
    if params:
        chosen = axes.get("policy.name")
        given = chosen.get("params") if isinstance(chosen, dict) else None
        row["policy.params"] = json.dumps(given) if given else None
    for axis, value in axes.items():
        name = _COLUMN_OF.get(axis, axis)
        if name not in row and name not in results and axis not in ("slo.factor", "workload.requests"):
            row[name] = value if isinstance(value, int | float | str | None) else json.dumps(value)
    return {**row, **results}


class Partial:
    """The rows of a sweep under way to the table *out*, one line of JSON each, in the file ``OUT.part``; a line that
    was torn by a crash, or damaged, is left out. Without *out* they are kept nowhere else.

    Within this no other process works on that file: two sweeps to one table are told apart. Raises `BadInput`.
    """

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self._file: Any = None
        self._rows: dict[str, Kept] = {}

    def __enter__(self) -> Partial:
        if self.out is not None:
            self._path = self.out.with_name(self.out.name + ".part")
            tables.check_plain(self._path)
            held = open_alone(self._path, "writing this table", self.out)
            self._file = os.fdopen(held, "r+b", buffering=0)
            lines = self._file.read().split(b"\n")
            self._rows = dict(entry for line in lines if line and (entry := decode(line)) is not None)
            self._file.write(b"\n")  # ends a torn line
        return self

    def find(self, key: str) -> Kept | None:
        """What an earlier attempt has finished under *key*, if it still holds."""
        kept = self._rows.get(key)
        return kept if kept is not None and kept.holds() else None

    def add(self, key: str, row: Row, reads: Mapping[str, str]) -> None:
        kept = self._rows[key] = Kept(row, dict(reads))
        if self._file is not None:
            self._file.write((encode(key, kept) + "\n").encode())

    def __exit__(self, *_: object) -> None:
        if not self._rows:  # nothing was finished that would have to be kept
            self.remove()
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """The table is written: nothing of this is needed any more."""
        if self.out is not None:
            self._path.unlink(missing_ok=True)
