"""What the time of a request goes into, and the parts that it is cut into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Cause(StrEnum):
    """Why a part of a request's time passed. The parts of a request never overlap and leave nothing out."""

    TRANSFER = "transfer"  #: on its way to the stage, in a central queue, or waiting for a replica
    IN_FRONT = "batch in front"  #: the batch, or iteration, that was running when it came
    JOINED_LATE = "joined late"  #: the worker had not taken it in yet when the next batch began
    QUEUE = "queue"  #: others ran instead, before it had begun
    MEMORY = "KV memory"  #: likewise, and too few KV blocks were free for it
    WEIGHTS = "weights"  #: weights came to the card that its model shares with others
    OTHER_MODEL = "other model"  #: another model computed on that card
    HELD = "held back"  #: nothing ran: in a simulation the policy waited
    HOST = "host"  #: nothing ran: the host was between two batches (or, in a real run, the policy waited)
    PREEMPTED = "preempted"  #: it had begun, and others ran; in an engine it had lost its KV memory
    STALLED = "stalled"  #: it had its KV memory, and steps went by without it
    HANDOVER_WAIT = "hand-over wait"  #: its prompt stood, and it waited for room where it decodes, or for the link
    HANDOVER = "hand-over"  #: its KV was on its way to the engine that decodes
    RECOMPUTED = "recomputed"  #: an engine computed anew what a preemption, or an engine that failed, had lost
    ALONE = "served alone"  #: the part of its own batches that they would have taken for it alone
    SHARED = "shared"  #: what its own batches took longer: for the others in them, or for noise and neighbours
    FAILURE = "failure"  #: its worker failed, or its message was lost, and it had not been sent again yet
    UNTOLD = "not recorded"  #: the records hold no batches of that worker


#: What a request is served in; all others are waits.
SERVED = frozenset({Cause.ALONE, Cause.SHARED, Cause.RECOMPUTED})


@dataclass(frozen=True, slots=True)
class Ran:
    """An iteration of a batch, a batch of whole requests, or a step of an engine. Times in seconds since the run
    began; *requests* are the ids of all that were in it.

    *batch* is its number in the records. Each of its requests ran *iterations*. Of an engine's step, *prefill* holds
    (tokens, tokens before) by id, *preempted* who lost the memory for it, *free* the KV blocks that were free; *cut*
    says that it was cut off at its end, and gave nothing.
    """

    batch: int
    start: float
    end: float
    requests: tuple[int, ...]
    iterations: int = 1
    prefill: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    preempted: tuple[int, ...] = ()
    free: int | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a request's time, in seconds since the run began, at its visit number *visit*.

    *ran* is what ran meanwhile, *own* whether the request was in it. *alone* is how long its own share would have
    taken alone, where that is known. After it, *done* iterations of the visit were done; at a language model
    *tokens* are (generated, computed). *worker* is where it passed, if that is not where the visit ended.
    """

    visit: int
    cause: Cause
    start: float
    end: float
    ran: Ran | None = None
    own: bool = False
    alone: float | None = None
    done: int = 0
    tokens: tuple[int, int] | None = None
    worker: str | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def shares(self) -> dict[Cause, float]:
        """Its seconds by cause: of its own batches, what it would have taken alone and what the rest is."""
        if self.cause is not Cause.ALONE or self.alone is None:
            return {self.cause: self.seconds}
        alone = min(self.alone, self.seconds)
        return {Cause.ALONE: alone, Cause.SHARED: self.seconds - alone}
