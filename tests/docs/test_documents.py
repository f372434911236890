"""The documents are true: their commands run, and print what stands there.

In a ``console`` block, lines that begin with ``$ `` are run in an empty folder; what follows is what they must print,
where ``...`` stands for anything. A ``python`` block whose first line is ``# name.py`` becomes that file.
"""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]


def commands(block: str) -> list[tuple[str, str]]:
    """(command, expected output) pairs of a console block."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            command, expected = found[-1]
            found[-1] = (command, expected + line + "\n")
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_do_as_the_document_says(document: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    matches = doctest.OutputChecker().check_output
    for language, block in BLOCK.findall(document.read_text()):
        name = re.match(r"# (\S+\.py)\n", block)
        if language == "python" and name:
            (tmp_path / name[1]).write_text(block)
        if language != "console":
            continue
        for command, expected in commands(block):
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            shown = done.stdout + done.stderr
            refused = expected.startswith("servetwin: ") or "error" in command
            assert (done.returncode == 0) != refused, f"{command}\n{shown}"
            assert matches(expected, shown, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), f"{command}\n{shown}"


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
