"""A policy is found by its name, its file or its import path; its parameters are checked by its constructor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.registry import policy_registry
from servetwin.policies.diffusion.edf import EDF

MINE = '''
"""Mine: shortest first."""

from typing import Literal

from servetwin.core import Decision, Policy


class Mine(Policy):
    def __init__(self, most: int, order: Literal["short", "long"] = "short", pause: float | None = None) -> None:
        self.most = most

    def decide(self, view, now):
        return Decision(sorted(view.waiting, key=lambda t: t.left)[: self.most], whole=True)
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def test_our_policies_are_known_by_name():
    assert {"neustream", "clockwork", "fcfs", "edf"} <= set(policy_registry.policy_names())
    assert policy_registry.find_policy("edf") is EDF
    assert {"neustream-llm", "vllm", "vllm-v1", "sarathi", "edf-llm"} <= set(policy_registry.policy_names())


def test_a_policy_can_be_named_by_import_path():
    assert policy_registry.find_policy("servetwin.policies.diffusion.edf:EDF") is EDF


def test_a_policy_can_be_a_file(mine: Path):
    assert policy_registry.find_policy(str(mine)).__name__ == "Mine"
    assert policy_registry.find_policy(f"{mine}:Mine").__name__ == "Mine"
    assert policy_registry.make(str(mine), {"most": 2}).most == 2


def test_parameters_are_completed_with_their_defaults(mine: Path):
    policy = policy_registry.find_policy(str(mine))
    assert policy_registry.complete(policy, {"most": 3}) == {"most": 3, "order": "short", "pause": None}
    assert policy_registry.complete(policy, {"pause": 1, "most": 3})["pause"] == 1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"needs the parameter 'most'"),
        ({"most": 1, "mots": 2}, r"takes no parameter 'mots' \(right would be: most\)"),
        ({"most": 1.5}, r"1.5 does not fit parameter 'most' \(right would be: int\)"),
        ({"most": True}, r"True does not fit parameter 'most'"),
        ({"most": 1, "order": "tall"}, r"'tall' does not fit .*Literal\['short', 'long'\]"),
        ({"most": 1, "pause": "long"}, r"'long' does not fit .*float \| None"),
    ],
)
def test_parameters_that_do_not_fit(mine: Path, params, message):
    with pytest.raises(BadInput, match=message):
        policy_registry.complete(policy_registry.find_policy(str(mine)), params)


WRONG_FILES = {
    "a slip": ("class Mine(Policy:\n", r"cannot be loaded: SyntaxError: .*\(line 1\)"),
    "a missing import": ("import no_such_thing\n", r"cannot be loaded: ModuleNotFoundError: No module named"),
    "no policy": ("x = 1\n", r"no policy there .*one subclass of servetwin.core.Policy"),
    "two policies": (
        "from servetwin.core import Policy\n\n\nclass A(Policy): ...\n\n\nclass B(Policy): ...\n",
        r"2 policies there: A, B .*:A\)",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_files_that_hold_no_policy(tmp_path: Path, case):
    text, message = WRONG_FILES[case]
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        policy_registry.find_policy(str(tmp_path / "mine.py"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/mine.py", "no such policy file"),
        ("no_such_package:Mine", "there is no module 'no_such_package'"),
        ("servetwin.policies.diffusion.edf:EFD", r"no policy 'EFD' there \(right would be: EDF\)"),
        ("pace", r"the policy 'pace' has another name now \(right would be: slack-batch\)"),
        ("edff", r"unknown policy 'edff' \(right would be: edf; or a file"),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(BadInput, match=message):
        policy_registry.find_policy(name)


def test_a_policy_describes_itself(mine: Path):
    text, params = policy_registry.describe(str(mine))
    assert text == "Mine: shortest first."
    assert params == {
        "most": "int",
        "order": "Literal['short', 'long'] = 'short'",
        "pause": "float | None = None",
    }


def test_a_policy_file_imports_what_lies_beside_it_from_wherever_one_is(servetwin, toy, tmp_path, monkeypatch):
    """Files of one name in two folders have neighbours of their own, and nothing is left on the path."""
    text = "from neighbour import WHO\nfrom servetwin.policies.diffusion.fcfs import FCFS\n\n\nclass Mine(FCFS):\n"
    text += "    def decide(self, view, now):\n        raise ValueError(WHO)\n"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = list(sys.path)
    for who in ("a", "b", "a"):
        folder = tmp_path / who
        folder.mkdir(exist_ok=True)
        (folder / "mine-too.py").write_text(text)
        (folder / "neighbour.py").write_text(f"WHO = 'I am {who}'\n")
        code, _, err = servetwin("run", toy, "--policy", f"../{who}/mine-too.py")
        assert code == 2
        assert (
            f"policy Mine (mine-too.py:7): the policy failed: mine-too.py:7, in decide: ValueError: I am {who}" in err
        )
    assert sys.path == before
