"""Mutation testing: is a small change in what serves requests noticed by the tests?

    python tests/mutants.py --count 300 --seed 0          # prints what survives, and the share that was killed
    python tests/mutants.py --part 0/2 & python tests/mutants.py --part 1/2    # by two processes; then as above

A mutant is one changed operator, comparison, number, condition or call in a function of `MUTATED`. It is killed if
one of the tests that reach its line fails; which these are is told by ``tests/covered.py``, whose recording is made
first. They are run in a process that has everything imported: a mutant takes a second or so. (mutmut
and cosmic-ray change files, and import them by the folder they lie in; ours lie in ``core/`` and are imported as
``servetwin.core``.)

Which mutants are drawn depends on the seed and on each mutant's own name, so a change in one function leaves those of
all others as they are. How each ended is kept in ``build/mutants``, and holds until its file or those tests change.

Survivors are judged in ``tests/judged_mutants.yaml``, each with the reason: `equivalent` changes nothing but perhaps
speed and is not counted, `stays` is counted as not killed. A survivor that is not judged is an error.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from types import CodeType, FunctionType
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE)]

import covered  # noqa: E402

#: Whose functions are changed.
MUTATED = (
    "core/serving",
    "core/llm/serving",
    "core/fleets/fleet.py",
    "policies/diffusion",
    "policies/llm",
    "policies/routing",
    "sim/batch_lane.py",
    "sim/group_lane.py",
    "sim/pool_lane.py",
    "sim/llm",
)

#: How many times its seconds of the processor a mutant may take by the clock: what waits for nothing is killed too.
ASLEEP = 40.0

#: Folders of the tests that are to notice.
TESTS = ("core", "policies", "sim", "experiments/assembly")
QUIETLY = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning")

#: The share that is to be killed, in %.
LEAST = 85.0

#: Tests that are run for one mutant at most, seconds of the processor that they may take by what was recorded, and
#: how many are tried first.
MOST, BUDGET, FEW = 120, 30.0, 12

#: A mutant that takes ten times as long as its tests, and so many seconds of the processor, hangs: it is killed.
HANGS = 20.0

#: What survivors are, and why; how each mutant ended.
JUDGED = HERE / "judged_mutants.yaml"
KEPT = ROOT / "build/mutants"
KINDS = ("equivalent", "stays")

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    """One change: of which file and function (its qualified name), in words, and which of those that read alike."""

    file: str
    function: str
    change: str
    nth: int
    node: int
    lines: tuple[int, ...]  # its own, and that on which its statement begins

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.file, self.function, self.change, self.nth

    def __str__(self) -> str:
        nth = f" (the {self.nth + 1}th such)" if self.nth else ""
        return f"{self.file}:{self.lines[0]} {self.function}: {self.change}{nth}"


def changed(node: ast.AST) -> tuple[ast.AST, str] | None:
    """What stands in the place of *node* in a mutant, with the nodes below it; None where nothing does."""
    new: Any = copy.copy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        new.ops = [COMPARED[type(node.ops[0])](), *node.ops[1:]]
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in COMPUTED:
        new.op = COMPUTED[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        new = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        new.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        new.value = node.value + 1
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        new.test = ast.UnaryOp(ast.Not(), node.test)
        return new, f"not ({ast.unparse(node.test)})"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        new.func = ast.Name("max" if node.func.id == "min" else "min", ast.Load())
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        # (A function that has called `super()` goes on to need the class that this stands for.)
        calls_super = any(isinstance(name, ast.Name) and name.id == "super" for name in ast.walk(node))
        nothing = ast.Expr(ast.Name("__class__", ast.Load())) if calls_super else ast.Pass()
        return nothing, f"without {ast.unparse(node)}"
    elif isinstance(node, ast.Break | ast.Continue):
        new = ast.Continue() if isinstance(node, ast.Break) else ast.Break()
    else:
        return None
    return new, f"{ast.unparse(node)} -> {ast.unparse(new)}"


def inner(function: ast.AST) -> Iterator[ast.AST]:
    """What of a function's body may change: no annotations, and no errors that are raised."""
    annotations = (getattr(function, "annotation", None), getattr(function, "returns", None))
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.Raise | ast.Assert | ast.arguments | ast.JoinedStr) and child not in annotations:
            yield child
            yield from inner(child)


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of a module, and the methods of its classes, by qualified name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{f.name}", f) for f in node.body if isinstance(f, ast.FunctionDef))


def mutants(file: str) -> Iterator[Mutant]:
    """Those of a file."""
    for name, function in functions(ast.parse((ROOT / file).read_text())):
        seen: Counter[str] = Counter()
        begins = function.lineno
        for number, node in enumerate(inner(function)):
            begins = node.lineno if isinstance(node, ast.stmt) else begins
            if (new := changed(node)) is not None and isinstance(node, ast.stmt | ast.expr):
                yield Mutant(file, name, new[1], seen[new[1]], number, (node.lineno, begins))
                seen[new[1]] += 1


@cache
def every() -> list[Mutant]:
    """Those of all files of `MUTATED`."""
    files = []
    for place in MUTATED:
        files += [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    return [mutant for file in files for mutant in mutants(file.relative_to(ROOT).as_posix())]


def sample(count: int, seed: int) -> list[Mutant]:
    """*count* mutants; one that is drawn stays so whatever else of the code changes, but for some at the end."""

    def rank(mutant: Mutant) -> bytes:
        return hashlib.sha256(repr((seed, *mutant.key)).encode()).digest()

    return sorted(every(), key=rank)[:count]


def judged(text: str) -> dict[tuple[str, str, str, int], tuple[str, str]]:
    """Kind and reason of each survivor that stands in a file like `JUDGED`. Raises ValueError for what is none."""
    known = {mutant.key for mutant in every()}
    found = {}
    for file, functions in yaml.safe_load(text).items():
        for function, entries in functions.items():
            for entry in entries:
                key = file, function, entry["change"], entry.get("nth", 0)
                where = f"{JUDGED.name}: {file}: {function}: {entry['change']}"
                if key not in known:
                    raise ValueError(f"{where}: there is no such mutant (any more)")
                if key in found:
                    raise ValueError(f"{where}: judged twice")
                if entry.get("kind") not in KINDS or not entry.get("why"):
                    raise ValueError(f"{where}: kind ({' or '.join(KINDS)}) and why are needed")
                found[key] = entry["kind"], entry["why"]
    return found


def put(mutant: Mutant) -> None:
    """Give the function of this process the code of the *mutant*."""
    tree = ast.parse((ROOT / mutant.file).read_text())
    function = dict(functions(tree))[mutant.function]
    node = next(node for number, node in enumerate(inner(function)) if number == mutant.node)
    new = changed(node)
    assert new is not None

    class Put(ast.NodeTransformer):
        def visit(self, at: ast.AST) -> Any:
            return ast.copy_location(new[0], node) if at is node else self.generic_visit(at)

    whole = compile(ast.fix_missing_locations(Put().visit(tree)), str(ROOT / mutant.file), "exec")
    code = whole
    for name in mutant.function.split("."):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
    path = mutant.file.removesuffix(".py").removesuffix("/__init__")
    owner: Any = importlib.import_module(f"servetwin.{path.replace('/', '.')}")
    *outer, name = mutant.function.split(".")
    for part in outer:
        owner = getattr(owner, part)
    plain(inspect.getattr_static(owner, name)).__code__ = code


def plain(found: Any) -> FunctionType:
    """The function of a property, a static method, or what a decorator wraps."""
    for name in ("fget", "func", "__func__", "__wrapped__"):
        while hasattr(found, name):
            found = getattr(found, name)
    if not isinstance(found, FunctionType):
        raise TypeError(f"{found} is no function")
    return found


def reach(data: Any, took: Mapping[str, float], mutant: Mutant, first: str | None = None) -> list[str]:
    """The tests that are run for a mutant: *first*; all that reach its line in files that are named after its module;
    of each other file the quickest, then the second of each, and so on, files in folders of the same names first."""
    by_line = data.contexts_by_lineno(str(ROOT / mutant.file))
    found = next(filter(None, (set(by_line.get(line, ())) - {""} for line in mutant.lines)), set())
    own = {part.strip("_") for part in PurePosixPath(mutant.file).with_suffix("").parts}
    files: dict[str, list[str]] = defaultdict(list)
    for test in sorted(found, key=lambda test: (took.get(test, 0.0), test)):
        files[test.partition("::")[0]].append(test)

    def far(file: str) -> int:
        return -len(own & set(PurePosixPath(file.replace("test_", "")).with_suffix("").parts))

    stem = PurePosixPath(mutant.file).stem.strip("_")
    turns = [
        (0 if f"_{stem}_" in f"_{PurePosixPath(file).stem}_" else 1 + turn, far(file), file, test)
        for file, tests in files.items()
        for turn, test in enumerate(tests)
    ]
    chosen, left = [first] if first in found else [], BUDGET
    for *_, test in sorted(turns):
        if test != first and took.get(test, 0.0) <= left:
            left -= took.get(test, 0.0)
            chosen.append(test)
        if len(chosen) == MOST:
            break
    return chosen or sorted(found, key=lambda test: took.get(test, 0.0))[:1]


class Failed:
    """A plugin of pytest that tells which test failed."""

    def __init__(self, tell: int) -> None:
        self.tell = tell

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.tell, report.nodeid.partition("[")[0].encode() + b"\n")


def judge(mutant: Mutant, tests: list[str], took: Mapping[str, float]) -> tuple[str, str]:
    """`killed`, and by which test; `survived`; or `uncovered`: no test reaches it. *took*: seconds of each test."""
    if not tests:
        return "uncovered", ""
    # Most are killed by the first few, and collecting others takes longer than these.
    for some in (tests[:FEW], tests[FEW:]):
        left = list(some)
        while left:
            limit = HANGS + 10.0 * math.fsum(took.get(test, 0.0) for test in left)
            code, failed = _run(mutant, left, limit)
            if not code:
                break
            if not failed:
                return "killed", ""
            # Told from where pytest thinks that it is.
            killer = next(test for test in left if PurePosixPath(test).name == PurePosixPath(failed).name)
            if passes(killer):
                return "killed", failed
            left.remove(killer)
    return "survived", ""


@cache
def passes(test: str) -> bool:
    """Whether *test* passes while nothing is changed (and properties are tried on few examples): else what it kills
    says nothing."""
    return _run(None, [test], 10.0 * HANGS)[0] == 0


def _run(mutant: Mutant | None, tests: list[str], limit: float) -> tuple[int, str]:
    """Exit code of pytest for *tests*, and the one that failed. A run of more than *limit* seconds of the processor,
    or by the clock of `ASLEEP` times as many, fails."""
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 1))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = 3
        with contextlib.suppress(BaseException):
            import pytest

            if mutant is not None:
                put(mutant)
            code = int(pytest.main(["-x", *QUIETLY, *tests], plugins=[Failed(tell)]))
        os._exit(code)
    os.close(tell)
    until = time.monotonic() + ASLEEP * limit
    try:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return 1, ""
            time.sleep(0.02)
        code = os.waitstatus_to_exitcode(status)
        if code in (3, 4, 5):
            raise RuntimeError(f"{mutant}: the tests could not be run ({code}): {' '.join(tests)}")
        return code, os.read(hear, 10_000).decode().partition("\n")[0] if code else ""
    finally:
        os.close(hear)


@cache
def _text(file: str) -> bytes:
    return (ROOT / file).read_bytes()


def stands_on(mutant: Mutant, tests: Iterable[str]) -> str:
    """A number of the texts that an answer depends on: that which is changed, and the tests that were run."""
    texts = [_text(file) for file in (mutant.file, *sorted({test.partition("::")[0] for test in tests}))]
    return hashlib.sha256(repr((sorted(tests), texts)).encode()).hexdigest()


def kept() -> dict[str, dict[str, str]]:
    """How mutants ended before, by their keys: the last answer of each."""
    found = {}
    for file in sorted(KEPT.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            one = json.loads(line)
            if one["mutant"] not in found or found[one["mutant"]]["when"] <= one["when"]:
                found[one["mutant"]] = one
    return found


def import_tests() -> None:
    """Import once what tests import; what is forked from here has it. Properties that fail are not made smaller."""
    import pytest
    from hypothesis import HealthCheck, Phase, settings

    settings.register_profile(
        "mutants",
        derandomize=True,
        deadline=None,
        max_examples=60,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main(["--collect-only", *QUIETLY, *(f"tests/{folder}" for folder in TESTS)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose path begins so")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="each N-th, from the I-th on (from 0)")
    given = parser.parse_args()
    covered.record(TESTS)
    part, parts = map(int, given.part.split("/"))
    chosen = [one for one in sample(given.count, given.seed)[part::parts] if one.file.startswith(given.only)]
    return try_mutants(chosen, given.seed, part)


def ended(mutants: Iterable[Mutant], part: int) -> Iterator[tuple[Mutant, str, str]]:
    """Each mutant, how it ended, and which test killed it; what was found is kept."""
    os.chdir(ROOT)
    data, took, before = covered.found().get_data(), covered.seconds(), kept()
    KEPT.mkdir(parents=True, exist_ok=True)
    imported = False
    for mutant in mutants:
        key = json.dumps(mutant.key)
        one = before.get(key, {"how": "", "by": "", "stands_on": ""})
        tests = reach(data, took, mutant, one["by"] or None)
        if one["how"] == "killed" and one["by"] and one["stands_on"] == stands_on(mutant, [one["by"]]):
            yield mutant, "killed", one["by"]
            continue
        if one["how"] == "survived" and one["stands_on"] == stands_on(mutant, tests):
            yield mutant, "survived", ""
            continue
        if not imported:
            import_tests()
            imported = True
        how, by = judge(mutant, tests, took)
        stands = stands_on(mutant, [by] if by else tests)
        told = {"mutant": key, "how": how, "by": by, "stands_on": stands, "when": time.time()}
        with (KEPT / f"{part}.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")
        yield mutant, how, by


def try_mutants(chosen: Iterable[Mutant], seed: int, part: int = 0) -> int:
    """Judge mutants and tell which survive; gives 1 if too few are killed or a survivor is not judged, else 0."""
    verdicts = judged(JUDGED.read_text())
    ends: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for mutant, how, _ in ended(chosen, part):
        kind, why = verdicts.get(mutant.key, ("not judged", ""))
        ends[how] += 1
        if how == "killed":
            if why:
                say(f"killed, though judged {kind}: {mutant}")
            continue
        kinds[kind] += 1
        say(f"{how}, {kind}: {mutant}" + (f" ({why})" if why else ""))
    total = ends.total()
    share = 100.0 * ends["killed"] / max(total - kinds["equivalent"], 1)
    say(
        f"mutants: {total} of seed {seed}: {ends['killed']} killed, {ends['survived']} survived,"
        f" {ends['uncovered']} in lines that no test reaches; {kinds['equivalent']} of those equivalent,"
        f" {kinds['stays']} stay, {kinds['not judged']} not judged. Killed of those that are not equivalent:"
        f" {share:.1f} % ({100.0 * ends['killed'] / max(total, 1):.1f} % of all)"
    )
    return 1 if share < LEAST or kinds["not judged"] else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
