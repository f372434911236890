"""Policies whose files are edited between sweeps of the toy experiment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servetwin.experiments.sweeps import point as engine

HEAD = "from servetwin.core import Decision, Policy\n"
DECIDE = "        return Decision([*view.running, *view.waiting][:min({n}, view.limit)])\n"
PLAIN = HEAD + "\nN = 1\n\n\nclass Mine(Policy):\n    def decide(self, view, now):\n" + DECIDE.format(n="N")


def policy(n: str, *, top: str = "", body: str = "", late: str = "") -> str:
    """The source of a policy that runs *n* tasks at once."""
    indented = "".join(f"        {line}\n" for line in late.splitlines())
    decide = "    def decide(self, view, now):\n" + indented + DECIDE.format(n=n)
    return f"{HEAD}{top}\n\nclass Mine(Policy):\n{body}{decide}"


BESIDE = "from pathlib import Path\nimport json\nTABLE = Path(__file__).with_name('table.json')\n"
INIT = "    def __init__(self):\n        self.n = json.loads(TABLE.read_text())\n\n"

#: How a policy may come by its number: what its files hold at first, and which of them is changed (1 to 8).
SOURCES: dict[str, tuple[dict[str, str], str]] = {
    "its own file": ({"mine.py": PLAIN}, "mine.py"),
    "a module": (
        {"mine.py": policy("n()", top="from aid import n\n"), "aid.py": "def n():\n    return 1\n"},
        "aid.py",
    ),
    "a module's module": (
        {
            "mine.py": policy("aid.n()", top="import aid\n"),
            "aid.py": "from deep import n\n",
            "deep.py": "n = lambda: 1\n",
        },
        "deep.py",
    ),
    "a constant": ({"mine.py": policy("aid.N", top="import aid\n"), "aid.py": "N = 1\n"}, "aid.py"),
    "a base class": (
        {
            "mine.py": "from base import Base\n\n\nclass Mine(Base):\n    pass\n",
            "base.py": policy("self.N", body="    N = 1\n\n").replace("Mine", "Base"),
        },
        "base.py",
    ),
    "a package": (
        {
            "mine.py": policy("N", top="from pack.sub.inner import N\n"),
            "pack/__init__.py": "",
            "pack/sub/__init__.py": "from . import other\n",
            "pack/sub/other.py": "VALUE = 1\n",
            "pack/sub/inner.py": "from ..sub import other\n\nN = other.VALUE\n",
        },
        "pack/sub/other.py",
    ),
    "an import in a function": (
        {"mine.py": policy("N", late="from aid import N"), "aid.py": "N = 1\n"},
        "aid.py",
    ),
    "an import by name, in a function": (
        {
            "mine.py": policy("N", top="import importlib\n", late="N = importlib.import_module('ai' + 'd').N"),
            "aid.py": "N = 1\n",
        },
        "aid.py",
    ),
    "a module called as one of Python's": (
        {"mine.py": policy("N", top="from this import N\n"), "this.py": "N = 1\n"},
        "this.py",
    ),
    "a file that it reads": (
        {"mine.py": policy("self.n", top=BESIDE, body=INIT), "table.json": "1"},
        "table.json",
    ),
    "a file that it declares": (
        {"mine.py": policy("self.n", top=BESIDE, body="    files = ('table.json',)\n\n" + INIT), "table.json": "1"},
        "table.json",
    ),
    "a file that it reads when it is imported": (
        {"mine.py": policy("N", top=BESIDE + "N = json.loads(TABLE.read_text())\n"), "table.json": "1"},
        "table.json",
    ),
    "a file that a module reads once": (
        {
            "mine.py": policy("aid.n()", top="import aid\n"),
            "aid.py": BESIDE
            + "import functools\n\n\n@functools.cache\ndef n():\n    return json.loads(TABLE.read_text())\n",
            "table.json": "1",
        },
        "table.json",
    ),
    "code that it reads": (
        {
            "mine.py": policy("N", top=BESIDE + "exec(TABLE.with_name('more.txt').read_text())\n"),
            "more.txt": "N = 1\n",
        },
        "more.txt",
    ),
}


def write(place: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


def ones_become_eights(path: Path) -> None:
    """Edit *path* so that neither its size nor the time of its content tells."""
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace("1", "8"))
    assert path.read_text() != text
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def batches(rows: list[dict]) -> list[float]:
    return [row["max_batch_size"] for row in rows]


def spec(place: Path, name: str = "mine.py", rates: str = "12.0, 16.0", requests: int = 40) -> Path:
    path = place / "sweep.yaml"
    path.write_text(
        f"extends: toy.yaml\nset: {{requests: {requests}, policy: '{name}'}}\ngrid: {{rate: [{rates}]}}\n"
    )
    return path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which points are run from now on."""
    ran: list[str] = []
    run_point = engine.run_point
    monkeypatch.setattr(engine, "run_point", lambda e: ran.append(engine.title(e)) or run_point(e))
    return ran
