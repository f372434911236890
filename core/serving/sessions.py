"""Requests that are sent when others have ended: sessions, whose turns follow each other, and a closed loop of
clients, each of which has one session at a time.

`Conversations` knows what is to be sent next and has no clock, so that it serves simulated and real runs alike.
`play_sessions` sends it to a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

from ..errors import BadInput
from ..request import Outcome, Request
from .loop import ServingLoop

#: What becomes of a session of which a request was dropped or failed: it ends, or the next turn comes all the same.
AfterDrop = Literal["end", "continue"]


class Session:
    """*turns* are requests that have not been sent, with the seconds from the end of the one before to the sending of
    each (of the first: those that a client of a closed loop takes before it). What they say of prompts is what each
    adds to the session. *due* is when the first is sent, in seconds since the run began (None: when a client comes
    to it). *number* None: its only turn is a request like any other."""

    __slots__ = ("_contents", "due", "number", "turns")

    def __init__(self, number: int | None, turns: list[tuple[float, Request]], due: float | None = None) -> None:
        self.number, self.turns, self.due = number, turns, due
        self._contents = turns[0][1].contents_of(number) if number is not None else None

    def request(self, place: int, at: float, said: Mapping[str, int]) -> Request:
        """Turn *place*, sent at that time. *said* has the tokens of the session so far, by LLM module."""
        session = (self.number, place) if self.number is not None else None
        return self.turns[place][1].turn(at, session, said, self._contents)

    def planned(self) -> Iterator[Request]:
        """Its requests as they are if each is answered as it is planned, sent at 0."""
        said: Mapping[str, int] = {}
        for place, (_, plan) in enumerate(self.turns):
            yield self.request(place, 0.0, said)
            said = plan.said_after(said, plan.answers())


class Coming:
    """A turn that is to be sent."""

    __slots__ = ("place", "said", "session")

    def __init__(self, session: Session, place: int, said: Mapping[str, int]) -> None:
        self.session, self.place, self.said = session, place, said

    def request(self, at: float) -> Request:
        """It, sent at that time."""
        return self.session.request(self.place, at, self.said)


class Conversations:
    """What of *sessions* is sent when. *schedule* is called with a time and with what is to be sent then, and whoever
    sends it tells `sent`, and `ended` when it has ended.

    With *clients* so many sessions are under way at any time, the first of them spread over *ramp* seconds; without,
    each begins when it is *due* (in that order). *over* says that nothing is sent any more.
    """

    def __init__(
        self,
        sessions: Iterator[Session],
        schedule: Callable[[float, Coming], None],
        *,
        clients: int | None = None,
        ramp: float = 0.0,
        after_drop: AfterDrop = "end",
    ) -> None:
        self.schedule, self.clients, self.ramp, self.after_drop = schedule, clients, ramp, after_drop
        self._sessions = sessions
        self._next = next(sessions, None)
        self._live: dict[int, Coming] = {}  # by the request's number
        self._unsent = 0  # turns of sessions that have begun, or are scheduled
        self.scheduled = 0

    @property
    def over(self) -> bool:
        """Whether nothing is sent any more."""
        return self._next is None and not self._unsent

    def begin(self) -> None:
        """The run begins."""
        if self.clients is None:
            self._begin_one(None)
            return
        for client in range(self.clients):
            self._begin_one(self.ramp * client / self.clients)

    def _begin_one(self, when: float | None) -> None:
        """The next session, if there is one, begins then, or when it is due."""
        session = self._next
        if session is None:
            return
        self._next = next(self._sessions, None)
        if when is None:
            when = session.due
            assert when is not None
        self._unsent += len(session.turns)
        self._plan(when, Coming(session, 0, {}))

    def _plan(self, when: float, coming: Coming) -> None:
        self.scheduled += 1
        self.schedule(when, coming)

    def sent(self, coming: Coming, at: float) -> Request:
        """The request of *coming*, which is sent now."""
        request = coming.request(at)
        self._live[request.id] = coming
        self._unsent -= 1
        self.scheduled -= 1
        if self.clients is None and not coming.place:
            self._begin_one(None)
        return request

    def ended(self, number: int, now: float, generated: Mapping[str, int], *, answered: bool) -> None:
        """Request *number* has ended *now*, with so many tokens *generated* by LLM module; *answered*: it was
        finished, late or not."""
        coming = self._live.pop(number)
        session, place = coming.session, coming.place + 1
        if place < len(session.turns):
            if answered or self.after_drop == "continue":
                said = session.turns[coming.place][1].said_after(coming.said, generated)
                self._plan(now + session.turns[place][0], Coming(session, place, said))
                return
            self._unsent -= len(session.turns) - place
        if self.clients is not None and self._next is not None:
            self._begin_one(now + self._next.turns[0][0])


class SessionClient:
    """Sends *loop* the requests of *sessions* on the executor's clock; *when_over* is called when the last has been
    sent, or will not be. Otherwise as `Conversations`."""

    def __init__(
        self,
        loop: ServingLoop,
        sessions: Iterator[Session],
        *,
        clients: int | None = None,
        ramp: float = 0.0,
        after_drop: AfterDrop = "end",
        when_over: Callable[[], None] | None = None,
    ) -> None:
        self.loop, self.when_over = loop, when_over
        self.talks = Conversations(sessions, self._plan, clients=clients, ramp=ramp, after_drop=after_drop)
        if self.talks.over:
            raise BadInput("there is no request to send", right="a session at least")
        loop.hear_ends(self._ended)
        loop.more_come = lambda: not self.talks.over
        self.talks.begin()

    def _plan(self, when: float, coming: Coming) -> None:
        self.loop.executor.call_at(when, partial(self._send, coming))

    def _send(self, coming: Coming) -> None:
        request = self.talks.sent(coming, self.loop.now())
        self._look()
        self.loop.arrive(request)

    def _ended(self, request: Request, now: float) -> None:
        if self.loop.stopped:
            return
        answered = request.outcome in (Outcome.MET, Outcome.LATE)
        before = self.talks.over
        self.talks.ended(request.id, now, request.generated(), answered=answered)
        if not before:
            self._look()

    def _look(self) -> None:
        if self.talks.over and self.when_over is not None:
            over, self.when_over = self.when_over, None
            over()
