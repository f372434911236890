"""One run on several cores, or on a cluster: each simulates some of its replicas.

Each process draws all requests and keeps those of its replicas, so that nothing but an experiment is sent there, and
what was counted comes back. Drawing takes some fifth of a run, which no number of processes makes less. Behind a
router that looks every so many seconds processes tell each other at each look how their replicas stand (`looks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from servetwin.core import Recorder, ServeTwinError, Summary

from ..assembly.build import Run, Watch, build, watched
from ..assembly.inputs import difference, inputs_of
from ..provenance.policy_code import as_loaded
from ..spec.experiment import Experiment
from ..splitting.apart import RECORDS, OneByOne, why_one_process, why_whole
from . import cluster
from .looks import with_looks
from .pieces import Piece, in_processes, pieces_of

__all__ = ["RECORDS", "run", "simulate"]

#: Into so many pieces a run on a cluster is split, if nobody says.
PIECES = 8


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
    runner = cluster.current()
    apart = why_whole(built) is None
    why = None if apart else why_one_process(built)
    if why is None and not apart and runner is not None:
        why = "its router looks every so many seconds at all replicas, which a cluster cannot promise to run at once"
    if why is None:
        tasks = [(experiment, piece) for piece in pieces_of(len(built.loop.workers), _pieces(jobs))]
        if len(tasks) == 1 and runner is None:
            return built.play()
        if runner is not None:
            return _gathered(built, tasks, runner(simulate, tasks))
        if apart:
            return _gathered(built, tasks, in_processes(simulate, tasks))
        pieces = with_looks(tasks)
        if pieces is not None:
            return _gathered(built, tasks, pieces)
        why = "replicas do not go as numbers to the end (under vllm, vllm-v1 and sarathi they do, while memory lasts)"
    if say is not None:
        say(f"runs whole, on one core: {why}")
    return built.play()


def _pieces(jobs: int) -> int:
    if jobs > 0:
        return jobs
    if cluster.current() is not None:
        return PIECES
    from joblib import cpu_count

    return int(cpu_count())


def _gathered(built: Run, tasks: Sequence[tuple[Experiment, range]], pieces: Iterable[Piece]) -> Summary:
    """What *built* comes to, of which other processes simulate the *tasks*, and come to *pieces*."""
    summary, waiting, following = built.recorder.summary, dict[int, Piece](), 0
    busy: dict[str, float] = {}
    inputs = inputs_of(tasks[0][0])
    for piece in pieces:
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
