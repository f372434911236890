"""The client: an open loop in a process of its own, which sends each request when it is due, whatever becomes of
the others.

Run as ``python -I -S client.py SOCKET``: the standard library is all that it needs. It reads from its standard input
the times at which requests are due and then the time at which the run begins, and sends one packet per request: its
number and when it was sent. Times are seconds on the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence

PACKET = struct.Struct("<qd")
#: The number of the packet that says: that was all.
END = -1
#: Sleep until this many seconds before a request is due, then watch the clock.
WATCH = 0.0005


def send_all(channel: socket.socket, due: Sequence[float], begin: float) -> None:
    """Send packet *i* at ``begin + due[i]``."""
    clock, sleep, pack, send = time.monotonic, time.sleep, PACKET.pack, channel.send
    for i, at in enumerate(due):
        when = begin + at
        while (left := when - clock()) > 0:
            if left > WATCH:
                sleep(left - WATCH)
        send(pack(i, clock()))
    send(pack(END, clock()))


class Client:
    """Starts the client's process; its packets come out of `channel`."""

    def __init__(self, due: Sequence[float]) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            self._process = subprocess.Popen(
                # By its path and without site-packages: as a module of the package it took 0.2 s longer to start.
                [sys.executable, "-I", "-S", __file__, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # an interrupt at the keyboard is for the run, which then ends this
            )
        times = array("d", due)
        self._write(struct.pack("<q", len(times)) + times.tobytes())
        if self.channel.recv(PACKET.size) == b"":
            raise RuntimeError("the client did not start")

    def begin(self, at: float) -> None:
        """Let it send from the monotonic time *at*."""
        self._write(struct.pack("<d", at))

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.channel.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as an interrupt: the run hears it too, and ends this
    channel = socket.socket(fileno=int(sys.argv[1]))
    read = sys.stdin.buffer.read
    due = array("d")
    due.frombytes(read(8 * struct.unpack("<q", read(8))[0]))
    channel.send(PACKET.pack(END, time.monotonic()))  # ready
    begin = read(8)
    if len(begin) == 8:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the run has ended before
            send_all(channel, due, struct.unpack("<d", begin)[0])


if __name__ == "__main__":
    main()
