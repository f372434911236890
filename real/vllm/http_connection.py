"""Connections to an HTTP server: HTTP/1.1 is h11's matter, sockets and TLS are Python's.

A connection is used again once its answer is over, so that no request but the first waits for TLS. What a server
sends is read in parts of bounded size, however much it is and wherever it ends.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from servetwin.core import BadInput
from servetwin.core.installed import not_installed

#: The most bytes of the head of an answer, of what is read at once, and of a whole answer.
MOST_HEAD, PART, MOST_ANSWER = 1 << 16, 1 << 16, 256 << 20
#: Seconds that a server may take to end an answer after its last token.
LEAVE: Final = 0.5


class BadAnswer(Exception):
    """What a server answers is no answer; the text says what it is."""


@dataclass
class Connection:
    """A connection, and the state of HTTP on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    state: Any
    read: int = 0  #: bytes of the answer so far

    async def event(self) -> Any:
        """What comes next of the answer, an event of h11. Raises `BadAnswer` where that is no HTTP."""
        import h11

        try:
            while (event := self.state.next_event()) is h11.NEED_DATA:
                part = await self.reader.read(PART)
                self.read += len(part)
                if self.read > MOST_ANSWER:
                    raise BadAnswer(f"more than {MOST_ANSWER >> 20} MiB")
                self.state.receive_data(part)
        except h11.RemoteProtocolError as error:
            raise BadAnswer(f"no HTTP, or not all of it: {error}") from None
        return event

    def close(self) -> None:
        """Close it at once: nothing is left to be sent, and a server need not answer that TLS is over."""
        self.writer.transport.abort()


@dataclass
class Answer:
    """An answer whose head has come: its *status*, and its body by `chunks`."""

    status: int
    connection: Connection = field(repr=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        import h11

        while not isinstance(event := await self.connection.event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)


class Server:
    """The server at *url*. *key* goes to it with each request, as a bearer token, and nowhere else.

    Raises `BadInput` if *url* is no address of a server.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        if not_installed("h11"):
            what = "a client of servers needs h11, which is not installed"
            raise BadInput(what, where="--url", right="pip install 'servetwin[url]'")
        try:
            where = urlsplit(url if "//" in url else f"http://{url}")
            good = where.scheme in ("http", "https") and bool(where.hostname) and where.port != 0
        except ValueError:  # a port that is none
            good = False
        if not good:
            raise BadInput(f"{url!r} is no address of a server", where="--url", right="http://127.0.0.1:8000")
        if "@" in where.netloc or where.query or where.fragment:
            # Nor shown: what stands there may be secret, and records hold the address.
            what = "an address has no user, password, query or fragment"
            raise BadInput(what, where="--url", right="an API key by --api-key-env")
        self.url, self.key = url, key
        self.tls = ssl.create_default_context() if where.scheme == "https" else None
        self.host, self.path = str(where.hostname), where.path.rstrip("/")
        self.port = where.port or (443 if self.tls else 80)
        self._idle: list[Connection] = []
        self._closed = False

    def shown(self, text: bytes) -> str:
        """The beginning of what the server says, in a line; a key that it gives back is left out."""
        if self.key:
            text = text.replace(self.key.encode(), b"(the API key)")
        plain = "".join(c if c.isprintable() else " " for c in text[:200].decode(errors="replace"))
        words = " ".join(plain.split())
        return words if len(words) <= 60 else words[:57] + "..."

    @asynccontextmanager
    async def ask(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[Answer]:
        """Send a request; gives the answer once its head has come. Raises `BadAnswer` and `OSError`."""
        connection, status = await self._asked(method, path, body)
        done = False
        try:
            yield Answer(status, connection)
            done = await self._over(connection)
        finally:
            if done and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close what is open, and what answers still come on once they are over."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def _asked(self, method: str, path: str, body: bytes) -> tuple[Connection, int]:
        """The connection on which the request was sent, and the status that came."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reader.at_eof():
                connection.close()
                continue
            try:
                return connection, await self._send(connection, method, path, body)
            except BaseException as error:
                connection.close()
                if connection.read or not isinstance(error, BadAnswer | OSError):
                    raise  # else the server had closed it meanwhile: once more, on another one
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls)
        connection = Connection(reader, writer, _new_state())
        try:
            return connection, await self._send(connection, method, path, body)
        except BaseException:
            connection.close()
            raise

    async def _send(self, connection: Connection, method: str, path: str, body: bytes) -> int:
        import h11

        host = f"[{self.host}]" if ":" in self.host else self.host
        headers = [("Host", f"{host}:{self.port}"), ("Content-Type", "application/json")]
        headers += [("Content-Length", str(len(body))), ("Accept", "*/*")]
        if self.key:
            headers.append(("Authorization", f"Bearer {self.key}"))
        state, connection.read = connection.state, 0
        events: list[Any] = [h11.Request(method=method, target=f"{self.path}{path}", headers=headers)]
        events += [h11.Data(data=body), h11.EndOfMessage()] if body else [h11.EndOfMessage()]
        connection.writer.write(b"".join(map(state.send, events)))
        await connection.writer.drain()
        while not isinstance(event := await connection.event(), h11.Response):
            if isinstance(event, h11.ConnectionClosed):
                raise BadAnswer("no HTTP: it closed the connection")
        return int(event.status_code)

    async def _over(self, connection: Connection) -> bool:
        """Whether the answer has come to its end, so that the connection can be used again."""
        import h11

        state = connection.state
        with suppress(TimeoutError, BadAnswer, OSError):
            async with asyncio.timeout(LEAVE):
                while state.their_state is h11.SEND_BODY:
                    await connection.event()
        if state.our_state is not h11.DONE or state.their_state is not h11.DONE:
            return False
        state.start_next_cycle()
        return True


@asynccontextmanager
async def closing(*servers: Server) -> AsyncIterator[None]:
    """Close what is open to *servers* at the end."""
    try:
        yield
    finally:
        for server in servers:
            server.close()
        await asyncio.sleep(0)  # in which what was closed is let go of


def _new_state() -> Any:
    import h11

    return h11.Connection(our_role=h11.CLIENT, max_incomplete_event_size=MOST_HEAD)


def key_in(variable: str | None, environ: Mapping[str, str]) -> str | None:
    """The API key in an environment *variable* (None: there is none to send). Raises `BadInput`, which does not show
    what stands there."""
    if variable is None:
        return None
    key = environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        what = "is not set" if not key else "holds what is no key"
        raise BadInput(f"the environment variable {variable} {what}", where="--api-key-env", right="an API key in it")
    return key
