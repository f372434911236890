"""Reading the documents: which there are, their blocks, headings and links; and doing what they say.

In a ``console`` block, lines that begin with ``$ `` are run in the page's own folder, which is empty at first; what
follows is what they must print, where ``...`` stands for anything. A ``python`` or ``yaml`` block whose first line is
``# name.ext`` becomes that file. ``sh`` blocks need what the tests of this folder have not (torch, a GPU). On a page
that is a notebook the ``python`` blocks are its cells, and a ``text`` block after one is what the cell shows.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import linecache
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) +(.*?) *$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NAME = re.compile(r"# ([\w./-]+\.(?:py|yaml|yml))\n")


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the file that it is to become, if it is."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        named = _NAME.match(self.text) if self.language in ("python", "yaml") else None
        return named[1] if named else None

    def commands(self) -> list[tuple[str, str]]:
        """(command, what it must print) of a console block."""
        found: list[tuple[str, str]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            elif found:
                command, expected = found[-1]
                found[-1] = (command, expected + line + "\n")
        return found


def blocks(text: str) -> list[Block]:
    return [Block(language, body) for language, body in _BLOCK.findall(text)]


def section(text: str, heading: str) -> str:
    """What stands under *heading*, up to the next one of its level or above."""
    blocks = [match.span() for match in _BLOCK.finditer(text)]  # lines of blocks are no headings
    headings = [m for m in _HEADING.finditer(text) if not any(a <= m.start() < b for a, b in blocks)]
    first = next(m for m in headings if m[2] == heading)
    after = (m for m in headings if m.start() > first.start() and len(m[1]) <= len(first[1]))
    end = next((m.start() for m in after), len(text))
    return text[first.end() : end]


def prose(text: str) -> str:
    """*text* without its blocks."""
    return _BLOCK.sub("", text)


def links(text: str) -> list[str]:
    """Where the links of a page lead, but for those to other sites."""
    return [target for target in _LINK.findall(prose(text)) if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What ``#...`` may name of a page: its headings, as GitHub spells them."""
    found: dict[str, int] = {}
    names: set[str] = set()
    for _, heading in _HEADING.findall(prose(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        again = found.get(slug, 0)
        found[slug] = again + 1
        names.add(f"{slug}-{again}" if again else slug)
    return names


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}


def shell(command: str, folder: Path) -> tuple[int, str]:
    """(exit code, what it printed)."""
    done = subprocess.run(command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def do(page: list[Block], folder: Path) -> int:
    """Make the files and run the commands of *page* in *folder*; gives how many commands there were."""
    matches = doctest.OutputChecker().check_output
    count = 0
    for block in page:
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        if block.language != "console":
            continue
        for command, expected in block.commands():
            count += 1
            code, shown = shell(command, folder)
            refused = expected.startswith("servetwin: ") or "error" in command
            assert (code == 0) != refused, f"{command}\n{shown}"
            assert matches(expected, shown, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), f"{command}\n{shown}"
    return count


def cells(page: list[Block]) -> Iterator[tuple[str, str | None]]:
    """(source, what it must show) of the cells of a notebook."""
    for block, after in zip(page, [*page[1:], None], strict=True):
        if block.language == "python":
            yield block.text, after.text if after and after.language == "text" else None


def show(source: str, number: int, session: dict[str, Any]) -> str:
    """Run a cell in *session*, as a notebook does; gives what it printed, and the value of its last line."""
    name = f"<cell {number}>"
    # A notebook keeps the sources of its cells, too.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), name, "exec"), session)
        value = eval(compile(ast.Expression(last.value), name, "eval"), session) if last else None
    return printed.getvalue() + (f"{value!r}\n" if value is not None else "")


def do_cells(page: list[Block]) -> int:
    """Run the cells of *page* one after the other in one session; gives how many there were."""
    matches = doctest.OutputChecker().check_output
    session: dict[str, Any] = {"__name__": "notebook"}
    count = 0
    for count, (source, expected) in enumerate(cells(page), 1):
        shown = show(source, count, session)
        if expected is not None:
            assert matches(expected, shown, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), f"{source}\n{shown}"
    return count
