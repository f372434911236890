"""A sweep served for real: a run folder per point, one after the other, with the model kept from one to the next.

Folders are known by the experiment in their ``meta.json``, so a sweep that was cut off goes on where it was. A run
counts only if it was made with the policies, profiles, options and code that there are now: one that was not is
refused, for it would lie among the others as if it were a repeat of them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from servetwin.core import BadInput, ServeTwinError
from servetwin.core.processes.one_at_a_time import open_alone

from ..spec.experiment import Experiment
from ..spec.loading import load_profiles
from ..sweeps import tables
from ..sweeps.point import title
from ..sweeps.sweep import find, points, read
from ..validation.comparison.compare_runs import find_runs
from ..validation.comparison.run_files import read_json
from ..workload.seed_effect import check_seed_axis, check_seeds_once
from .diffusion import Backend, Setup

if TYPE_CHECKING:
    from collections.abc import Hashable

#: Hears (what is served next, runs done, runs in all).
Progress = Callable[[str, int, int], None]


class Serving(Protocol):
    """A backend that keeps what it serves with from one run to the next."""

    def run(self, experiment: Experiment, folder: Path | None = None) -> object:
        """Serve *experiment*; with *folder*, leave its records there."""

    def differing(self, meta: dict[str, Any], experiment: Experiment) -> list[str]:
        """What is not as it was when the run of *meta* was made."""

    def kept_for(self, experiment: Experiment) -> Hashable:
        """What is equal of experiments that are served with the same, so that they can follow each other."""


def serve(
    source: str | Path,
    folder: Path,
    setup: Setup | None = None,
    *,
    kind: str = "real",
    seeds: int = 1,
    repeats: int = 1,
    progress: Progress | None = None,
    broken: Callable[[str], None] | None = None,
    as_they_are: bool = False,
) -> int:
    """Serve the sweep *source* into run folders in *folder*, by *kind* ("real": modules of torch; "vllm": vLLM in
    this process); gives how many runs there are now.

    Each point is served with *seeds* seeds (its own and those that follow), each *repeats* times with the same
    requests, which tells what measuring alone scatters by. A run that breaks does not end the others: *broken* hears
    of it, and in the end a `ServeTwinError` says how many there were. Raises `BadInput` if there is a run of a point
    in *folder* that was made with something else than would be now, unless runs there count *as_they_are*.
    """
    backend = _backend(kind, setup)
    path = find(source)
    experiments, _ = points(read(path), path)
    for deployed in {str(e.deployment.devices): e for e in experiments}.values():
        load_profiles(deployed)  # one that is missing shows before anything is written
    every = [e.model_copy(update={"seed": e.seed + k}) for e in experiments for k in range(seeds)]
    if seeds > 1:
        check_seeds_once(experiments, "--seeds")
    check_seed_axis(map(_without_noise, every), "--seeds")
    if folder.is_file():
        raise BadInput("this is a file", where=str(folder), right="a folder for run folders")
    tables.make_folder(folder)
    # Another sweep would take its folders' names, and count runs of this one that are under way for broken ones.
    held = open_alone(folder, "serving a sweep into this folder", folder)
    try:
        return _serve(every, repeats, folder, backend, progress, broken, as_they_are)
    finally:
        os.close(held)


def _serve(
    every: Sequence[Experiment],
    repeats: int,
    folder: Path,
    backend: Serving,
    progress: Progress | None,
    broken: Callable[[str], None] | None,
    as_they_are: bool,
) -> int:
    """`serve` of experiments that have been checked, in a *folder* that is there."""
    # Round by round, so that repeats of a point lie apart in time.
    wanted = [e for _ in range(repeats) for e in every]
    order = list(dict.fromkeys(backend.kept_for(e) for e in every))
    wanted.sort(key=lambda e: order.index(backend.kept_for(e)))
    there = _there(folder)
    if not as_they_are:
        for experiment in every:
            _check(there[experiment.digest()], experiment, backend)
    lost = 0
    for done, experiment in enumerate(wanted):
        if progress is not None:
            progress(title(experiment), done, len(wanted))
        if there[experiment.digest()]:
            there[experiment.digest()].pop()
            continue
        try:
            backend.run(experiment, _free(folder, experiment))
        except BadInput:
            raise
        except ServeTwinError as problem:
            lost += 1
            if broken is not None:
                broken(f"{title(experiment)}: {problem}")
    if lost:
        raise ServeTwinError(f"{lost} of {len(wanted)} runs broke; the others are in {folder}: run the same again")
    return len(wanted)


def _backend(kind: str, setup: Setup | None) -> Serving:
    if kind == "real":
        return Backend(setup)
    from .vllm import VllmBackend, require_vllm

    require_vllm()
    setup = setup or Setup()
    return VllmBackend(setup.model, eager=setup.eager, foreign=setup.foreign)


def _without_noise(experiment: Experiment) -> Experiment:
    """What of *experiment* a real run draws: how long things take is not drawn there."""
    return experiment.model_copy(update={"time": experiment.time.model_copy(update={"noise": False})})


def _there(folder: Path) -> defaultdict[str, list[tuple[Path, dict[str, Any]]]]:
    """The runs that came to their end of each experiment, by its digest: folders and ``meta.json``."""
    found = defaultdict(list)
    for run in find_runs(folder):
        meta = read_json(run / "meta.json", "not a run folder: it has no meta.json")
        if meta.get("kind") == "real":
            found[str(meta.get("experiment_digest"))].append((run, meta))
    return found


def _check(runs: Sequence[tuple[Path, dict[str, Any]]], experiment: Experiment, backend: Serving) -> None:
    """Raise `BadInput` if one of *runs* of *experiment* was not made as it would be now."""
    if not runs:
        return
    for run, meta in runs:
        differing = backend.differing(meta, experiment)
        if differing:
            what = f"this run was made with another state of what it takes: {'; '.join(differing)}"
            raise BadInput(what, where=str(run), right="another --out; or --as-they-are to count it all the same")


def _free(folder: Path, experiment: Experiment) -> Path:
    """A folder that is not there yet, by the name of the point."""
    name = f"{experiment.name}-{experiment.policy.name}-{experiment.digest()[:8]}-seed{experiment.seed}".replace(
        "/", "-"
    )
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}"
    return path
