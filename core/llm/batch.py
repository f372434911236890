"""One engine step as an executor gets it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..policy import Batch, Repeat
from ..request import Place
from .request import TokenTask


class Regrouped(NamedTuple):
    """How the running sequences of a step differ from those of the step before it: *left* were in that one and are
    not in this, *back* are in this and were not in that, with *tokens* of context in all. Who is new or has ended
    is in neither."""

    left: int
    back: int
    tokens: int


#: One prefill of a step: (task, tokens computed, tokens whose KV stood before).
Piece = tuple[TokenTask, int, int]


class TokenBatch(Batch):
    """One engine step, or *count* equal decode steps on end.

    *prefill* holds (task, tokens, context before); *decode* tasks decode, whose computed tokens sum to *context*
    before the (first) step. *chosen* are those tasks if they are not all that can. *preempted* are those that
    lost their memory for this step, *swapped* the blocks that move to and from the host before it (or adapters
    that come, where an engine has such), *free* those that were free when it was launched. An executor sets
    *took*, the seconds of the (last) step, besides what it sets of any `Batch`, and where a model stands on several
    devices in *stages* from when to when each of them computes it.
    """

    iterations = 1
    preempted: Sequence[TokenTask] = ()
    regrouped: Regrouped | None = None  #: where the engine's host has to do with that
    stages: Sequence[tuple[float, float]] = ()
    launched: float | None = None  #: when the host has launched it, where the executor says so

    # All that each step asks for is set at once: looking for what is not there, on the way to a default, costs more.
    def __init__(
        self,
        id: int,  # noqa: A002
        worker: Place,
        decode: int,
        context: int,
        start: float = 0.0,
        keep_ends: bool = False,
        times: int = 1,
        repeat: Repeat | None = None,
        free: int | None = None,
    ) -> None:
        self.id = id
        self.worker = worker
        self.decode = decode
        self.context = context
        self.size = decode
        self.start = start
        self.times = times
        self.repeat = repeat
        self.keep_ends = keep_ends
        self.free = free
        self.prefill: Sequence[Piece] = ()
        self.chosen: Sequence[TokenTask] | None = None
        self.swapped = 0
        self.count = 1
        self.took = self.end = 0.0

    @property
    def prefilled(self) -> int:
        """The tokens of prompts that it computes."""
        return sum(count for _, count, _ in self.prefill)

    @property
    def tasks(self) -> Sequence[TokenTask]:  # type: ignore[override]
        """The tasks that it is told of one by one: those that prefill, and the chosen ones."""
        return [*[piece[0] for piece in self.prefill], *(self.chosen or ())]

    def over(self, now: float) -> int:
        """An engine beside others may be ahead of them (`servetwin.sim.llm.look_ahead_lane`)."""
        return bisect_left(self.ends, now) if self.ends is not None and self.count > 1 else self.count - 1

    def computing(self, until: float) -> list[tuple[int, float, float]]:
        if not self.stages:
            return super().computing(until)
        return [(stage, start, min(end, until)) for stage, (start, end) in enumerate(self.stages) if start < until]

    def details(self) -> dict[str, Any]:
        return {
            "prefill": [[task.id, tokens, context] for task, tokens, context in self.prefill],
            "decode": self.decode,
            "context": self.context,
            "preempted": [task.id for task in self.preempted],
            **({"free": self.free} if self.free is not None else {}),
            **({"moved": self.swapped} if self.swapped else {}),
            **({"stages": [[*span] for span in self.stages]} if self.stages else {}),
        }

    def __repr__(self) -> str:
        return f"<TokenBatch {self.id} on {self.worker.name}: {len(self.prefill)} prefill, {self.decode} decode>"
