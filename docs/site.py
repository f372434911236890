"""What the site (``make site``) has beside the pages of this folder: its navigation, and pages made from the program.

The navigation is read from `index.md`, which must list every page in any case. The pages of the Python interface are
made from docstrings; CONTRIBUTING.md and CHANGELOG.md are taken as they are, with their links put right.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

#: Page -> (title, what it says first, the public names on it: where they are defined, how they are imported).
API: dict[str, tuple[str, str, dict[str, tuple[str, ...]]]] = {
    "api/servetwin.md": (
        "servetwin",
        "Runs, sweeps, searches and comparisons. [ServeTwin in Python](../reference/python.md) shows them at work.",
        {},  # as `servetwin` itself lists them
    ),
    "api/policies.md": (
        "Policies for batch workers",
        "What a policy for diffusion models and other batch stages is written with. "
        "[Policies](../reference/policies.md) is the guided version.",
        {
            "servetwin.core": (
                "core.policy.Policy",
                "core.policy.WorkerView",
                "core.policy.Decision",
                "core.policy.Repeat",
                "core.policy.Batch",
                "core.request.Request",
                "core.request.Task",
                "core.request.Outcome",
            )
        },
    ),
    "api/language-models.md": (
        "Policies for language models",
        "What a policy for an LLM engine is written with. "
        "[Policies](../reference/policies.md#language-models) is the guided version.",
        {
            "servetwin.core.llm": (
                "core.llm.policy.TokenPolicy",
                "core.llm.policy.TokenView",
                "core.llm.policy.Step",
                "core.llm.request.TokenTask",
                "core.llm.request.TokenRequest",
            )
        },
    ),
}

#: Files of the checkout that are pages of the site.
PROJECT = {
    "project/contributing.md": "CONTRIBUTING.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/measured-runs.md": "experiments/measured/README.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the navigation: the sections of `index.md` with the pages that they list, in that order."""
    nav: list[Any] = [{"Home": "index.md"}]
    for section in re.split(r"^## ", Path(config.docs_dir, "index.md").read_text(), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0].partition(":")[0]
        nav.append({title: [{text: page} for text, page in re.findall(r"\[([^\]]+)\]\(([^)#\s]+\.md)\)", section)]})
    nav.append({"API": [{title: page} for page, (title, _, _) in API.items()]})
    nav.append({"Project": list(PROJECT)})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for page, (title, says, names) in API.items():
        text = f"# {title}\n\n{says}\n"
        for shown, where in _public() if not names else [(h, n) for h, found in names.items() for n in found]:
            name = f"{shown}.{where.rpartition('.')[2]}"
            text += (
                f"\n::: {where}\n    options:\n      heading: {name}\n      toc_label: {name.rpartition('.')[2]}\n"
            )
        files.append(File.generated(config, page, content=text))
    for page, source in PROJECT.items():
        text = re.sub(r"\]\((?:\.\./)*docs/", "](../", (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links to files of the checkout lead to the pages that these are here."""
    for target, source in PROJECT.items():
        markdown = re.sub(rf"\]\((?:\.\./)+{re.escape(source)}", f"](../{target}", markdown)
    return markdown


def _public() -> list[tuple[str, str]]:
    """The public names of `servetwin` that it defines itself: how they are imported, and where they are."""
    tree = ast.parse((ROOT / "servetwin" / "__init__.py").read_text())
    homes = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_HOMES"
    )
    names = [(name, home) for home, found in homes.items() if home != "servetwin.core" for name in found]
    return [
        ("servetwin", f"{home}.{name}") for name, home in sorted(names, key=lambda n: (n[0] != n[0].lower(), n[0]))
    ]
