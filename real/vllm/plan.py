"""What a run on vLLM is made of, and what comes of it: requests sent and served. Needs nothing but Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

#: The key of vLLM's ``additional_config``, and of a request's ``extra_args``.
KEY = "servetwin"


@dataclass(frozen=True)
class Planned:
    """A request to send: *arrival* in seconds since the run began, lengths in tokens. *output* tokens are forced;
    *limit* is what a policy is told (None: the same)."""

    id: int
    arrival: float
    prompt: int
    output: int
    limit: int | None = None


@dataclass
class Served:
    """What became of a request; times in seconds since the run began. *times* are those of its tokens."""

    id: int
    arrival: float
    prompt: int
    output: int
    queued: float
    outcome: Literal["finished", "dropped", "failed"]
    times: list[float] = field(default_factory=list)
    preemptions: int = 0
    ended: float = 0.0
    reason: str = ""  #: why it failed, if that is known of this one


@dataclass
class Run:
    """A run as it was: requests, steps (as `scheduler.StepLog`, times since the run began), and the client."""

    requests: list[Served]
    steps: list[Any]
    lateness: list[float]
    intake: list[float]
    seconds: float
    reason: str = "cut off by the stop"  #: why those failed that did
    moves: int | None = None  #: of the thread that launches steps, to less disturbed cores, where it looks for them


def prompt_ids(planned: Planned) -> list[int]:
    """Token ids of a prompt: what they are does not matter, that they differ does no harm."""
    return [4 + (planned.id * 7 + i) % 500 for i in range(planned.prompt)]
