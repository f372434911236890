"""Mutation testing: is a small change in what serves requests noticed by the tests?

    python tests/mutants.py --count 300 --seed 0          # prints what survives, and the share that was killed

A mutant is one changed operator, comparison, number, condition or call in a function of `MUTATED`. It is killed if
one of the tests that reach its line fails; which these are is told by ``tests/covered.py``, whose recording is made
first. The quickest are run first, in a process that has everything imported: a mutant takes a second or so. (mutmut
and cosmic-ray change files, and import them by the folder they lie in; ours lie in ``core/`` and are imported as
``servetwin.core``.)

`EQUIVALENT` names mutants that change nothing that a user can see, each with the reason: they are not drawn.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import inspect
import io
import math
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

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
TESTS = ("core", "policies", "sim")
QUIETLY = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")

#: The share that is to be killed, in %.
LEAST = 85.0

#: Tests that are run for one mutant at most, and seconds that they may take by what was recorded. A mutant that takes
#: ten times as long, and twenty seconds, hangs: it is killed.
MOST, BUDGET = 60, 20.0

#: Mutants that change nothing that is seen, by file, function and change, with why.
EQUIVALENT: dict[tuple[str, str, str], str] = {}

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
    """One change: of which file, in which function (its qualified name), of which node there, and in words."""

    file: str
    function: str
    node: int
    line: int
    change: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.change}"


def changed(node: ast.AST) -> tuple[ast.AST, str] | None:
    """What stands in the place of *node* in a mutant; None where nothing does."""
    new: Any = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        new.ops[0] = COMPARED[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in COMPUTED:
        new.op = COMPUTED[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        new = ast.Call(ast.Name("bool", ast.Load()), [new.operand], [])
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        new.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        new.value = node.value + 1
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        new.test = ast.UnaryOp(ast.Not(), new.test)
        return new, f"not ({ast.unparse(node.test)})"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        new.func.id = "max" if node.func.id == "min" else "min"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.Pass(), f"without {ast.unparse(node)}"
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
    for name, function in functions(ast.parse((ROOT / file).read_text())):
        for number, node in enumerate(inner(function)):
            if (new := changed(node)) is not None and hasattr(node, "lineno"):
                yield Mutant(file, name, number, node.lineno, new[1])


def sample(count: int, seed: int) -> list[Mutant]:
    """*count* mutants, each file's share by how many it has."""
    files = []
    for place in MUTATED:
        files += [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    known = [m for file in files for m in mutants(file.relative_to(ROOT).as_posix())]
    known = [m for m in known if (m.file, m.function, m.change) not in EQUIVALENT]
    return random.Random(seed).sample(known, min(count, len(known)))


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


def reach(data: Any, took: dict[str, float], files: dict[str, str], mutant: Mutant) -> list[str]:
    """The tests that reach a mutant's line, the quickest first."""
    contexts = data.contexts_by_lineno(str(ROOT / mutant.file)).get(mutant.line, [])
    tests = set()
    for context in contexts:
        module, _, name = context.partition(".")
        if module in files:
            tests.add(f"{files[module]}::{name.replace('.', '::')}")
    chosen, left = [], BUDGET
    for test in sorted(tests, key=lambda test: (took.get(test, 0.0), test))[:MOST]:
        left -= took.get(test, 0.0)
        if chosen and left < 0.0:
            break
        chosen.append(test)
    return chosen


def judge(mutant: Mutant, tests: list[str], limit: float) -> str:
    """`killed`, `survived`, or `uncovered`: no test reaches it. *limit*: seconds of the processor."""
    if not tests:
        return "uncovered"
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

            put(mutant)
            code = int(pytest.main(["-x", *QUIETLY, *tests]))
        os._exit(code)
    until = time.monotonic() + ASLEEP * limit
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code in (3, 4, 5):
                raise RuntimeError(f"{mutant}: the tests could not be run ({code}): {' '.join(tests)}")
            return "survived" if code == 0 else "killed"
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "killed"
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose path begins so")
    given = parser.parse_args()
    covered.record(TESTS)
    return try_mutants(given.count, given.seed, given.only)


def try_mutants(count: int, seed: int, only: str = "") -> int:
    """Judge *count* mutants and tell which survive; gives 1 if too few are killed, else 0."""
    os.chdir(ROOT)
    data, took = covered.found().get_data(), covered.seconds()
    files = {p.stem: p.relative_to(ROOT).as_posix() for p in HERE.rglob("test_*.py") if "real" not in p.parts}
    import pytest

    # What tests import is imported once; what is forked from here has it.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main(["--collect-only", *QUIETLY, *(f"tests/{folder}" for folder in TESTS)])
    ended: Counter[str] = Counter()
    for mutant in sample(count, seed):
        if not mutant.file.startswith(only):
            continue
        tests = reach(data, took, files, mutant)
        how = judge(mutant, tests, 20.0 + 10.0 * math.fsum(took.get(test, 0.0) for test in tests))
        ended[how] += 1
        if how != "killed":
            sys.stdout.write(f"{how}: {mutant}\n")
            sys.stdout.flush()
    share = 100.0 * ended["killed"] / max(ended.total(), 1)
    sys.stdout.write(
        f"mutants: {ended.total()} of seed {seed}, {ended['killed']} killed ({share:.1f} %),"
        f" {ended['survived']} survived, {ended['uncovered']} in lines that no test reaches\n"
    )
    return 1 if share < LEAST else 0


if __name__ == "__main__":
    sys.exit(main())
