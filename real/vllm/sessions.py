"""Sessions, and the clients of a closed loop, of an engine in this process: what is due, and what each prompt holds.

A request is sent when those before it have ended, so there is no client in a process of its own: what is due is
looked up between two steps, and its arrival is when it was due. The prompt of a turn is what was said before in its
session, token by token, with the answers that the model really gave, and new tokens.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from servetwin.core import Request
from servetwin.core.serving.sessions import Coming, Conversations, Session

from .plan import Planned

NEVER = float("inf")


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
        return self._due[0][0] if self._due else NEVER

    def begin(self, prompts: Callable[[Planned], list[int]]) -> None:
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
