"""Requests, and their visit to each stage of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from .pipeline import Stage

#: Why a request failed that the end of a run (`stop_after`) cut off: it was under way, or it was sent too late.
CUT_OFF = ("cut off by the stop", "sent after the stop")


class Outcome(StrEnum):
    """How a request ended. Each request ends exactly once."""

    MET = "met"  #: finished within its SLO
    LATE = "late"  #: finished, but after its deadline
    DROPPED = "dropped"  #: given up by a policy
    FAILED = "failed"  #: lost to an error, or cut off when the run was stopped

    __hash__ = str.__hash__  # an enum's own is written in Python, and outcomes are counted once per request


class Shape(NamedTuple):
    """What is to be generated for a request of a diffusion model, but for its steps.

    *height* and *width* in pixels, *frames* of a video (1: an image), *guidance* the rows that each image takes
    inside the network (2 with classifier-free guidance, 1 without; None: what the profile was measured with),
    *images* made of one prompt. Requests may share a batch if their shapes are equal.
    """

    height: int
    width: int
    frames: int = 1
    guidance: int | None = None
    images: int = 1

    @property
    def pixels(self) -> int:
        """Of one image, or of all frames of one video."""
        return self.height * self.width * self.frames

    def __str__(self) -> str:
        said = f"{self.height}x{self.width}"
        said += f" x {self.frames} frames" if self.frames > 1 else ""
        said += f", guidance {self.guidance}" if self.guidance is not None else ""
        return said + (f", {self.images} images" if self.images > 1 else "")


#: True output tokens by the loop module of an LLM stage; a list if the request comes there several times.
Outputs = Mapping[str, "int | Sequence[int]"]


class Request:
    """What a client sends.

    *work* holds the iterations of each loop module (denoising steps, say) that the request asks for; a module
    that is not named there runs once. *arrival* and *deadline* are seconds since the run began; the SLO is
    their difference. *outputs* are the true numbers of output tokens at LLM stages, *missed* says that one of these
    did not keep the SLO of its tokens, *predicted* what a predictor expects of *outputs*
    (`servetwin.core.llm.request.TokenRequest`).

    *priority* is as in vLLM: what has a lower one is to be served sooner. *tenant* says on whose behalf it was sent
    ("" if nobody says), *weight* the share of service that its tenant is entitled to, relative to others'.
    *class_name* is the class of the workload that it is of ("" in a workload without classes). The loop makes nothing
    of these four: they are there for policies and routers, and results are told apart by them. *session* is the
    number of the session that it belongs to, and its own place there from 0 on; None where there are no sessions.

    *shape* is what a diffusion model is to generate; None where all requests are as the profile was measured.
    """

    __slots__ = (
        "arrival",
        "class_name",
        "deadline",
        "finished",
        "id",
        "missed",
        "open_branches",
        "outcome",
        "outputs",
        "predicted",
        "priority",
        "reason",
        "session",
        "shape",
        "tasks",
        "tenant",
        "waiting_for",
        "weight",
        "work",
    )

    def __init__(
        self,
        id: int,  # noqa: A002
        arrival: float,
        slo: float,
        work: Mapping[str, int],
        *,
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        class_name: str = "",
        session: tuple[int, int] | None = None,
        shape: Shape | None = None,
    ) -> None:
        self.id = id
        self.arrival = arrival
        self.deadline = arrival + slo
        self.work = work
        self.priority = priority
        self.tenant = tenant
        self.weight = weight
        self.class_name = class_name
        self.session = session
        self.shape = shape
        self.tasks: list[Task] = []
        self.waiting_for: dict[str, int] = {}  # stage that joins branches -> inputs still missing
        self.open_branches = 1  # at how many places it is at once, in a graph that forks
        self.outputs: Outputs | None = None
        self.predicted: Mapping[str, int] | None = None
        self.missed = False
        self.outcome: Outcome | None = None
        self.reason: str | None = None
        self.finished: float | None = None

    @property
    def slo(self) -> float:
        """Seconds that the request may take from arrival to the end of its last stage."""
        return self.deadline - self.arrival

    @property
    def terms(self) -> dict[str, Any]:
        """What it says of itself beside its work and its SLO, as keyword arguments of another request like it."""
        return {
            "priority": self.priority,
            "tenant": self.tenant,
            "weight": self.weight,
            "class_name": self.class_name,
            "session": self.session,
            **({"shape": self.shape} if self.shape is not None else {}),
        }

    # -- as a turn of a session (`servetwin.core.serving.sessions`) ----------------------------------------------

    def turn(self, at: float, session: tuple[int, int] | None, said: Mapping[str, int], contents: Any) -> Request:
        """This request, which was planned, as it is sent at that time. *said* has the tokens of its session so far by
        LLM module, *contents* what `contents_of` gave for the session's first."""
        return Request(self.id, at, self.slo, self.work, **{**self.terms, "session": session})

    def contents_of(self, session: int) -> Any:
        """What prompts hold in the session of that number, which this request begins."""
        return None

    def said_after(self, said: Mapping[str, int], generated: Mapping[str, int]) -> Mapping[str, int]:
        """The tokens of its session by LLM module, if they were *said* before it and it got so many *generated*."""
        return said

    def answers(self) -> Mapping[str, int]:
        """The tokens that it will get, if it is planned, by LLM module."""
        return {}

    def generated(self) -> dict[str, int]:
        """The tokens that it has got by LLM module."""
        return {}

    def __repr__(self) -> str:
        ended = self.outcome.value if self.outcome else "live"
        return f"<Request {self.id} arrival={self.arrival:g} deadline={self.deadline:g} {ended}>"


class Place(NamedTuple):
    """Where a task is served and a batch runs: what may be told of a worker. *number* is its place in the loop's list
    of workers. (Nothing here leads to the worker, since policies see tasks and batches.)"""

    number: int  # first, so that the loop can say ``place[0]``, which costs least
    name: str
    stage: Stage
    device: str


class Flight(Protocol):
    """What a task tells of the batch in which it ended before its time (`servetwin.core.policy.Batch`)."""

    count: int
    ends: list[float] | None

    @property
    def tasks(self) -> Sequence[Task]: ...


class Task:
    """A request's visit to one stage: what a policy orders, batches and drops.

    *iterations* is what the stage's loop module has to run for this request (1 for a stage without a loop),
    *left* what remains of it. The loop counts *left* down; policies only read. *flight* is the batch in which the
    request was when it ended before its time.
    """

    __slots__ = (
        "admitted",
        "arrival",
        "deadline",
        "finished",
        "flight",
        "id",
        "iterations",
        "left",
        "queued",
        "request",
        "stage",
        "started",
        "worker",
    )

    def __init__(self, request: Request, stage: Stage, queued: float, worker: Place | None = None) -> None:
        self.request = request
        self.stage = stage
        self.id = request.id
        self.arrival = request.arrival
        self.deadline = request.deadline
        self.iterations = self.left = request.work.get(stage.loop, 1) if stage.loop else 1
        self.queued = queued
        self.worker = worker
        self.flight: Flight | None = None
        self.admitted: float | None = None
        self.started: float | None = None
        self.finished: float | None = None

    @property
    def shape(self) -> Shape | None:
        """That of its request. Tasks may share a batch if this is equal."""
        return self.request.shape

    def details(self, tokens: bool = True) -> dict[str, Any]:
        """What a record of it says beside its times; with *tokens* when each token of an LLM came out, if known."""
        return {"iterations": self._ran()}

    @property
    def service(self) -> int:
        """What it has been served here: the iterations that were run for it; at an LLM stage, tokens."""
        return self._ran()

    def runs_in(self, batch: Flight | None) -> bool:
        """Whether it has run in all iterations of *batch*, which is in flight."""
        return batch is not None and self in batch.tasks

    def _ran(self) -> int:
        """What it has run so far; of a batch in flight, the iterations that are over (see `Batch.count`)."""
        done, batch = self.iterations - self.left, self.flight
        if batch is not None and batch.count > 1 and self in batch.tasks:
            done += batch.count - 1
        return done

    def __repr__(self) -> str:
        return f"<Task of {self.id} at {self.stage.name}: {self.left}/{self.iterations} left>"


class ActingTask(Task):
    """A visit to a stage with whose steps a policy may do something (`servetwin.core.pipeline.StepActions`).

    *iterations* are the steps that its policy gave it: those that were *asked* for, or fewer. *reused* counts those
    of its steps so far in which the network did not run. *similarity* says how alike the most alike prompt is whose
    states were kept, from 0 to 1 (None: nothing is known of that), *confidence* how good the result of this stage is
    thought to be, once it is there and its policy may send it on.
    """

    __slots__ = ("confidence", "onward", "reused", "similarity")

    def __init__(self, request: Request, stage: Stage, queued: float, worker: Place | None = None) -> None:
        super().__init__(request, stage, queued, worker)
        self.reused = 0
        self.similarity: float | None = None
        self.confidence: float | None = None
        self.onward = False

    @property
    def asked(self) -> int:
        """The steps that its request asks for."""
        return self.request.work.get(self.stage.loop, 1) if self.stage.loop else 1

    def asked_of(self, module: str) -> int:
        """The iterations of *module*, here or elsewhere, that its request asks for if it comes there."""
        return self.request.work.get(module, 1)

    @property
    def may_skip(self) -> int:
        """In how many more of its steps the network may stand still, or by how many they may be fewer."""
        actions = self.stage.actions
        return self.iterations - self.reused - actions.fewest(self.asked) if actions is not None else 0

    def details(self, tokens: bool = True) -> dict[str, Any]:
        ran = self._ran()
        return {
            "iterations": ran,
            "steps_asked": self.asked,
            "steps_run": ran - self.reused,
            "steps_skipped": self.asked - self.iterations + self.reused,
            **({"similarity": self.similarity} if self.similarity is not None else {}),
            **({"confidence": self.confidence, "onward": self.onward} if self.confidence is not None else {}),
        }

    @property
    def service(self) -> int:
        return self._ran() - self.reused


class GroupTask(Task):
    """A visit to a group of devices. *device_seconds* are what it used of them once it is over (of a batch of several
    requests an equal part), *changes* how often it went on with other devices than before."""

    __slots__ = ("changes", "device_seconds")

    def __init__(self, request: Request, stage: Stage, queued: float, worker: Place | None = None) -> None:
        super().__init__(request, stage, queued, worker)
        self.device_seconds = 0.0
        self.changes = 0

    def details(self, tokens: bool = True) -> dict[str, Any]:
        return {"iterations": self._ran(), "device_seconds": self.device_seconds, "changes": self.changes}
