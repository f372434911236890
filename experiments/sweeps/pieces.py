"""Pieces of one run, each some of its replicas, and the processes that simulate them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from servetwin.core import ServeTwinError, Summary

from ..assembly.inputs import Inputs
from .pool import pooled

T = TypeVar("T")
R = TypeVar("R")


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


def in_processes(call: Callable[[int, T], R], tasks: Sequence[T]) -> Iterator[R]:
    """What *call* gives for the number of each of *tasks*, and for itself, all at once, each in a process of its
    own; as they come."""
    from joblib import delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    here = (os.getcwd(), tuple(sys.path))
    calls = (delayed(_elsewhere)(here, call, number, task) for number, task in enumerate(tasks))
    try:
        yield from pooled(len(tasks), calls, in_order=False)
    except TerminatedWorkerError:
        raise ServeTwinError("a worker process was killed, perhaps for want of memory") from None


def _elsewhere(here: tuple[str, tuple[str, ...]], call: Callable[[int, T], R], number: int, task: T) -> R:
    """*call* in a process that may have been started in another folder: it finds files and modules where the
    process that asks finds them, whose folder and ``sys.path`` *here* are."""
    if os.getcwd() != here[0]:
        os.chdir(here[0])
    if tuple(sys.path) != here[1]:
        sys.path[:] = here[1]
    return call(number, task)
