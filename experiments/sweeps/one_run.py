"""One run on several cores, or on a cluster: each simulates some of its replicas.

Each process draws all requests and keeps those of its replicas, so that nothing but an experiment is sent there, and
what was counted comes back. Drawing takes some fifth of a run, which no number of processes makes less.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from servetwin.core import Recorder, ServeTwinError, Summary

from ..assembly.build import Run, Watch, build, watched
from ..assembly.inputs import Inputs, difference, inputs_of
from ..provenance.policy_code import as_loaded
from ..spec.experiment import Experiment
from ..splitting.apart import RECORDS, OneByOne, why_whole
from . import cluster
from .pool import pooled

__all__ = ["RECORDS", "run", "simulate"]

#: Into so many pieces a run on a cluster is split, if nobody says.
PIECES = 8


class Piece(NamedTuple):
    """What some replicas came to: what they counted, the seconds in which each device computed, and what went beyond
    what was measured."""

    number: int
    summary: Summary
    busy: dict[str, float]
    held: list[dict[str, Any]]
    inputs: Inputs  #: what it was made of there


def pieces_of(replicas: int, many: int) -> list[range]:
    """The places of so many *replicas* in *many* runs of neighbours, as even as can be; none is empty.

    >>> pieces_of(5, 2)
    [range(0, 2), range(2, 5)]
    """
    many = max(1, min(many, replicas))
    edges = [replicas * n // many for n in range(many + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


@as_loaded()
def simulate(number: int, task: tuple[Experiment, range]) -> Piece:
    """Simulate some replicas of an experiment: what other processes do."""
    experiment, mine = task
    run, inputs = build(experiment), inputs_of(experiment)
    each = OneByOne(run, mine)
    busy = each.play(run.recorder.summary)
    summary = run.recorder.summary
    return Piece(number, summary, busy, each.executor.watch.told(summary.sizes), inputs)


@as_loaded()
def run(
    experiment: Experiment, jobs: int = -1, *, watch: Watch | None = None, say: Callable[[str], None] | None = None
) -> Summary:
    """Run *experiment* in simulation on *jobs* processes (-1: one per core), or in so many pieces on the cluster of
    this context. *say* hears in a line why it runs whole, in this process, if it must."""
    built = build(experiment, watched(Recorder(), watch))
    why = why_whole(built)
    if why is not None:
        if say is not None:
            say(f"runs whole, on one core: {why}")
        return built.play()
    pieces = pieces_of(len(built.loop.workers), _pieces(jobs))
    if len(pieces) == 1 and cluster.current() is None:
        return built.play()
    return _gathered(built, [(experiment, piece) for piece in pieces])


def _pieces(jobs: int) -> int:
    if jobs > 0:
        return jobs
    if cluster.current() is not None:
        return PIECES
    from joblib import cpu_count

    return int(cpu_count())


def _gathered(built: Run, tasks: Sequence[tuple[Experiment, range]]) -> Summary:
    """What *built* comes to, of which other processes simulate the *tasks*."""
    summary, waiting, following = built.recorder.summary, dict[int, Piece](), 0
    busy: dict[str, float] = {}
    runner, inputs = cluster.current(), inputs_of(tasks[0][0])
    for piece in runner(simulate, tasks) if runner is not None else _in_processes(tasks):
        if differing := difference(inputs, piece.inputs):
            what = f"{', '.join(differing)}: not the same in this process and in those that run the replicas"
            raise ServeTwinError(f"{what} (right would be: the same files and versions; start them again)")
        waiting[piece.number] = piece
        while following in waiting:  # in the order of the replicas
            done = waiting.pop(following)
            summary.merge(done.summary)
            summary.held += done.held
            busy |= done.busy
            following += 1
    return built.told(busy)


def _in_processes(tasks: Sequence[tuple[Experiment, range]]) -> Iterator[Piece]:
    from joblib import delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    here = (os.getcwd(), tuple(sys.path))
    calls = (delayed(_simulate_elsewhere)(here, number, task) for number, task in enumerate(tasks))
    try:
        yield from pooled(len(tasks), calls, in_order=False)
    except TerminatedWorkerError:
        raise ServeTwinError("a worker process was killed, perhaps for want of memory") from None


def _simulate_elsewhere(here: tuple[str, tuple[str, ...]], number: int, task: tuple[Experiment, range]) -> Piece:
    """`simulate` in a process that may have been started in another folder: it finds files and modules where the
    process that asks finds them, whose folder and ``sys.path`` *here* are."""
    if os.getcwd() != here[0]:
        os.chdir(here[0])
    if tuple(sys.path) != here[1]:
        sys.path[:] = here[1]
    return simulate(number, task)
