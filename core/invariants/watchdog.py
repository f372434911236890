"""A watchdog over single calls of a policy's code, for the time of a run: one that never returns ends the run.

A thread of its own looks every so often (`TICK`) at where the watched thread is. A call counts as endless if the very
same frame of it was there at every look for `SECONDS`, so a run of any length under a policy that answers never does;
nor does a process that was stopped for a while, or one in a debugger. The run itself pays nothing for it.

On the main thread a real-time signal that nobody else uses ends the call, also one that sleeps or waits; on other
threads (those of a cluster's workers) an exception that is set from outside, as soon as Python code runs there. What
neither ends is C code that keeps the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import inspect
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any, NoReturn

from ..errors import BadInput, PolicyFault
from ..isolation.code_inspection import files_of, named, own
from ..isolation.integrity import comes_along
from ..policy import WorkerView
from ..serving.worker import Worker

#: How long a call may take, and what says otherwise (0: as long as it likes).
SECONDS, SETTING = 60.0, "SERVETWIN_POLICY_SECONDS"
#: Seconds between two looks, at most.
TICK = 1.0
#: Seconds between two tries of ending a call, and after how many the process is given up (`give_up`).
AGAIN, TRIES = 0.5, 20
#: Seconds that a try lasts.
BURST = 0.02

#: What a policy is asked.
METHODS = ("start", "admit", "decide", "ended", "removed")

#: Told in vain, a policy catches whatever ends it: the command line leaves the process then.
give_up: Callable[[str], None] | None = None


class Endless(BaseException):
    """A call of a policy does not come to an end. No `Exception`, so that policies that catch those do not go on."""


def longest() -> float:
    """Seconds that one call of a policy may take. Raises `BadInput` if the setting is no number."""
    said = os.environ.get(SETTING)
    if said is None:
        return SECONDS
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0.0:
        raise BadInput(
            f"{said!r} is no time", where=SETTING, right="seconds that one call of a policy may take, or 0"
        )
    return 0.0 if math.isinf(seconds) else seconds


@contextmanager
def watched(policies: Sequence[object], file: str | None = None) -> Iterator[None]:
    """Within this, a call of one of *policies* that never returns raises `PolicyFault`; or, with *file*, the loading
    of that file. Policies that come with ServeTwin need no watching."""
    theirs = [policy for policy in map(own, policies) if not comes_along(type(policy))]
    seconds = longest() if theirs or file is not None else 0.0
    if not seconds:
        yield
        return
    watch = _Watch(theirs, file, seconds)
    watch.begin()
    try:
        yield
    except BaseException:
        watch.end()
        if watch.told:  # what the policy made of that is of no interest
            raise PolicyFault(watch.told) from None
        raise
    watch.end()
    if watch.told:  # the policy caught what was to end it, and the run had come to its end by then
        raise PolicyFault(watch.told)


class _Watch:
    """Of the thread that makes it."""

    def __init__(self, policies: Sequence[object], file: str | None, seconds: float) -> None:
        self.policies, self.file, self.seconds = policies, file, seconds
        self.files = {name for policy in policies for name in files_of(policy)} | ({file} if file else set())
        self.codes = {code for policy in policies for code in _codes(policy)}
        self.told = ""
        self.ident = threading.get_ident()
        self.base = _above()
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.call: FrameType | None = None
        self.number: int | None = None
        self.before: Any = None
        self.thread = threading.Thread(target=self._look, name="looks after policies", daemon=True)

    def begin(self) -> None:
        lowest = getattr(signal, "SIGRTMIN", None)
        if lowest is not None and threading.current_thread() is threading.main_thread():
            number = int(lowest) + 11
            if signal.getsignal(number) is signal.SIG_DFL:
                self.number, self.before = number, signal.signal(number, self._raise)
        self.thread.start()

    def end(self) -> None:
        """No more looks; whatever was to be raised and has not been is not raised any more."""
        with self.lock:
            if self.over.is_set():
                return
            self.over.set()
        self.thread.join()
        if self.told and self.number is None:
            self._absorb()
        if self.number is not None:
            signal.signal(self.number, signal.SIG_IGN)  # one may be on its way
            signal.signal(self.number, self.before)
        self.call = None

    # -- on the thread that is watched -----------------------------------------------------------------------

    def _absorb(self) -> None:
        """Let what was to be raised in this thread, and may still be, be raised here. (To take it back would leave
        CPython 3.11 asking for it at every step for ever, and waiting for ever under a profiler.)"""
        with suppress(Endless):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(Endless))
            for _ in range(10_000):  # it comes within a turn or two
                pass

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.over.is_set():
            return
        while frame is not None and frame is not self.call:
            frame = frame.f_back
        # Outside of the call it is on its way up already, unless the policy has caught it and answered.
        if frame is not None or sys.exc_info()[1] is None:
            raise Endless

    # -- on a thread of its own ------------------------------------------------------------------------------

    def _look(self) -> None:
        tick = min(TICK, self.seconds / 4)
        looks, seen = math.ceil(self.seconds / tick), 0
        while not self.over.wait(tick):
            frames = self._frames()
            if frames and frames[-1] is self.call:
                seen += 1
                if seen >= looks:
                    self._stop(frames)
                    return
            else:
                self.call, seen = (frames[-1] if frames else None), 0

    def _frames(self) -> list[FrameType]:
        """The frames of the policies' code that are under way, innermost first: the last one is the call."""
        frame: FrameType | None = sys._current_frames().get(self.ident)
        found = []
        while frame is not None and frame is not self.base:
            if frame.f_trace is not None:
                return []  # somebody steps through it
            if frame.f_code in self.codes or frame.f_code.co_filename in self.files:
                found.append(frame)
            frame = frame.f_back
        return found if frame is not None else []

    def _stop(self, frames: Sequence[FrameType]) -> None:
        self.told = self._tell(frames)
        # A policy that catches what ends the call, and answers, is not asked again.
        for policy in self.policies:
            for name in METHODS:
                with suppress(AttributeError):
                    object.__setattr__(policy, name, _refuse)
        for _ in range(TRIES):
            if self._raised():
                return
        if give_up is not None:
            give_up(self.told)

    def _raised(self) -> bool:
        """Try to end the call; whether that was it."""
        if self.number is None:
            with self.lock:
                if not self.over.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(Endless))
            return self.over.wait(AGAIN)
        # A policy that catches all and goes on is interrupted again before it is within its next `try`.
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            until = time.monotonic() + BURST
            while time.monotonic() < until:
                with self.lock:  # nobody catches the signal when it is over
                    if self.over.is_set():
                        return True
                    signal.pthread_kill(self.ident, self.number)
        finally:
            sys.setswitchinterval(before)
        return self.over.wait(AGAIN)

    def _tell(self, frames: Sequence[FrameType]) -> str:
        inner, call = frames[0], frames[-1]
        line = inner.f_code.co_filename, inner.f_lineno
        right = f"an answer; {SETTING} sets how many seconds a call may take, 0 for no limit"
        if self.file is not None:
            at, what = f"policy {os.path.basename(self.file)}:{line[1]}", "its loading"
        else:
            # By what it is handed and what asked: the policy itself, a worker, its view. Whatever they are called.
            near = [*call.f_locals.values(), *(call.f_back.f_locals.values() if call.f_back is not None else ())]
            workers = [thing for thing in near if issubclass(type(thing), Worker)]
            views = [thing for thing in near if issubclass(type(thing), WorkerView)]
            asked = [own(thing) for thing in (*(worker.policy for worker in workers), *near)]
            policy = next((p for p in asked if any(p is known for known in self.policies)), self.policies[0])
            where = f" at worker {(views or workers)[0].name}" if views or workers else ""
            at, what = named(policy, line), f"one call of {call.f_code.co_name}{where}"
        return f"{at}: {what} has taken {self.seconds:g} s and does not come to an end (right would be: {right})"


def _refuse(*_: object) -> NoReturn:
    raise Endless


def _codes(policy: object) -> Iterator[CodeType]:
    """The code of what *policy* is asked, also where it is wrapped or stands in another file."""
    for name in (*METHODS, "__init__"):
        method = getattr(policy, name, None)
        function = getattr(method, "__func__", method)
        while function is not None:
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType) and not code.co_filename.startswith(_CORE):
                yield code
            function = getattr(function, "__wrapped__", None)


_CORE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_ASIDE = {__file__, contextmanager.__code__.co_filename}


def _above() -> FrameType:
    """The frame within which a watch begins: context managers, which are generators, are not there meanwhile."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename in _ASIDE or frame.f_code.co_flags & inspect.CO_GENERATOR
    ):
        frame = frame.f_back
    return frame
