"""Processes that simulate. What nobody waits for any more is ended, at once, with its process.

A simulation cannot be asked to stop: it may be in a policy's code, which need not return. So each lane, a thread,
has a process, gives it one job at a time, and ends it if the job was given up or takes too long. The next process is
forked from a server process that has imported everything (`multiprocessing`'s forkserver), which takes some 20 ms.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from servetwin.core import ServeTwinError
from servetwin.core.errors import Stopped
from servetwin.core.processes import temporary_folders
from servetwin.core.processes.parent_death import end_with_parent

#: What a process needs to simulate.
PRELOADED = ["__main__", "servetwin.experiments.exploring.simulation"]
#: Seconds between two looks whether a job was given up.
TICK = 0.02
#: How many tabs are remembered.
TABS = 64
#: Seconds that a job may take.
LONGEST = 30.0

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Stale(Exception):
    """A newer question of the same tab has taken the place of this one."""


class Trouble(ServeTwinError):
    """What went wrong in a process, in a line."""


@dataclass
class _Job:
    call: Call
    future: Future[Any] = field(default_factory=Future)
    given_up: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Question:
    """The jobs of the newest question of a tab."""

    number: int
    jobs: list[_Job]


class Lanes:
    """*count* processes at work on the questions of tabs."""

    def __init__(self, count: int, longest: float = LONGEST) -> None:
        self.count = count
        self._longest = longest
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        temporary_folders.for_multiprocessing()
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._asked: dict[str, _Question] = {}
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def ask(self, tab: str, number: int, calls: Sequence[Call]) -> list[Any]:
        """What *calls* give, each made in a process. Questions of one *tab* have ascending *numbers*: the newest ends
        those before it. Raises `Stale` if there is a newer one, and `Trouble` for what went wrong."""
        asked = self._put(tab, number, calls)
        try:
            return [job.future.result() for job in asked.jobs]
        finally:
            for job in asked.jobs:  # if one went wrong nobody waits for the other
                job.given_up.set()
            asked.jobs = []  # what they gave is large

    def begin(self, tab: str, number: int, calls: Sequence[Call]) -> list[Future[Any]]:
        """Likewise, to be waited for later."""
        return [job.future for job in self._put(tab, number, calls).jobs]

    def _put(self, tab: str, number: int, calls: Sequence[Call]) -> _Question:
        asked = _Question(number, [_Job(call) for call in calls])
        with self._lock:
            before = self._asked.pop(tab, None)
            if before is not None and before.number >= number:
                self._asked[tab] = before
                raise Stale
            self._asked[tab] = asked
            if len(self._asked) > TABS:
                self._asked.pop(next(iter(self._asked)))
        for job in before.jobs if before is not None else ():
            job.given_up.set()
        for job in asked.jobs:
            self._waiting.put(job)
        return asked

    def close(self) -> None:
        """End all."""
        with self._lock:
            questions = list(self._asked.values())
        for job in (job for question in questions for job in question.jobs):
            job.given_up.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(5.0)

    def _work(self) -> None:
        worker = _Worker(self._context)
        while (job := self._waiting.get()) is not None:
            if job.given_up.is_set():
                job.future.set_exception(Stale())
                continue
            try:
                job.future.set_result(worker.do(job, self._longest))
            except BaseException as error:
                job.future.set_exception(error)
            if not worker.alive:
                worker = _Worker(self._context)
        worker.end()


class _Worker:
    """A process, and the line to it."""

    def __init__(self, context: Any) -> None:
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def do(self, job: _Job, longest: float) -> Any:
        self._line.send(job.call)
        left = longest
        while not self._line.poll(TICK):
            left -= TICK
            if job.given_up.is_set():
                self.end()
                raise Stale
            if left <= 0:
                self.end()
                raise Trouble(f"the simulation was not over after {longest:g} s (right would be: fewer requests)")
        try:
            kind, found, trace = self._line.recv()
        except EOFError:
            self._process.join(1.0)
            told = "for want of memory?" if self._process.exitcode == -signal.SIGKILL else "by the policy's own code?"
            raise Trouble(f"the process that simulates has ended, perhaps {told}") from None
        if trace is not None:
            sys.stderr.write(trace)
        if kind == "trouble":
            raise Trouble(found)
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._line.close()


def _serve(line: Connection) -> None:
    """The loop of a process: a job at a time, until whoever gives them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all processes; whoever started this one ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, arguments = line.recv()
            line.send(_done(function, arguments))


def _done(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any, str | None]:
    """Whether it is done or there is trouble, what it gave or what to say, and the trace of an unforeseen error."""
    try:
        return "done", function(*arguments), None
    except (ServeTwinError, Stopped) as error:
        return "trouble", " ".join(str(error).split()), None
    except BaseException as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        told = f"an error of ServeTwin's own, told on the terminal: {told}"
        return "trouble", told, "".join(traceback.format_exception(error))
