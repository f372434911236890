"""From engines that prefill to engines that decode: who decodes a request, and when its KV gets there.

When a prompt stands, a router picks the engine that decodes (at once, or when one has room). The policy of that
engine admits the request when it wants to, and from then on both engines hold memory for it until its KV has been
sent: the decode engine reserves it first, so what finds no room there stays where it was prefilled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from ...pipeline import Stage
from ...request import Request, Task
from ...serving.dispatch import Dispatcher
from ...serving.worker import Loop, Worker
from ..request import Handed

#: What sends one prompt at a time: each prefill engine, each decode engine, each pair of them, or all together; or
#: as many as there are go at once, and none slows another down.
Link = Literal["prefill", "decode", "pair", "shared", "unlimited"]


class Source(Protocol):
    """An engine that prefills (`servetwin.core.llm.serving.pools.PrefillEngine`)."""

    sending: int

    @property
    def worker(self) -> Worker: ...
    def let_go(self, task: Handed) -> None: ...
    def wake(self) -> None: ...


class Target(Protocol):
    """An engine that decodes (`servetwin.core.llm.serving.pools.DecodeEngine`)."""

    @property
    def worker(self) -> Worker: ...
    def take_over(self, task: Handed, length: int) -> None: ...
    def kv_came(self, task: Handed) -> None: ...


@dataclass(frozen=True)
class KVTransfer:
    """What sending the KV of a prompt from engine to engine takes.

    *seconds* gives the time of so many tokens, by the name of the worker that sends. Without *overlap* a prefill
    engine computes nothing while it sends, and sends before it computes more. With *first_token* "prefill" a
    request's first token is the one that its prefill gives; with "decode" that one is not used, and the first token
    comes from a step of the decode engine, which computes the prompt's last token again.
    """

    seconds: Mapping[str, Callable[[int], float]]
    bytes_per_token: float
    link: Link = "prefill"
    overlap: bool = True
    first_token: Literal["prefill", "decode"] = "prefill"


@dataclass
class Line:
    """Those that wait for a link, each with the engine that gets it and the tokens to send, in order; and whether it
    sends."""

    waiting: deque[tuple[Handed, Target, int]] = field(default_factory=deque)
    sending: bool = False


class Handover:
    """Hands requests over to *workers*, which decode; *dispatcher* asks a router which of them, if there are several.

    To be given to all workers of both kinds of a stage, and to the loop.
    """

    def __init__(self, workers: Sequence[Worker], transfer: KVTransfer, dispatcher: Dispatcher | None = None) -> None:
        self.workers = list(workers)
        self.transfer = transfer
        self.dispatcher = dispatcher if len(workers) > 1 else None
        self._held: dict[Handed, Source] = {}  # whose KV stands where they were prefilled
        self._lengths: dict[Handed, int] = {}  # true ones, of those that no decode engine has yet
        self._lines: dict[tuple[str, ...], Line] = {}

    def attach(self, loop: Loop) -> None:
        """Work for *loop*."""
        self.loop = loop
        self.now: Callable[[], float] = loop.now
        if self.dispatcher is not None:
            self.dispatcher.attach(self)

    # -- which engine decodes ---------------------------------------------------------------------------------

    def offer(self, task: Handed, length: int, source: Source) -> None:
        """The prompt of *task* stands at *source*; it is to generate so many tokens."""
        self._held[task], self._lengths[task] = source, length
        worker: Worker | None = self.workers[0]
        if self.dispatcher is not None:
            worker = self.dispatcher(task.request, self.workers, self.now())
            if worker is None:
                self.dispatcher.hold(task.request, task.stage, task, self.workers)
                return
        assert worker is not None
        self.forward(task.request, task.stage, task, target=worker)

    def forward(
        self, request: Request, stage: Stage, before: Task | None, jump: bool = False, target: Worker | None = None
    ) -> None:
        """The visit *before* of *request* goes on at *target*."""
        task: Any = before
        engine: Target = target.engine  # type: ignore[union-attr]
        engine.take_over(task, self._lengths.pop(task))

    def freed(self, stage: Stage) -> None:
        """A decode engine may have room."""
        if self.dispatcher is not None and not self.loop.stopped:
            self.dispatcher.freed(stage)

    def release(self, task: Handed) -> None:
        """The KV of *task* is not needed any more where it was prefilled."""
        source = self._held.pop(task, None)
        if source is None:
            return
        if self._lengths.pop(task, None) is not None and self.dispatcher is not None:
            self.dispatcher.forget(task.request)
        source.let_go(task)

    # -- when its KV gets there ------------------------------------------------------------------------------

    def fetch(self, task: Handed, engine: Target, tokens: int) -> None:
        """*engine* has reserved memory for *task*: the KV of so many *tokens* is sent there when its turn comes; if
        there are none, all of it is there."""
        if not tokens:
            task.sent = self.now()
            self.loop.call_at(task.sent, partial(self._was_there, task, engine))
            return
        line = self._lines.setdefault(self._link(self._held[task], engine), Line())
        line.waiting.append((task, engine, tokens))
        self._send(line)

    def standstill(self, source: Source) -> bool:
        """Whether *source* sends, and computes nothing meanwhile. It begins to send if something waits for that."""
        for line in self._lines.values():
            self._send(line)
        return source.sending > 0

    def _link(self, source: Source, engine: Target) -> tuple[str, ...]:
        sends, gets = source.worker.name, engine.worker.name
        names = {"prefill": (sends,), "decode": (gets,), "pair": (sends, gets), "shared": ()}
        return names.get(self.transfer.link, (sends, gets, ""))

    def _send(self, line: Line) -> None:
        """Begin to send what is next, if the link is free and the engine that sends may."""
        limited = self.transfer.link != "unlimited"
        while line.waiting and not (line.sending and limited):
            task, engine, tokens = line.waiting[0]
            source = self._held.get(task)
            if source is not None:
                if not self.transfer.overlap and (source.worker.view.in_flight is not None or source.sending):
                    return
                now = self.now()
                line.sending, task.sent = True, now
                source.sending += 1
                seconds = self.transfer.seconds[source.worker.name](tokens)
                self.loop.call_at(now + seconds, partial(self._sent, line, task, engine, source))
            line.waiting.popleft()  # whose request has ended meanwhile is not sent

    def _was_there(self, task: Handed, engine: Target) -> None:
        """Nothing of *task* is to be sent to *engine*."""
        if task in self._held:
            task.handed = self.now()
            self.release(task)
            engine.kv_came(task)

    def _sent(self, line: Line, task: Handed, engine: Target, source: Source) -> None:
        """The KV of *task* has come to *engine*."""
        line.sending = False
        source.sending -= 1
        arrived = task in self._held  # else its request has ended meanwhile
        if arrived:
            task.handed = self.now()
        # Whatever begins now is on the calendar before the engine that gets it plans several steps on end.
        for other in (line,) if self.transfer.overlap else [*self._lines.values()]:
            self._send(other)
        self.release(task)
        if not self.transfer.overlap:
            source.wake()
        if arrived:
            engine.kv_came(task)
