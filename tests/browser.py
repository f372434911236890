"""A headless Chromium for tests of pages, driven by Playwright (extra ``[browser]``).

Where there is none the tests are skipped; with ``SERVETWIN_BROWSER=1``, as in ``.ci/run``, they fail instead.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DESKTOP, PHONE = (1280, 900), (390, 844)

#: Texts of figures that reach out of their figure or out of the window, and elements wider than the window.
CLIPPED = """() => {
    const found = [];
    for (const text of document.querySelectorAll('.canvas svg text')) {
        const box = text.getBoundingClientRect(), around = text.closest('.canvas').getBoundingClientRect();
        if (!text.textContent || !box.width || !around.width) continue;
        if (box.left < around.left - 1 || box.right > around.right + 1 || box.top < around.top - 1
            || box.bottom > around.bottom + 1) found.push(text.textContent);
    }
    for (const e of document.querySelectorAll('h1, h2, p, li, figure, figcaption, dl, .table, pre, details')) {
        const box = e.getBoundingClientRect();
        if (box.width && (box.left < -1 || box.right > innerWidth + 1))
            found.push(e.tagName + ' ' + e.textContent.slice(0, 40));
    }
    for (const e of document.querySelectorAll('.facts dd, .facts dt'))
        if (e.scrollWidth > e.clientWidth) found.push('in a tile: ' + e.textContent);
    if (document.documentElement.scrollWidth > innerWidth) found.push('the page is wider than the window');
    return found;
}"""

#: Texts of one figure that lie over each other.
OVERLAPPING = """() => {
    const found = [];
    for (const canvas of document.querySelectorAll('.canvas')) {
        const boxes = [...canvas.querySelectorAll('svg text')].map((t) => [t.textContent, t.getBoundingClientRect()])
            .filter(([text, box]) => text && box.width);
        boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
            if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1)
                found.push(a + ' | ' + b);
        }));
    }
    return found;
}"""


def _missing(what: str) -> None:
    if os.environ.get("SERVETWIN_BROWSER") == "1":
        pytest.fail(f"SERVETWIN_BROWSER=1, and there is no {what}")
    pytest.skip(f"no {what}")


@contextmanager
def launched() -> Iterator[Any]:
    """A browser that can reach this machine only."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        _missing("chromium")
    with sync_playwright() as playwright:
        # No sandbox: tests may run as root, where Chromium has none.
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page(size: tuple[int, int] = DESKTOP, browser: Any = None, **more: Any) -> Iterator[Any]:
    """A page of a *browser*, else of one of its own, as wide and high as *size* in CSS pixels."""
    if browser is None:
        with launched() as own, page(size, own, **more) as made:
            yield made
        return
    made = browser.new_page(viewport={"width": size[0], "height": size[1]}, **more)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def served(folder: Path, files: Mapping[str, bytes]) -> Iterator[str]:
    """The files in *folder*, and besides *files* by their paths, on a port of the loopback interface; gives its
    address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path.partition("?")[0])
            if body is None:
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
