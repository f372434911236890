"""A process that was started ends with the one that started it, however that ended: also by SIGKILL.

The process that starts others holds the writing end of a pipe, of which they hold the reading end. When it is no
more, the kernel closes the pipe and sends SIGKILL to all who read it (``F_SETSIG`` and ``O_ASYNC``, fcntl(2)): also
to one that computes without a break, and to one that is stopped. ``PR_SET_PDEATHSIG`` would do so too when only the
thread that started it has ended, which is wrong for a pool of processes that stays. Where there is no ``F_SETSIG``
(outside Linux) a thread waits for the pipe to close.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

#: What keeps the pipes open: in the process that starts others (its process number, both ends), and in those.
_here: tuple[int, Connection, int] | None = None
_held: list[int | Connection] = []


def lifeline() -> Connection:
    """What to give to a process that is to end with this one (`end_with`): the reading end of a pipe, the same at
    each call."""
    global _here
    if _here is None or _here[0] != os.getpid():  # another process, if this one was forked
        from multiprocessing.connection import Connection  # which a run on one core does without

        reading, writing = os.pipe()
        _here = os.getpid(), Connection(reading, writable=False), writing
    return _here[1]


def end_with(line: Connection) -> None:
    """Called in a process that was started: it ends when *line*, made by `lifeline` in another, closes."""
    _held.append(line)
    _end_when_closed(line.fileno())


def end_with_parent() -> None:
    """Likewise, in a process of `multiprocessing` (spawn or forkserver), which has such a pipe already."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None and parent.sentinel is not None:
        _end_when_closed(parent.sentinel)


def _end_when_closed(reading: int) -> None:
    if sys.platform == "linux":
        import fcntl

        # Whom the kernel tells belongs to the open pipe, which processes share that inherited it: this one opens it
        # for itself.
        reading = os.open(f"/proc/self/fd/{reading}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        _held.append(reading)
        fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(reading, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([reading], [], [], 0)[0]:  # it was closed before
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_wait, args=(reading,), name="ends with its parent", daemon=True).start()


def _wait(reading: int) -> None:
    select.select([reading], [], [])
    os.kill(os.getpid(), signal.SIGKILL)
