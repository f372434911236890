"""A watchdog over the policy of a vLLM engine: ends a run of which the policy makes no end, and names the policy.

Three things are looked after, as in a simulated engine: what a policy raises; answers by which nothing ever runs;
and, which a simulation does not see, a call that does not come back. For the last a thread looks at the clock and,
where the call has gone on for too long, raises an error in the middle of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from servetwin.core import ServeTwinError
from servetwin.core.errors import PolicyFault, broken
from servetwin.core.isolation.answers import LEAST, MOST, OFTEN, fault
from servetwin.core.isolation.code_inspection import by_its_own_word, files_of, named, raised_at
from servetwin.core.llm.serving.engine_ledger import FRUITLESS

#: Seconds that a policy may take to answer, and that an engine may stand still while requests are there.
LONGEST = 60.0
#: Seconds between two looks at the clock.
EVERY = 0.5
#: So many answers on end without a step, over more than `LONGEST`, are taken for idling for ever.
MANY = 1000


class Late(BaseException):
    """Raised in the middle of a call that has gone on for too long; no `Exception`, for a policy may catch those."""


class Watchdog:
    """Looks after the policy of the engine *name*, which is asked in the thread that `watching` is entered in.

    *longest* is how many seconds a call may take, and the engine may stand still.
    """

    def __init__(self, name: str, longest: float = LONGEST) -> None:
        self.name, self.longest = name, longest
        self.thread = threading.get_ident()
        self.policy: object = None
        self.call = ""  # which method is being asked
        self.since: float | None = None  # when it was asked; None while nobody is
        self.told: PolicyFault | None = None  # what is to be said of the call under way
        self._by_signal = False
        self.begin()

    def begin(self) -> None:
        """A run begins."""
        self.idles = self.fruitless = 0
        self.preempted = False  # somebody, since the last step
        self.idle_from = self.asleep = 0.0
        self.since = self.told = None

    # -- answers ----------------------------------------------------------------------------------------

    def worked(self, preempted: bool) -> None:
        """Something came of an answer, though no step did; it *preempted* somebody or did not."""
        self.idles = 0
        self.preempted = self.preempted or preempted

    def idled(self, policy: object, now: float, asleep: float, held: int) -> None:
        """The policy let the engine stand still *now*, with *held* requests there, until *asleep*. Raises
        `PolicyFault` if that goes on for ever."""
        if not self.idles:
            self.idle_from, self.asleep = now, 0.0
        self.idles += 1
        self.asleep += max(0.0, asleep - now)
        if self.idles % OFTEN == 0:
            # A clock that goes on by itself passes between two answers too: what counts is what the policy asked for.
            if self.asleep < LEAST:
                self._tell_idle(policy, f"the last {OFTEN} of them to idle for {self.asleep:.3g} s", now, held)
            self.asleep = 0.0
        passed = now - self.idle_from
        if self.idles >= MOST or (self.idles >= MANY and passed > self.longest):
            self._tell_idle(policy, f"in {passed:.3g} s", now, held)

    def _tell_idle(self, policy: object, how: str, now: float, held: int) -> None:
        what = f"it idled {self.idles} times on end at {self.name}, {how}, and ran nothing"
        raise fault(policy, f"{what} of the {held} requests there")

    def stepped(self, preempted: bool) -> None:
        """A step was decided, which *preempted* somebody or did not."""
        self.idles = 0
        self.fruitless += preempted or self.preempted
        self.preempted = False

    def tokens_came(self) -> None:
        """A step put tokens out."""
        self.fruitless = 0

    def check_progress(self, policy: object, running: int, waiting: int) -> None:
        """Raise `InvariantBroken` if the engine goes round in circles: invariant 13."""
        if self.fruitless > FRUITLESS:
            what = f"{FRUITLESS} steps on end preempted somebody, and not a token came out"
            where = f"with {running} running and {waiting} waiting"
            raise broken(13, f"engine {self.name} goes round in circles under {named(policy)}: {what} ({where})")

    def stuck(self, policy: object, held: int) -> PolicyFault:
        """The policy waits for what will not come."""
        what = f"{held} requests never ended, though nothing was left to happen"
        return PolicyFault(f"{what}; held by {self.name} ({named(policy)})")

    # -- calls ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def asking(self, policy: object, call: str) -> Iterator[None]:
        """Within this *policy* is asked, by the method *call*. What it raises is told with its file and line: in
        vLLM's process nobody else could. Raises `PolicyFault`."""
        self.policy, self.call, self.since = policy, call, time.monotonic()
        try:
            yield
        except ServeTwinError:
            raise
        except Late:
            self.since = None
            raise self._told() from None
        except BaseException as error:
            self.since = None
            if self.told is not None:  # the policy made another error of ours
                raise self._told() from None
            at = raised_at([policy], error)
            if at is None or (isinstance(error, KeyboardInterrupt) and not by_its_own_word(error)):
                raise
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise PolicyFault(
                f"{named(policy, (at[1], at[2]))}: the policy failed in {at[3]}: {' '.join(what.split())}"
            ) from error
        finally:
            self.since = None
        if self.told is not None:  # it came back because it caught our error
            raise self._told()

    def _told(self) -> PolicyFault:
        sys.settrace(None)
        told, self.told = self.told, None
        return told or PolicyFault(f"{named(self.policy)}: it was interrupted")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this, calls that do not come back are ended."""
        over = self.start()
        try:
            yield
        finally:
            over()

    def start(self) -> Callable[[], None]:
        """Watch from now on; gives what ends that."""
        self.thread = threading.get_ident()
        # Only a signal wakes a thread that sleeps or waits, and only the main thread hears signals.
        self._by_signal = threading.current_thread() is threading.main_thread()
        before: Any = signal.signal(signal.SIGALRM, self._ring) if self._by_signal else None
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over,), name=f"watchdog of {self.name}", daemon=True)
        thread.start()

        def end() -> None:
            over.set()
            thread.join()
            if self._by_signal:
                signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)

        return end

    def _look(self, over: threading.Event) -> None:
        while not over.wait(min(EVERY, self.longest / 4)):
            since = self.since
            if since is None or time.monotonic() - since < self.longest:
                continue
            if self.told is None:
                self.told = self._where(sys._current_frames().get(self.thread), since)
            if self.since != since:  # it has come back just now
                self.told = None
            elif self._by_signal:
                signal.pthread_kill(self.thread, signal.SIGALRM)
            else:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread), ctypes.py_object(Late))

    def _where(self, frame: FrameType | None, since: float) -> PolicyFault:
        """What is to be said of a call that is now in *frame*."""
        files, line = files_of(self.policy), None
        while frame is not None and line is None:
            if frame.f_code.co_filename in files:
                line = frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        what = f"{self.call} at {self.name} has not come back for {time.monotonic() - since:.3g} s"
        return PolicyFault(f"{named(self.policy, line, self.call)}: {what}")

    def _ring(self, number: int, frame: FrameType | None) -> None:
        """Break off the call under way."""
        if self.since is None or self.told is None:
            return
        # A policy that catches all that is raised meets it again at its next line.
        files = files_of(self.policy)
        while frame is not None:
            if frame.f_code.co_filename in files:
                frame.f_trace = self._again
            frame = frame.f_back
        sys.settrace(self._again)
        raise Late

    def _again(self, frame: FrameType, event: str, arg: object) -> Any:
        if self.since is None or frame.f_code.co_filename not in files_of(self.policy):
            return None
        if event == "line":  # not "exception", where the one under way would only be replaced
            raise Late
        return self._again
