"""Servers that tests ask: on a thread and a loop of their own, and with nothing left open once a test is over."""

from __future__ import annotations

import asyncio
import ssl
import threading
from typing import Self


class LoopServer:
    """A server at a free port of 127.0.0.1; `answer` is what it does with a connection.

    When it is left, each connection ends before its loop does. One that was only just taken would otherwise be
    cancelled before its first line, its ``finally`` never reached, and its socket found open by whichever test
    collects garbage next.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.writers: list[asyncio.StreamWriter] = []
        self.up = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main()), daemon=True)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what comes; returns when the connection is to be closed."""
        raise NotImplementedError

    async def main(self) -> None:
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        self.up.set()
        await self.over.wait()
        self.abort()  # answers that have no end, say
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=0.05)
            self.abort()  # also what was closed, and waits for somebody to read
        server.close()  # with nobody on the way: Python 3.11 leaves the socket of one that was just taken open
        await asyncio.sleep(0)  # in which they are let go of

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            await self.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    def __enter__(self) -> Self:
        self.thread.start()
        assert self.up.wait(10)
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(10)
        assert not self.thread.is_alive(), "a connection does not end"
