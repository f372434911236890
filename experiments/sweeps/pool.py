"""Tasks in several processes of this machine, which stay for the next tasks and end with this process."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from servetwin.core.processes.parent_death import end_with, lifeline


def pooled(jobs: int, tasks: Iterable[Any], *, in_order: bool = True) -> Generator[Any, None, None]:
    """The results of *tasks* (made by `joblib.delayed`), by *jobs* processes (-1: one per core), as they come or *in
    order*. With one job all is done here.

    The processes end when this one does, also if it is killed. Arrays go to them through pipes: joblib would
    otherwise put them into a temporary folder that nobody removes when all processes are killed at once.
    """
    from joblib import Parallel

    kind = "generator" if in_order else "generator_unordered"
    more = {} if jobs == 1 else {"backend": "loky", "initializer": end_with, "initargs": (lifeline(),)}
    results: Generator[Any, None, None] = Parallel(n_jobs=jobs, return_as=kind, max_nbytes=None, **more)(tasks)
    return results
