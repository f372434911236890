"""What is public, with its signatures, is what `public.txt` says, and docs/reference/python.md tells of each; the
rest may change.

After a change that is meant: ``python tests/api/test_public_names.py`` writes `public.txt` anew.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import servetwin

LISTED = Path(__file__).parent / "public.txt"
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "python.md"

#: Public names whose members docs/reference/policies.md has.
OF_POLICIES = ("Decision", "Policy", "Task", "WorkerView")


def members(kind: type) -> dict[str, object]:
    """The public members that a class has of its own, by name; of those that are only declared, the type."""
    every = {**inspect.get_annotations(kind), **vars(kind)}
    return {name: member for name, member in every.items() if not name.startswith("_")}


def spelled(name: str, member: object) -> str:
    function = getattr(member, "__func__", member)
    if inspect.isfunction(function):
        return f"{name}{inspect.signature(function)}"
    return f"{name}: {member}" if isinstance(member, str) and name != "__version__" else name


def listing() -> str:
    lines = []
    for name in sorted(servetwin.__all__, key=str.lower):
        thing = getattr(servetwin, name)
        if not inspect.isclass(thing):
            lines.append(spelled(name, thing))
            continue
        bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
        lines.append(f"class {name}({bases})" if bases else f"class {name}")
        if name not in OF_POLICIES:
            lines += [f"    {spelled(inner, member)}" for inner, member in sorted(members(thing).items())]
    return "\n".join(lines) + "\n"


def test_the_public_names_and_their_signatures_are_those_that_are_listed():
    assert listing() == LISTED.read_text()


def test_every_public_name_is_documented():
    for name in servetwin.__all__:
        thing = getattr(servetwin, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
        if inspect.isclass(thing) and name not in OF_POLICIES:
            for inner, member in members(thing).items():
                told = inspect.getdoc(thing) if isinstance(member, str) else inspect.getdoc(member)
                assert told, f"{name}.{inner}"
                assert not isinstance(member, str) or inner in told, f"{name}.{inner}"


@pytest.mark.checkout
@pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel")
def test_the_page_tells_of_every_public_name_and_member_and_of_no_other():
    page = DOCUMENT.read_text()
    told = set(re.findall(r"`(?:servetwin\.)?([A-Za-z_.]+)", page))
    for name in servetwin.__all__:
        assert name in told, name
        thing = getattr(servetwin, name)
        if inspect.isclass(thing) and name not in OF_POLICIES:
            for inner in members(thing):
                assert inner in told or f"{name}.{inner}" in told or f".{inner}" in told, f"{name}.{inner}"
    for name in re.findall(r"servetwin\.([A-Za-z_]+)\(", page):
        assert name in servetwin.__all__, name


def test_the_version_is_that_of_the_package():
    assert servetwin.__version__ == importlib.metadata.version("servetwin")


def test_dir_lists_what_is_public_and_a_wrong_name_is_an_attribute_error():
    assert set(servetwin.__all__) <= set(dir(servetwin))
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        _ = servetwin.rnu


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import servetwin", "numpy pydantic typer torch pyarrow matplotlib simpy servetwin.core servetwin.runs"),
        ("import servetwin.sim", "torch pyarrow matplotlib typer servetwin.runs servetwin.policies"),
        ("import servetwin; servetwin.run", "torch pyarrow matplotlib pandas polars typer"),
        (
            "import servetwin; servetwin.run('dit-s2-256-rtx4090', requests=5).requests",
            "torch pyarrow matplotlib pandas polars typer rich",
        ),
        (
            "import servetwin; servetwin.run('dit-s2-256-rtx4090', requests=5).requests.to_arrow()",
            "torch matplotlib polars typer",
        ),
    ],
)
def test_an_import_brings_in_no_more_than_it_needs(statement: str, absent: str):
    code = f"{statement}\nimport sys\nprint(*(m for m in {absent.split()} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


if __name__ == "__main__":
    LISTED.write_text(listing())
