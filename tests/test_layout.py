"""The layout of the code: the wheel holds all of it, each package tells what is in it, and nothing goes in
circles."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from servetwin.profiles.tables.costs import REGISTRY

TOPS = ("servetwin", "core", "policies", "profiles", "sim", "real", "experiments")

#: Names with an underscore in front that are nobody's private ones: of `typing.NamedTuple`, and of others who offer
#: nothing else for what is needed. The latter by file, with what they are.
OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}
OF_OTHERS = {
    ("sim/time/calendar.py", "_now"): "SimPy's clock, queue and numbers: its calendar in one place",
    ("sim/time/calendar.py", "_queue"): "likewise",
    ("sim/time/calendar.py", "_eid"): "likewise",
    ("real/diffusion/execution.py", "_dynamo"): "torch.compile's settings have no other name",
    ("real/diffusion/process_lane.py", "_exit"): "os._exit, documented for processes that were forked",
    ("real/vllm/internals.py", "_preempt_request"): "the method of vLLM's scheduler that its own schedule() calls",
    ("experiments/provenance/policy_code.py", "_getframe"): "sys._getframe, documented: who defined a class",
    (
        "core/processes/temporary_folders.py",
        "_config",
    ): "where multiprocessing has its folder: there is no other name",
    ("core/invariants/watchdog.py", "_getframe"): "sys._getframe, documented: where a run is watched from",
    ("core/invariants/watchdog.py", "_current_frames"): "sys._current_frames, documented: where each thread stands",
    ("real/vllm/watchdog.py", "_current_frames"): "likewise",
    ("real/tools/sandbox_child.py", "_exit"): "os._exit, documented for processes that were forked",
    ("experiments/cli/entry.py", "_exit"): "os._exit: a policy that catches everything holds the process",
}

#: Functions of more lines than `LONGEST`, each with why that is so.
LONG: dict[str, str] = {}
LONGEST, LARGEST = 80, 600  # lines of a function, of a module

#: Modules of a folder, beside its `__init__`. Libraries of policies hold one file for each, and no order but by name.
MOST_MODULES = 13
LIBRARIES = {"policies/diffusion", "policies/llm"}

#: Words that name nothing of the field. (Of a number, `unit` is what it is measured in.)
VAGUE = {
    "ways",
    "site",
    "unit",
    "inside",
    "rehearsal",
    "written",
    "basics",
    "parts",
    "blame",
    "pace",
    "weather",
    "quiet",
}
UNIT_OF_MEASURE = {
    ("experiments/capacity/root_search.py", "unit"),
    ("profiles/tables/cost.py", "unit"),
    ("profiles/tables/cost_names.py", "unit"),
    ("profiles/tables/cost_names.py", "Unit"),
}

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
            told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert "egin with" in " ".join(told.split()) or name in PLUGINS, f"{name}: where to begin?"
    assert missing == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for annotations and those within functions included."""
    known = sources()
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        # A package that hands names on is asked for them by those outside of it only.
        graph[name] |= {t for t, _ in imports(name, path, known) if known[t].name != "__init__.py"}
    assert circles(graph) == []


def test_no_packages_import_each_other_in_a_circle() -> None:
    """(A package whose `__init__` hands on the names of what is in it is no circle.)"""
    known = sources()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        if path.name == "__init__.py":
            continue
        package = name.rpartition(".")[0]
        for target, _ in imports(name, path, known):
            other = target if known[target].name == "__init__.py" else target.rpartition(".")[0]
            if other != package:
                graph.setdefault(package, set()).add(other)
    assert circles(graph) == []


def test_nobody_touches_the_private_attributes_of_another() -> None:
    """Nor those of SimPy outside of one module."""
    found, used = [], set()
    for top in TOPS:
        folder = folders()["servetwin" if top == "servetwin" else f"servetwin.{top}"]
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if top == "servetwin" and inside.parts[0] in TOPS:
                continue  # once installed, all others are in it
            file = f"{top}/{inside.as_posix()}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr[1:2] == "_":
                    continue
                if ast.unparse(node.value) in ("self", "cls", "super()") or node.attr in OF_NAMED_TUPLES:
                    continue
                if (file, node.attr) in OF_OTHERS:
                    used.add((file, node.attr))
                else:
                    found.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
    assert used == set(OF_OTHERS)


@pytest.mark.checkout
def test_modules_and_functions_are_of_a_length_that_can_be_read() -> None:
    """Tests and campaigns included."""
    root, found, used = Path(__file__).parents[1], [], set()
    for top in (*TOPS, "tests"):
        for path in sorted((root / top).rglob("*.py")):
            file, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
            if (lines := text.count("\n")) > LARGEST:
                found.append(f"{file}: {lines} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if f"{file}::{node.name}" in LONG:
                        used.add(f"{file}::{node.name}")
                    elif lines > LONGEST:
                        found.append(f"{file}::{node.name}: {lines} lines")
    assert found == []
    assert used == set(LONG)


def files() -> Iterator[tuple[str, Path]]:
    """All files of ServeTwin, by their path in the checkout."""
    for name, path in sources().items():
        top = name.split(".")[1] if name.split(".")[1:2] and name.split(".")[1] in TOPS else "servetwin"
        folder = folders()["servetwin" if top == "servetwin" else f"servetwin.{top}"]
        inner = path.relative_to(folder)
        if top != "servetwin" or inner.parts[0] not in TOPS:  # once installed, all others are in it
            yield f"{top}/{inner.as_posix()}", path


def test_folders_read_like_tables_of_contents() -> None:
    count = Counter(file.rpartition("/")[0] for file, path in files() if path.name != "__init__.py")
    assert {folder for folder, number in count.items() if number > MOST_MODULES} <= LIBRARIES


def names_of(tree: ast.Module) -> Iterator[str]:
    """Names that others read: of classes and functions, of what modules and classes hold, of attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        if isinstance(node, ast.ClassDef | ast.Module):
            for held in node.body:
                targets = [held.target] if isinstance(held, ast.AnnAssign) else getattr(held, "targets", [])
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_names_are_of_the_field() -> None:
    """Those of costs, too (`profiles/tables/costs.py`)."""
    found: set[tuple[str, str]] = set()
    used: set[tuple[str, str]] = set()
    texts = [(f"cost {entry.pattern}", [entry.pattern]) for entry in REGISTRY]
    of_files = [(file, [path.stem, *names_of(ast.parse(path.read_text(encoding="utf-8")))]) for file, path in files()]
    for file, names in (*of_files, *texts):
        for name in names:
            words = {word.lower() for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
            if words & VAGUE:
                (used if (file, name) in UNIT_OF_MEASURE else found).add((file, name))
    assert found == set()
    assert used == UNIT_OF_MEASURE


def test_nobody_reads_local_variables_of_others_by_name() -> None:
    """Of a frame, that is: who renames a variable would change what is found."""
    # The test kit asks `random.seed` what it was given, whose parameter is what Python's documentation calls it.
    found, known = set(), {"core/testing/conduct.py"}
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            of = node.func if isinstance(node, ast.Call) else node
            inner = of.value if isinstance(of, ast.Attribute | ast.Subscript) else None
            reads = isinstance(of, ast.Subscript) or (isinstance(of, ast.Attribute) and of.attr in ("get", "pop"))
            if reads and isinstance(inner, ast.Attribute) and inner.attr == "f_locals":
                found.add(f"{name.removeprefix('servetwin.').replace('.', '/')}.py")
    assert found == known


def test_core_does_not_ask_of_what_kind_a_task_is() -> None:
    """Where core serves all kinds of models it asks the worker, or the task, not its class."""
    folder = folders()["servetwin.core"]
    for path in (*sorted(folder.glob("*.py")), *sorted(folder.glob("serving/*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asks = isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
            assert not (asks and "Token" in ast.unparse(node)), f"{path}: {ast.unparse(node)}"


def test_no_two_files_of_tests_that_run_together_have_one_name() -> None:
    """pytest imports them by name, and refuses the second; so do processes that a test begins."""
    files = [path for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    light = Counter(path.name for path in files if "real" not in path.relative_to(Path(__file__).parent).parts)
    assert {name for name, number in light.items() if number > 1} == set()
