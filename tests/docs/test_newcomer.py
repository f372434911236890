"""Somebody new, in an empty folder: a policy, its test and a run, in thirty lines; and a page of Python that runs."""

from __future__ import annotations

import os
from pathlib import Path

import pages
import pytest

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]

TUTORIALS = pages.ROOT / "docs" / "tutorials"
PAGE = TUTORIALS / "write-and-test-a-policy.md"
NOTEBOOK = TUTORIALS / "in-a-notebook.md"
MOST_LINES = 30


def test_a_policy_its_test_and_a_run_in_thirty_lines(tmp_path: Path) -> None:
    first = pages.blocks(pages.section(PAGE.read_text(), "In thirty lines"))
    policy, test, commands = first
    assert (policy.file, test.file, commands.language) == ("shortest.py", "test_shortest.py", "console")
    typed = [*policy.text.splitlines(), *test.text.splitlines(), *(command for command, _ in commands.commands())]
    assert len(typed) <= MOST_LINES
    assert pages.do(first, tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["shortest.py", "test_shortest.py"]


def test_the_test_of_the_page_can_fail(tmp_path: Path) -> None:
    """It is a test: the same policy with the order turned round does not pass it."""
    policy, test, _ = pages.blocks(pages.section(PAGE.read_text(), "In thirty lines"))
    wrong = policy.text.replace("task.left)", "-task.left)")
    assert wrong != policy.text
    (tmp_path / "shortest.py").write_text(wrong)
    (tmp_path / "test_shortest.py").write_text(test.text)
    code, shown = pages.shell("python -m pytest -q test_shortest.py", tmp_path)
    assert (code, "1 failed" in shown) == (1, True), shown


def test_the_notebook_page_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its cells in one session, and each shows what the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVETWIN_CACHE", str(tmp_path / "cache"))
    page = pages.blocks(NOTEBOOK.read_text())
    assert pages.do_cells(page) == sum(block.language == "python" for block in page) >= 6


@pytest.mark.parametrize("cell", ["1 + 1\n", "x = 2\nprint(x)\n"])
def test_a_cell_that_shows_something_else_is_noticed(cell: str) -> None:
    right, wrong = (pages.blocks(f"```python\n{cell}```\n\n```text\n{shown}\n```\n") for shown in ("2", "3"))
    assert pages.do_cells(right) == 1
    with pytest.raises(AssertionError):
        pages.do_cells(wrong)
