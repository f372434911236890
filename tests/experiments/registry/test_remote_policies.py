"""A policy that is made in another process is the one that was meant, or is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.core.llm import Step, TokenPolicy
from servetwin.experiments.registry.policy_objects import class_of, offering
from servetwin.experiments.registry.remote_policies import compiled, maker_of

MINE = """from neighbour import WHO
from servetwin.core.llm import Step, TokenPolicy


class Mine(TokenPolicy):
    who = WHO

    def __init__(self, count: int = 1):
        self.count = count

    def decide(self, view, now):
        return Step()
"""
ELSEWHERE = """import pickle, sys
sys.path[:] = pickle.loads(bytes.fromhex(sys.argv[1]))
name, make = pickle.loads(bytes.fromhex(sys.argv[2]))
try:
    made = make(name, {"count": 3})
except Exception as error:
    print(type(error).__name__, error)
else:
    print(type(made).__name__, made.who, made.count)
"""


def made_elsewhere(told) -> str:
    """What another process makes of *told*, a name and what makes policies of it."""
    given = [pickle.dumps(thing).hex() for thing in (sys.path, told)]
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, *given], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(folder: Path, file: str = "mine.py", who: str = "a") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(MINE)
    (folder / "neighbour.py").write_text(f"WHO = {who!r}\n")
    return folder / file


@pytest.mark.parametrize("file", ["mine.py", "my-policy.py", "my policy.py", "3.py"])
@pytest.mark.parametrize("end", ["", ":Mine"])
def test_a_file_with_a_neighbour(tmp_path, monkeypatch, file, end):
    path = write(tmp_path, file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{path}{end}", f"{file}{end}", f"./{file}{end}"):
        assert made_elsewhere(maker_of(name)) == "Mine a 3"


def test_files_of_one_name_in_different_folders(tmp_path, monkeypatch):
    told = []
    for who in ("a", "b"):
        path = write(tmp_path / who, who=who)
        monkeypatch.syspath_prepend(path.parent)
        told.append(maker_of(str(path)))
        assert made_elsewhere(told[-1]) == f"Mine {who} 3"


def test_a_file_that_was_edited_meanwhile_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    told = maker_of(str(path))
    (tmp_path / "neighbour.py").write_text("WHO = 'c'\n")
    assert made_elsewhere(told).startswith(f"BadInput {path}: its code has changed since the run was planned")


def test_a_class_of_a_module(tmp_path, monkeypatch):
    write(tmp_path, "mine_of_a_module.py")
    monkeypatch.syspath_prepend(tmp_path)
    import mine_of_a_module

    assert made_elsewhere(maker_of("mine_of_a_module:Mine")) == "Mine a 3"
    with offering({"Mine": mine_of_a_module.Mine}):
        name, make = maker_of("Mine")
    assert name == "mine_of_a_module:Mine"
    assert made_elsewhere((name, make)) == "Mine a 3"
    path = tmp_path / "mine_of_a_module.py"
    path.write_text(MINE.replace("return Step()", "return Step(), 1"))
    assert "the class that its module holds is not the one that was given" in made_elsewhere((name, make))


class Here(TokenPolicy):
    def decide(self, view, now):
        return Step()


def test_what_cannot_be_found_elsewhere_is_refused(monkeypatch):
    class Inner(Here):
        pass

    notebook = type("Notebook", (Here,), {"__module__": "__main__"})
    changed = type("Here", (Here,), {"limit": 3, "__module__": __name__})
    gone = type("Gone", (Here,), {"__module__": "no_such_module"})
    cases = {
        "Inner": (Inner, "it is no name of the module"),
        "Notebook": (notebook, "it is defined in a notebook or script"),
        "Here": (changed, "the class that the module .* holds is not the same"),
        "Gone": (gone, "it is no name of the module no_such_module"),
        "Made": (class_of(lambda: Here(), "policy"), "it is made by a function"),
    }
    for name, (kind, why) in cases.items():
        with offering({name: kind}), pytest.raises(BadInput, match=rf"cannot find the class \w+: {why}.*backend="):
            maker_of(name)


def test_what_is_compared_is_code_and_plain_values():
    one = type("A", (Here,), {"limit": 3})
    assert compiled(one) == compiled(type("A", (Here,), {"limit": 3}))
    assert compiled(one) != compiled(type("A", (Here,), {"limit": 4}))
    assert compiled(one) != compiled(type("A", (Here,), {"limit": 3, "decide": lambda self, view, now: None}))
