"""The documents are true: their commands run and print what stands there, their links and anchors lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pages
import pytest
from pages import DOCUMENTS, ROOT

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=pages.name_of)


@every_document
def test_commands_do_as_the_document_says(document: Path, tmp_path: Path) -> None:
    pages.do(pages.blocks(document.read_text()), tmp_path)


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in pages.links(document.read_text()):
        path, _, anchor = target.partition("#")
        page = (document.parent / path).resolve() if path else document
        assert page.exists(), f"{pages.name_of(document)}: {target}"
        if anchor:
            assert anchor in pages.anchors(page.read_text()), f"{pages.name_of(document)}: {target}"


def test_links_are_found() -> None:
    """The tests above would be content with a page in which they see nothing."""
    block = "```console\n# no heading\n$ [a](b)\n```\n"
    text = f"# A `b`: c\n\n[x](y.md#z) [web](https://example.org)\n\n{block}\n## A b c\n"
    assert pages.links(text) == ["y.md#z"]
    assert pages.anchors(text) == {"a-b-c", "a-b-c-1"}
    assert sum(len(pages.links(document.read_text())) for document in DOCUMENTS) > 100


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for target in pages.links(index.read_text())}
    documents = [d for d in DOCUMENTS if (ROOT / "docs") in d.parents and d != index]
    missing = [pages.name_of(d) for d in documents if d.resolve() not in listed]
    assert missing == []


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


#: Old words that stay as they were: what changed when, and records that name the page of their time.
AS_THEY_WERE = ("CHANGELOG.md", "profiles/data/")


def test_pages_that_others_name_are_there() -> None:
    """Docstrings, messages and other files name pages as ``docs/...md``."""
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix not in (".py", ".md", ".yaml", ".yml", ".toml", ".cff") or name.startswith(AS_THEY_WERE):
            continue
        if not path.exists() or path == Path(__file__):
            continue
        for page in re.findall(r"(?<![\w/])docs/[\w./-]+\.md", path.read_text()):
            assert (ROOT / page).exists(), f"{name} names {page}"


@every_document
def test_options_of_commands_that_need_a_gpu_exist(document: Path) -> None:
    """``sh`` blocks cannot run here, but what they ask of ``servetwin`` must be there."""
    from servetwin.experiments.cli.cli_page import commands

    known = {name: set(flags) for name, flags in commands().items()}
    for block in pages.blocks(document.read_text()):
        if block.language != "sh":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith("servetwin ") else []
            if not words:
                continue
            where = f"{pages.name_of(document)}: {line}"
            assert words[1] in known, where
            flags = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert flags <= known[words[1]], where
