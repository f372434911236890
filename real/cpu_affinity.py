"""An undisturbed core for the thread that serves.

On a machine that others share, a core is slow while somebody computes on its other half: everything that the serving
loop does between two iterations then takes about twice as long, for seconds at a time, and the system leaves a thread
that never sleeps where it is. Seen on an H100's host of 16 cores: launching an iteration took 22 us on half of them
and 55 us on the others, and which ones these were changed within seconds (docs/explanation/real-execution.md).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

#: Seconds between two trials of the core, and where no other one was better; trials that count together.
EVERY, RESIGNED, COUNTED = 0.004, 0.05, 5
#: So many times the shortest trial is slow; what is not more than the other is undisturbed.
SLOW, UNDISTURBED = 1.4, 1.2
#: With fewer cores than this nobody is moved: the other threads of a run need some too.
FEWEST = 4


def trial() -> float:
    """Seconds that a little work takes, of the kind that a serving loop does: some 15 us."""
    begin = time.perf_counter()
    x = 0
    for i in range(500):
        x += i
    return time.perf_counter() - begin


class PinnedCore:
    """Moves the calling thread among *cores* (default: those it may use) to one on which *test* takes little time.

    `enter` looks for one, `look` is to be called again and again, and `leave` lets the thread run anywhere again.
    *test* gives seconds, *move* binds the thread to the cores it is given. A thread that the bound one starts may run
    on its core only: *release* lets such run anywhere again, at the first looks and ever more seldom thereafter.
    """

    def __init__(
        self,
        cores: Sequence[int] | None = None,
        *,
        test: Callable[[], float] = trial,
        move: Callable[[Sequence[int]], None] | None = None,
        release: Callable[[Sequence[int]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cores = list(cores if cores is not None else usable())
        self.test = test
        self.move = move or _bind
        self.release = release or (release_others if move is None else lambda _: None)
        self.clock = clock
        self.core = self.cores[0]
        self.moves = 0  # since `enter`
        self._next: Iterator[int] = cycle(self.cores)
        self._best = float("inf")
        self._last: deque[float] = deque(maxlen=COUNTED)
        self._due = 0.0
        self._failed = 0  # cores that were tried since the last move
        self._looks = 0  # since `enter`

    def enter(self) -> None:
        """Go where it is least disturbed now: three trials on each core, some milliseconds in all."""
        self.moves = self._looks = 0
        found = []
        for core in self.cores:
            self.move([core])
            found.append((statistics.median(self.test() for _ in range(3)), core))
        taken, core = min(found)
        self._best = min(self._best, taken)
        self._go(core)

    def look(self) -> None:
        """See, now and then, whether something disturbs it here; if so, try the next core: a trial here, one there.

        To be called where nothing is waited for: what runs may be over meanwhile.
        """
        now = self.clock()
        if now < self._due:
            return
        self._due = now + EVERY
        self._looks += 1
        if self._looks & (self._looks - 1) == 0:  # a power of two
            self.release(self.cores)
        last = self._last
        last.append(self.test())
        self._best = min(self._best, last[-1])
        if len(last) < COUNTED or statistics.median(last) <= SLOW * self._best:
            return
        here, before = self.core, statistics.median(last)
        there = next(self._next)
        if there == here:
            there = next(self._next)
        self.move([there])
        taken = self.test()
        if taken <= UNDISTURBED * self._best or taken < before / UNDISTURBED:
            self._go(there)
            return
        self.move([here])
        self._failed += 1
        if self._failed >= len(self.cores):
            self._due = now + RESIGNED

    def leave(self) -> None:
        """The thread may run on any of the cores again."""
        self.move(self.cores)

    def _go(self, core: int) -> None:
        self.move([core])
        self.moves += core != self.core
        self.core = core
        self._failed = 0
        self._last.clear()


def usable() -> list[int]:
    """The cores that this thread may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pinned_core(wanted: bool | None) -> PinnedCore | None:
    """One where there are cores enough, unless *wanted* says no."""
    return None if wanted is False or len(usable()) < FEWEST else PinnedCore()


def release_others(cores: Sequence[int]) -> None:
    """Let all other threads of this process that are bound to one of *cores* run on each of them."""
    own, among = threading.get_native_id(), set(cores)
    with contextlib.suppress(OSError):  # no /proc, or a thread has ended meanwhile
        for task in os.listdir("/proc/self/task"):
            number = int(task)
            with contextlib.suppress(ProcessLookupError):
                bound = os.sched_getaffinity(number)
                if number != own and len(bound) == 1 and bound < among:
                    os.sched_setaffinity(number, cores)


def _bind(cores: Sequence[int]) -> None:
    os.sched_setaffinity(0, cores)
