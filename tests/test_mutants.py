"""The mutants of `make soak`: what is changed, that it is run changed, and what the tests then say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("coverage")
import mutants

pytestmark = pytest.mark.checkout

FIRST = next(mutants.mutants("core/serving/loop.py"))


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
    assert first[:200] == mutants.sample(200, 7)
    assert len({one.key for one in first}) == len({(one.file, one.function, one.node) for one in first}) == 300
    for place in ("core/serving", "core/llm/serving", "policies/diffusion", "policies/llm", "sim/llm"):
        assert any(one.file.startswith(place) for one in first)


def test_what_is_judged_is_run_changed(tmp_path: Path) -> None:
    """In a process of its own, which forks."""
    (tmp_path / "test_sum.py").write_text(
        "from servetwin.core.arithmetic import float_sum\n"
        "def test_sum() -> None:\n    assert float_sum([1.0, 2.0]) == 3.0\n"
        "def test_nothing() -> None:\n    assert float_sum([1.0]) > 0.0\n"
        "def test_for_ever() -> None:\n    while float_sum([1.0]) == 2.0: pass\n"
        "def test_wrong() -> None:\n    assert float_sum([1.0]) == 7.0\n"
    )
    code = (
        "import json, mutants\n"
        "mutants.HANGS = 2.0\n"
        "one, = mutants.mutants('core/arithmetic/__init__.py')\n"
        "names = 'sum', 'nothing', 'for_ever', 'wrong'\n"
        f"tests = [[r'{tmp_path / 'test_sum.py'}::test_' + name] for name in names]\n"
        "print(json.dumps([str(one), *(mutants.judge(one, test, {}) for test in (*tests, []))]))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=mutants.HERE, check=True, capture_output=True, text=True)
    change, *ended = json.loads(done.stdout)
    assert change.endswith("float_sum: 0 -> 1")
    assert [how for how, _ in ended] == ["killed", "survived", "killed", "survived", "uncovered"]
    assert ended[0][1].endswith("test_sum.py::test_sum")


def some(**entry: object) -> str:
    """A file of judged survivors with one entry."""
    return yaml.safe_dump({FIRST.file: {FIRST.function: [{"change": FIRST.change, "nth": FIRST.nth, **entry}]}})


def test_survivors_are_judged_by_what_they_are() -> None:
    why = {"kind": "stays", "why": "nobody sees it"}
    assert mutants.judged(some(**why)) == {FIRST.key: ("stays", "nobody sees it")}
    for wrong, told in [
        ({**why, "change": "1 -> 7"}, "no such mutant"),
        ({**why, "kind": "fine"}, "kind"),
        ({"kind": "stays"}, "why"),
    ]:
        with pytest.raises(ValueError, match=told):
            mutants.judged(some(**wrong))


def test_what_is_judged_is_there() -> None:
    """A survivor whose line was changed is judged anew."""
    assert mutants.judged(mutants.JUDGED.read_text())


@pytest.mark.parametrize(
    ("how", "text", "code", "told"),
    [
        ("killed", "{}", 0, "100.0 % (100.0 % of all)"),
        ("survived", "{}", 1, "survived, not judged"),
        ("uncovered", some(kind="equivalent", why="as fast"), 0, "99.0 % of all"),
        ("survived", some(kind="stays", why="a message"), 0, "99.0 % (99.0 % of all)"),
    ],
)
def test_a_survivor_is_an_error_unless_it_is_judged(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
    text: str,
    code: int,
    told: str,
) -> None:
    (tmp_path / "judged.yaml").write_text(text)
    monkeypatch.setattr(mutants, "JUDGED", tmp_path / "judged.yaml")
    others = [(one, "killed", "a test") for one in mutants.sample(100, 0) if one != FIRST][:99]
    monkeypatch.setattr(mutants, "ended", lambda *_: iter([(FIRST, how, ""), *others]))
    assert mutants.try_mutants([], 0) == code
    assert told in capsys.readouterr().out


def test_a_mutant_meets_the_tests_that_are_about_it_first() -> None:
    class Data:
        def contexts_by_lineno(self, file: str) -> dict[int, list[str]]:
            assert file == str(mutants.ROOT / FIRST.file)
            names = ["b/test_b.py::quick", "b/test_b.py::slow", "loop/test_loop.py::slow", "c/test_c.py::endless"]
            return {FIRST.lines[-1]: ["", *names]}

    took = {"b/test_b.py::slow": 2.0, "loop/test_loop.py::slow": 3.0, "c/test_c.py::endless": 1e6}
    expected = ["loop/test_loop.py::slow", "b/test_b.py::quick", "b/test_b.py::slow"]
    assert mutants.reach(Data(), took, FIRST) == expected
    killer = "b/test_b.py::slow"
    assert mutants.reach(Data(), took, FIRST, killer) == [killer, *[test for test in expected if test != killer]]
