"""A sweep served for real: a run folder per point, one after the other, with the model kept from one to the next.

Folders are known by the experiment in their ``meta.json``, so a sweep that was cut off goes on where it was.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from servetwin.core import BadInput, ServeTwinError

from . import tables
from .backend import Backend, Setup
from .build import load_profiles
from .compare import find_runs
from .config import Experiment
from .drawn import check_seeds
from .points import title
from .sweep import find, points, read

#: Hears (what is served next, runs done, runs in all).
Progress = Callable[[str, int, int], None]


def serve(
    source: str | Path,
    folder: Path,
    setup: Setup | None = None,
    *,
    seeds: int = 1,
    repeats: int = 1,
    progress: Progress | None = None,
    broken: Callable[[str], None] | None = None,
) -> int:
    """Serve the sweep *source* into run folders in *folder*; gives how many runs there are now.

    Each point is served with *seeds* seeds (its own and those that follow), each *repeats* times with the same
    requests, which tells what measuring alone scatters by. A run that breaks does not end the others: *broken* hears
    of it, and in the end a `ServeTwinError` says how many there were.
    """
    backend = Backend(setup)
    path = find(source)
    experiments, _ = points(read(path), path)
    for deployed in {str(e.deployment.devices): e for e in experiments}.values():
        load_profiles(deployed)  # one that is missing shows before anything is written
    for experiment in experiments:
        check_seeds(experiment, seeds, "--seeds")
    if folder.is_file():
        raise BadInput("this is a file", where=str(folder), right="a folder for run folders")
    tables.make_folder(folder)
    every = [e.model_copy(update={"seed": e.seed + k}) for e in experiments for k in range(seeds)]
    # Round by round, so that repeats of a point lie apart in time.
    wanted = [e for _ in range(repeats) for e in every]
    there = _there(folder)
    lost = 0
    for done, experiment in enumerate(wanted):
        if progress is not None:
            progress(title(experiment), done, len(wanted))
        digest = experiment.digest()
        if there[digest]:
            there[digest] -= 1
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


def _there(folder: Path) -> Counter[str]:
    """How many runs that came to their end there are of each experiment, by its digest."""
    metas = [json.loads((run / "meta.json").read_text(encoding="utf-8")) for run in find_runs(folder)]
    return Counter(str(meta.get("experiment_digest")) for meta in metas if meta.get("kind") == "real")


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
