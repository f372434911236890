"""What goes wrong when: the events of a script and drawn ones, and the rules by which a run deals with them.

Drawn failures of a device are an alternating renewal process: it works for an exponentially distributed time with
mean *mtbf*, is repaired for one with mean *mttr*, and so on. Each device draws from a random stream of its own, and
nothing that happens in a run moves it: every policy meets the same failures at the same times.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple

from ..random_streams import stream

#: What may happen to a worker.
FaultKind = Literal["fail", "crash", "pause", "slow", "late", "lost"]


class Event(NamedTuple):
    """From *at* to *until* (seconds since the run began; infinite: for ever) something is wrong with *workers*.

    ``fail`` and ``crash``: they are down, and all that was there is lost. ``pause``: they stand still. ``slow``: what
    they compute takes *factor* times as long. ``late``: messages to them take *seconds* longer. ``lost``: messages to
    them are lost. *what* is what the experiment calls it: the device, or the worker. *starting* are the last seconds
    of a ``crash`` in which the worker is started again: where that is really done, it takes as long as it takes.
    """

    at: float
    kind: FaultKind
    workers: tuple[str, ...]
    until: float = inf
    factor: float = 1.0
    seconds: float = 0.0
    what: str = ""
    starting: float = 0.0


@dataclass(frozen=True)
class Retry:
    """A lost request is sent again up to *attempts* times, each *backoff* seconds after its loss was noticed."""

    attempts: int
    backoff: float = 0.0


@dataclass(frozen=True)
class OutOfMemory:
    """A batch of *batch* requests or more does not fit into the memory of a worker. It fails as it begins; the worker
    stays (*restart* None), or fails too and is back after so many seconds, in the last of which it is *starting* (as
    that of an `Event`)."""

    batch: int
    restart: float | None = None
    starting: float = 0.0


@dataclass(frozen=True)
class Rules:
    """How a run deals with faults. *detect*: seconds until a failure is noticed. *retry*: None gives requests up that
    are lost. *out_of_memory*: by worker."""

    detect: float
    retry: Retry | None = None
    out_of_memory: Mapping[str, OutOfMemory] = field(default_factory=dict)


def drawn(device: str, workers: Sequence[str], mtbf: float, mttr: float, seed: int) -> Iterator[Event]:
    """The failures of *device* with these *workers*, without end."""
    source = stream(seed, f"faults/{device}")
    now = 0.0
    while True:
        begin = now + mtbf * float(source.standard_exponential())
        now = begin + mttr * float(source.standard_exponential())
        yield Event(begin, "fail", tuple(workers), now, what=device)


def in_order(script: Sequence[Event], *drawings: Iterator[Event]) -> Iterator[Event]:
    """All of them by time; of the *script*, what happens at one time in its order, and before what is drawn."""
    return heapq.merge(sorted(script, key=_at), *drawings, key=_at)


def _at(event: Event) -> float:
    return event.at
