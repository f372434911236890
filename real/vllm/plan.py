"""What a run on vLLM is made of, and what comes of it: requests sent and served. Needs nothing but Python.

Requests of sessions, and of the clients of a closed loop, are sent when those before them have ended
(`SessionSender`). So they have no client in a process of its own: what is due is looked up between two steps, and
its arrival is when it was due. The prompt of a turn is what was said before in its session, token by token, with the
answers that the model really gave, and new tokens.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from servetwin.core import Request
from servetwin.core.llm import PromptContent
from servetwin.core.serving.sessions import Coming, Conversations, Session

from .launches.host_clock import HostLaunch

#: The key of vLLM's ``additional_config``, and of a request's ``extra_args``.
KEY = "servetwin"


@dataclass(frozen=True)
class Planned:
    """A request to send: *arrival* in seconds since the run began, lengths in tokens. *output* tokens are forced;
    *limit* is what a policy is told (None: the same), *said* what else it is told of the request, by the keys of
    `told`: *priority*, *tenant*, *weight*, *class*, *predicted*. *prefix* is what the prompt begins with, for engines
    that cache prefixes; *ids* are its tokens, if they have been chosen."""

    id: int
    arrival: float
    prompt: int
    output: int
    limit: int | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    prefix: PromptContent | None = None
    ids: Sequence[int] | None = None

    def told(self) -> dict[str, Any]:
        """What is sent with the request."""
        return {**self.said, "id": self.id, "limit": self.limit or self.output}


def said_of(request: Request, predicted: int | None) -> dict[str, Any]:
    """What is sent with *request*, of which so many output tokens are *predicted*, for policies (`Planned.said`):
    what is not as usual."""
    every = {
        "priority": (request.priority, 0),
        "tenant": (request.tenant, ""),
        "weight": (request.weight, 1.0),
        "class": (request.class_name, ""),
        "predicted": (predicted, None),
    }
    return {key: value for key, (value, usual) in every.items() if value != usual}


@dataclass
class Served:
    """What became of a request; times in seconds since the run began. *times* are those of its tokens, *cached* the
    tokens of its prompt that a server says it found in its prefix cache."""

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
    cached: int | None = None
    ids: list[int] | None = None  #: the tokens of the answer, where somebody wants to know


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
    launches: list[HostLaunch] = field(default_factory=list)  #: of its steps, where the engine decides a step ahead


#: What a client may say of a request that is a number of 0 or more, a text, or a whole number.
NUMBERS, TEXTS, WHOLE = ("id", "limit", "arrival", "weight", "predicted"), ("tenant", "class"), ("priority",)


def told(request: Any) -> dict[str, Any]:
    """What a client says of *request* beyond vLLM's own words, where it is of the right kind (`NUMBERS`, `TEXTS`,
    `WHOLE`).

    Over HTTP it is a text in JSON (vLLM passes no mapping on). Whatever else is there is the client's mistake, which
    must not end the engine.
    """
    given = (getattr(request.sampling_params, "extra_args", None) or {}).get(KEY)
    if isinstance(given, str):
        with contextlib.suppress(ValueError):
            given = json.loads(given)
    if not isinstance(given, Mapping):
        return {}
    said: dict[str, Any] = {}
    for key, value in given.items():
        if key in TEXTS:
            right = isinstance(value, str)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            right = False
        elif key in WHOLE:
            right = isinstance(value, int)
        else:
            least = math.ulp(0.0) if key in ("weight", "predicted") else 0.0
            right = key in NUMBERS and math.isfinite(value) and value >= least
        if right:
            said[key] = value
    return said


def prompt_ids(planned: Planned) -> list[int]:
    """Token ids of a prompt for an engine that caches no prefixes: what they are does not matter, that they differ
    does no harm."""
    return [4 + (planned.id * 7 + i) % 500 for i in range(planned.prompt)]


class SessionSender:
    """Sends *sessions* to an engine that serves *module*; *how* is as in `Conversations`. *planned* makes what is
    sent of a request. *requests* are those that have been sent, by number."""

    def __init__(
        self,
        sessions: Iterator[Session],
        module: str,
        planned: Callable[[Request], Planned],
        how: Mapping[str, Any],
    ) -> None:
        self.module, self.planned = module, planned
        self.requests: dict[int, Request] = {}
        self._due: list[tuple[float, int, Coming]] = []
        self._number = itertools.count()
        self._prompts: dict[int, Sequence[int]] = {}  # of requests that are under way
        self._said: dict[int, Sequence[int]] = {}  # of sessions between two turns
        self.talks = Conversations(sessions, self._plan, **how)

    @property
    def over(self) -> bool:
        """Whether nothing is sent any more."""
        return self.talks.over

    @property
    def next_time(self) -> float:
        """When the next request is due, in seconds since the run began; infinite if none is as yet."""
        return self._due[0][0] if self._due else math.inf

    def begin(self, prompts: Callable[[Planned], Any]) -> None:
        """The run begins. *prompts* gives the tokens of a prompt."""
        self._prompt_of = prompts
        self.talks.begin()

    def due(self, now: float) -> Iterator[Planned]:
        """What is due by *now*, one after the other: whoever asks sends it."""
        while self._due and self._due[0][0] <= now:
            when, _, coming = heapq.heappop(self._due)
            request = self.talks.sent(coming, when)
            self.requests[request.id] = request
            yield self._with_prompt(self.planned(request), request.session)

    def ended(self, number: int, now: float, tokens: Sequence[int], *, answered: bool) -> None:
        """Request *number* has ended *now*, having got these *tokens*; *answered*: it was finished."""
        prompt, session = self._prompts.pop(number), self.requests[number].session
        if session is not None:
            self._said[session[0]] = [*prompt, *tokens]
        self.talks.ended(number, now, {self.module: len(tokens)}, answered=answered)

    def _with_prompt(self, planned: Planned, session: tuple[int, int] | None) -> Planned:
        said = self._said.pop(session[0], None) if session is not None else None
        if said is None:
            ids = self._prompt_of(planned)
        else:
            ids = [*said, *self._prompt_of(replace(planned, prompt=planned.prompt - len(said), prefix=None))]
        self._prompts[planned.id] = ids
        return replace(planned, ids=ids)

    def _plan(self, when: float, coming: Coming) -> None:
        heapq.heappush(self._due, (when, next(self._number), coming))
