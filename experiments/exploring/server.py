"""The page's server: HTTP on the loopback interface, for whoever holds the token, and for this page's origin alone.

It is the standard library's: nothing to install, and there at once. What keeps others out:

- It listens on 127.0.0.1, and answers to no other name than that and localhost: a page elsewhere whose name is made
  to resolve to this machine (DNS rebinding) has the wrong ``Host``.
- What is asked of the experiment needs the token, in a header, which a page of another origin cannot send without
  leave (CORS), and does not know. The token is drawn anew for each session. It is in the fragment of the address that
  is printed, which browsers send nowhere; the page keeps it for its origin.
- An ``Origin`` or ``Sec-Fetch-Site`` that says that somebody else asks is refused whatever else is right.
- The page runs its own scripts only, is shown in no frame, and a link to it can do no more than its controls.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socketserver import TCPServer
from typing import Any

from servetwin.core import BadInput, ServeTwinError

from ..reporting import page
from .lanes import Stale
from .pages import Pages

HOST = "127.0.0.1"
#: The port that is taken if it is free, so that links to the page stay right.
PORT = 7437
#: Most bytes of a question; most characters of a tab's name.
MOST, MOST_TAB = 64 << 10, 64
TOKEN = "X-ServeTwin-Token"
OTHERS = "pages of other origins may not ask"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Serves *pages* on *port* (0: any that is free) of the loopback interface; without one, on `PORT`, or on any
    other if that is taken. Raises `BadInput` if the port is taken, or without the extra."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, pages: Pages, port: int | None = None) -> None:
        self.pages = pages
        self.token = secrets.token_urlsafe(24)
        self.files = _files()
        try:
            super().__init__((HOST, PORT if port is None else port), _Handler)
        except OSError as error:
            if port is not None:
                what = f"port {port} cannot be listened on: {error.strerror}"
                raise BadInput(what, where="--port", right="another, or 0 for any that is free") from None
            super().__init__((HOST, 0), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own would ask a name server who 127.0.0.1 is.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def invitation(self) -> str:
        """The address with the token."""
        return f"{self.address}#token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()


def _files() -> dict[str, tuple[str, bytes]]:
    """What is served as it is, by path: its type and content. Raises `BadInput` without the extra."""
    own = resources.files(__package__) / "assets"
    style = page.asset("report.css") + (own / "explore.css").read_text(encoding="utf-8")
    script = page.asset("figures.js") + (own / "explore.js").read_text(encoding="utf-8")
    return {
        "/": ("text/html; charset=utf-8", (own / "explore.html").read_bytes()),
        "/explore.css": ("text/css; charset=utf-8", style.encode()),
        "/explore.js": ("text/javascript; charset=utf-8", script.encode()),
        "/plotly.js": ("text/javascript; charset=utf-8", page.plotly_script()),
    }


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


class _Refused(Exception):
    """What is not answered, with why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """A connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ServeTwin", ""
    timeout = 120.0

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            # Whoever follows a link to the page from elsewhere is welcome: it does nothing by being opened.
            self._check_origin("same-origin", "none", *(("same-site", "cross-site") if path == "/" else ()))
            if path not in self.server.files:
                raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        except _Refused as refused:
            self._refuse(refused)
        else:
            self._send(HTTPStatus.OK, *self.server.files[path])

    def do_POST(self) -> None:
        pages = self.server.pages
        try:
            self._check_origin("same-origin")
            self._check_token()
            tab, number, state = self._question()
            if self.path not in ("/api/start", "/api/run"):
                raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing of that name to ask")
        except _Refused as refused:
            self._refuse(refused)
        else:
            self._answer(pages.start if self.path == "/api/start" else partial(pages.answer, tab, number, state))

    def do_OPTIONS(self) -> None:
        self._refuse(_Refused(HTTPStatus.FORBIDDEN, OTHERS))

    def _check_origin(self, *allowed: str) -> None:
        """Raise `_Refused` for what others ask; *allowed*: what ``Sec-Fetch-Site`` may say."""
        hosts = [f"{name}:{self.server.server_port}" for name in (HOST, "localhost")]
        if self.headers.get_all("Host") not in [[host] for host in hosts]:
            raise _Refused(HTTPStatus.FORBIDDEN, f"this server is called {hosts[0]}")
        if self.headers.get("Origin", own := f"http://{self.headers['Host']}") != own:
            raise _Refused(HTTPStatus.FORBIDDEN, OTHERS)
        if self.headers.get("Sec-Fetch-Site", allowed[0]) not in allowed:
            raise _Refused(HTTPStatus.FORBIDDEN, OTHERS)

    def _check_token(self) -> None:
        if not hmac.compare_digest(self.headers.get(TOKEN, "").encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "open the address that servetwin explore printed: it has a token")

    def _question(self) -> tuple[str, int, Any]:
        """Which tab asks, its how-manieth question that is, and what it asks. Raises `_Refused`."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Type") != "application/json" or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "questions are JSON with a length")
        if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= MOST):
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"questions have {MOST >> 10} KiB at most")
        wrong = _Refused(HTTPStatus.BAD_REQUEST, "the question is not one of the page's")
        try:
            content = json.loads(self.rfile.read(int(length)), parse_constant=_no_number)
            tab, number = content["tab"], content["number"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise wrong from None
        if not (isinstance(tab, str) and 0 < len(tab) <= MOST_TAB and type(number) is int):
            raise wrong
        return tab, number, content.get("state")

    def _answer(self, ask: Callable[[], dict[str, Any]]) -> None:
        """Answer a question: with what is asked, or with the line that says what is wrong with it."""
        try:
            found = ask()
        except Stale:
            found = {"stale": True}
        except ServeTwinError as error:
            found = {"error": " ".join(str(error).split())}
        except Exception as error:
            traceback.print_exception(error)
            found = {"error": f"an error of ServeTwin's own, told on the terminal: {type(error).__name__}"}
        body = json.dumps(found, separators=(",", ":"), allow_nan=False).encode()
        self._send(HTTPStatus.OK, "application/json", body)

    def _refuse(self, refused: _Refused) -> None:
        self.close_connection = True  # whatever was sent with it is not read
        self._send(refused.status, "text/plain; charset=utf-8", f"{refused}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        with suppress(ConnectionError):  # nobody waits for it any more
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """A page that is asked often is not to fill the terminal."""


def serve(server: Server) -> None:
    """Serve until Ctrl-C, which ends it well, or until a signal ends it."""
    with server, suppress(KeyboardInterrupt):
        server.serve_forever(poll_interval=0.1)
