"""The mutants of `make soak`: what is changed, that it is run changed, and what the tests then say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("coverage")
import mutants

pytestmark = pytest.mark.checkout


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("a < b", "a < b -> a <= b"),
        ("a + b", "a + b -> a - b"),
        ("a and b", "a and b -> a or b"),
        ("max(a, b)", "max(a, b) -> min(a, b)"),
        ("not a", "not a -> bool(a)"),
        ("a += 1", "a += 1 -> a -= 1"),
        ("f(a)", "without f(a)"),
        ("if a: b", "not (a)"),
        ("return 3", None),
    ],
)
def test_changes(code: str, change: str | None) -> None:
    node: ast.AST = ast.parse(code).body[0]
    if isinstance(node, ast.Expr) and change is not None and not change.startswith("without"):
        node = node.value
    found = mutants.changed(node)
    assert (found and found[1]) == change


def test_a_sample_is_the_same_again_and_of_all_that_is_changed() -> None:
    first = mutants.sample(300, 7)
    assert first == mutants.sample(300, 7) != mutants.sample(300, 8)
    assert len({(one.file, one.function, one.node) for one in first}) == 300
    for place in ("core/serving", "core/llm/serving", "policies/diffusion", "policies/llm", "sim/llm"):
        assert any(one.file.startswith(place) for one in first)


def test_what_is_judged_is_run_changed(tmp_path: Path) -> None:
    """In a process of its own, which forks."""
    (tmp_path / "test_sum.py").write_text(
        "from servetwin.core.arithmetic import float_sum\n"
        "def test_sum() -> None:\n    assert float_sum([1.0, 2.0]) == 3.0\n"
        "def test_nothing() -> None:\n    assert float_sum([1.0]) > 0.0\n"
        "def test_for_ever() -> None:\n    while float_sum([1.0]) == 2.0: pass\n"
    )
    code = (
        "import json, mutants\n"
        "one, = mutants.mutants('core/arithmetic/__init__.py')\n"
        f"tests = [[r'{tmp_path / 'test_sum.py'}::test_' + name] for name in ('sum', 'nothing', 'for_ever')]\n"
        "print(json.dumps([str(one), *(mutants.judge(one, test, 10.0) for test in (*tests, []))]))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=mutants.HERE, check=True, capture_output=True, text=True)
    change, *ended = json.loads(done.stdout)
    assert change.endswith("float_sum: 0 -> 1")
    assert ended == ["killed", "survived", "killed", "uncovered"]
