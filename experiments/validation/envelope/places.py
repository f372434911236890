"""Where the runs stand that lie in a place: those that are scored, and those that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from servetwin.core import BadInput

from ...spec.experiment import Experiment
from ...spec.overrides import Override
from ...sweeps.sweep import points, spec_beside
from ..comparison import bench_runs, run_table
from ..comparison.compare_runs import find_runs, is_run
from ..comparison.run_files import read_json
from ..replay import folder as replay_folder
from . import recorded
from .standing import Standing, Standings, of_all, refuse, standing, summary


def scored(path: Path, overrides: Iterable[Override] = (), judged: Experiment | None = None) -> Standings:
    """Where the runs at *path* stand that ``servetwin score`` simulates again: a table, run folders, recordings, or
    files of ``vllm bench serve``, which are *judged* as runs of that experiment. Raises `BadInput`."""
    given = list(overrides)
    if judged is not None:
        content = judged.as_dict()
        return of_all(bench_runs.with_requests_of(bench, content, given) for bench in bench_runs.files(path))
    recordings = sorted(path.rglob("*.json.gz")) if path.is_dir() else [path] if path.suffix == ".gz" else []
    if recordings:
        found = [facts for file in recordings if recorded.is_open(file) for facts in recorded.of(file)]
        return Standings(standing(facts) for facts in found)
    if path.is_dir():
        return of_all(replay.experiment for replay in replay_folder.find(path, given, as_they_are=True))
    _, runs = run_table.read(path)
    return of_all(run_table.experiments(runs, path, given))


def refused(strict: bool, path: Path, overrides: Iterable[Override] = (), judged: Experiment | None = None) -> None:
    """Where it is *strict*, raise `BadInput` if a run at *path* is outside."""
    if strict:
        refuse(scored(path, overrides, judged))


def simulated(path: Path) -> list[Standing]:
    """Where the simulated runs at *path* stand: of a run folder, of a folder of them, or of a sweep's table beside
    which lies what was asked. None where that is not known any more; measured runs are passed by."""
    try:
        if path.is_dir():
            folders = [path] if is_run(path) else find_runs(path)
            return of_all(e for folder in folders if (e := _simulated_in(folder)) is not None)
        spec = spec_beside(path)
        return of_all(points(spec, path.with_name(f"{path.name}.spec.yaml"))[0]) if spec is not None else []
    except BadInput:  # a policy or profile that is not there any more
        return []


def _simulated_in(folder: Path) -> Experiment | None:
    meta: dict[str, Any] = read_json(folder / "meta.json", "not a run folder: it has no meta.json")
    if meta.get("kind") == "real":
        return None
    try:
        return Experiment.model_validate(meta.get("experiment"))
    except ValidationError:  # of another version
        return None


def of_sides(first: Path, second: Path, *, strict: bool = False) -> dict[str, list[Standing]]:
    """`simulated` of the two sides of a comparison, those that have some. Raises `BadInput` where it is *strict* and
    one is outside."""
    found = {name: stands for name, path in (("A", first), ("B", second)) if (stands := simulated(path))}
    if strict:
        for stands in found.values():
            refuse(stands)
    return found


def as_dict(found: Mapping[str, Sequence[Standing]]) -> dict[str, list[dict[str, Any]]]:
    """For JSON: of each side, first and second, that has simulated runs."""
    sides = {"A": "first", "B": "second"}
    return {sides[name]: [one.as_dict() for one in stands] for name, stands in found.items()}


def told(found: Mapping[str, Sequence[Standing]]) -> list[str]:
    """A line for each side, or for both where they say the same."""
    lines: dict[str, list[str]] = {}
    for name, stands in found.items():
        lines.setdefault(summary(stands), []).append(name)
    return [f"validity of {' and '.join(names)}: {line}" for line, names in lines.items()]
