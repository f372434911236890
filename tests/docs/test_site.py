"""The documentation site builds without a warning, has every page, and needs nothing from the network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
        reason="needs the extra [docs] (make site)",
    ),
]

#: What a page of its own fetches when it is opened: scripts, styles, pictures.
FETCHED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\brel=\"stylesheet\"[^>]*\bhref=\"([^\"]+)\""
)


def build(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *more]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=pages.ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built here; or, in `.ci/run`, what `make site` has built in the same way before."""
    if "SERVETWIN_SITE" in os.environ:
        return Path(os.environ["SERVETWIN_SITE"])
    folder: Path = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    docs = pages.ROOT / "docs"
    for page in docs.rglob("*.md"):
        assert (site / page.relative_to(docs).with_suffix(".html")).exists(), page
    for name in ("contributing", "changelog", "measured-runs"):
        assert (site / "project" / f"{name}.html").exists()


def test_docstrings_are_pages(site: Path) -> None:
    """Signatures, and a sentence of a docstring, of what a program calls and what a policy is written with."""
    text = {page.stem: page.read_text() for page in (site / "api").iterdir()}
    for name in ("run", "sweep", "search", "compare", "load", "Result", "Sweep", "Answer"):
        assert f"servetwin.{name}" in text["servetwin"]
    for name in ("Policy", "WorkerView", "Decision", "Repeat", "Task"):
        assert f"servetwin.core.{name}" in text["policies"]
    assert "What a worker is to do next." in text["policies"]
    for name in ("TokenPolicy", "TokenView", "Step", "TokenTask"):
        assert f"servetwin.core.llm.{name}" in text["language-models"]


def test_search_finds_pages_and_docstrings(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    by_word = {
        word: {d["location"] for d in index if word in d["text"] + d["title"]} for word in ("capacity", "idle_until")
    }
    assert any(at.startswith("guides/sweeps.html") for at in by_word["capacity"])
    assert any(at.startswith("api/policies.html") for at in by_word["idle_until"])


def test_lists_are_lists(site: Path) -> None:
    """Markdown of GitHub needs no empty line before a list, that of the site does: else items are one paragraph."""
    for page in site.rglob("*.html"):
        body = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", page.read_text(), flags=re.DOTALL)
        assert not re.search(r"<p>[^<]*\n(?:[-*]|1\.) ", body), page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = [(page.name, a or b) for page in site.rglob("*.html") for a, b in FETCHED.findall(page.read_text())]
    assert len(fetched) > 100
    assert [f for f in fetched if re.match(r"(?:https?:)?//", f[1])] == []


def test_a_dead_link_ends_the_build(tmp_path: Path) -> None:
    """Else the build above would prove nothing."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Here\n\n[there](there.md#nowhere)\n")
    (docs / "there.md").write_text("# There\n")
    config = (pages.ROOT / "mkdocs.yml").read_text()
    config = re.sub(r"^hooks:\n.*\n", "", config, flags=re.MULTILINE).replace("docs_dir: docs", f"docs_dir: {docs}")
    (tmp_path / "mkdocs.yml").write_text(config)
    done = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0
    assert "nowhere" in done.stdout + done.stderr
