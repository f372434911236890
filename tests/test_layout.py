"""The layout of the code: the wheel holds all of it, each package tells what is in it, and nothing goes in
circles."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

TOPS = ("servetwin", "core", "policies", "profiles", "sim", "real", "experiments")

#: The circles that are left, of annotations only, to become smaller, never larger. Tasks, batches and executors name
#: the worker, kinds of workers and engines name the loop.
LOOP = {
    f"servetwin.core.{name}"
    for name in (
        *("branching", "budget", "executor", "loop", "metrics", "policy", "records", "request", "routing", "worker"),
        *(f"llm.{name}" for name in ("async_engine", "batch", "decode_sums", "engine", "policy", "request", "slo")),
        *("llm.worker", "invariants.answers", "invariants.engine_ledger", "invariants.read_only"),
        *(f"invariants.{name}" for name in ("code_inspection", "integrity", "purity", "task_ledger")),
    )
}
#: What is drawn names its figures, and figures what they draw.
FIGURES = {f"servetwin.{name}" for name in ("figures", "results", "searches", "sweeps")}


#: Packages whose modules are found by their files' names.
PLUGINS = {"servetwin.profiles.importing.formats"}


def folders() -> dict[str, Path]:
    found = {}
    for top in TOPS:
        name = top if top == "servetwin" else f"servetwin.{top}"
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        found[name] = Path(spec.origin).parent
    return found


def sources() -> dict[str, Path]:
    """All modules of ServeTwin, by name."""
    found = {}
    for name, folder in folders().items():
        for path in sorted(folder.rglob("*.py")):
            parts = [p for p in path.relative_to(folder).with_suffix("").parts if p != "__init__"]
            found[".".join((name, *parts))] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """What a module imports, in functions too, and whether that is for annotations only."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, typed: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typed = True
        if isinstance(node, ast.Import):
            yield from ((alias.name, typed) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield (f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source), typed
        for child in ast.iter_child_nodes(node):
            yield from walk(child, typed)

    for target, typed in walk(ast.parse(path.read_text(encoding="utf-8")), False):
        if target in known and target != name:
            yield target, typed


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules each of which leads to all others of its set."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            for after in graph.get(waiting.pop(), ()):
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        reach[start] = seen
    found: list[set[str]] = []
    for name in graph:
        if name in reach[name] and not any(name in circle for circle in found):
            found.append({other for other in reach[name] if name in reach.get(other, ())})
    return found


@pytest.mark.checkout
def test_the_wheel_holds_every_package() -> None:
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {name for name, path in sources().items() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(there)
    for name, path in sources().items():
        assert (path.parent / "__init__.py").is_file(), name


def test_each_package_tells_what_is_in_it() -> None:
    missing = []
    known = sources()
    for name, path in known.items():
        package, _, own = name.rpartition(".")
        # A format of imports is a file and nothing else; its first line tells what it reads.
        if package and name not in folders() and not own.startswith("_") and package not in PLUGINS:
            text = ast.get_docstring(ast.parse(known[package].read_text(encoding="utf-8"))) or ""
            if f"`{own}`" not in text:
                missing.append(name)
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name
    assert missing == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = sources()
    runs: dict[str, set[str]] = {name: set() for name in known}
    names: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for target, typed in imports(name, path, known):
            names[name].add(target)
            if not typed:
                runs[name].add(target)
    # A package that hands names on is asked for them by those outside of it only.
    assert circles({n: {t for t in ts if known[t].name != "__init__.py"} for n, ts in runs.items()}) == []
    for circle in circles({n: {t for t in ts if known[t].name != "__init__.py"} for n, ts in names.items()}):
        assert circle <= LOOP or circle <= FIGURES, circle - LOOP - FIGURES
