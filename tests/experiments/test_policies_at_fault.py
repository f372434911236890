"""A policy that fails, or answers with what is no answer, is told in one line that names it."""

import pytest
from servetwin.experiments import cli

POLICY = "from servetwin.core import Decision, Policy\n\n\nclass Mine(Policy):\n    def decide(self, view, now):\n"
TOKENS = """from servetwin.core.tokens import ALL, Step, TokenPolicy

class Mine(TokenPolicy):
    def decide(self, view, now):
"""
DIFFUSION = {
    "return 1 / 0": "the policy failed: mine.py:6, in decide: ZeroDivisionError: division by zero",
    "return None": "policy Mine (mine.py:5): decide returned None (right would be: a Decision)",
    "return Decision([1])": "run of its decision holds 1 (right would be: tasks of its view)",
    "return Decision(t for t in view.waiting)": "(right would be: a list of tasks)",
    "return Decision(list(view.waiting)[:1] * 2)": "of 0 at dit: 244/244 left> twice",
    "return Decision(list(view.waiting)[:1], drop=list(view.waiting)[:1])": "both runs and drops <Task of 0",
    "return Decision(idle_until=now)": "which is not in the future",
    "return Decision(idle_until=float('nan'))": "it idles until nan at dit, which is not in the future",
}
LANGUAGE = {
    "return None": "policy Mine (mine.py:4): decide returned None (right would be: a Step)",
    "return view.nothing": "the policy failed: mine.py:5, in decide: AttributeError",
    "return Step([(1, 2)])": "prefill of its decision holds 1 (right would be: tasks of its view)",
}


@pytest.mark.parametrize(
    ("workload", "head", "body", "told"),
    [("dit-s2-256-rtx4090", POLICY, *case) for case in DIFFUSION.items()]
    + [("opt-13b-a6000", TOKENS, *case) for case in LANGUAGE.items()],
)
def test_one_line_says_what_is_wrong_and_where(workload, head, body, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(f"{head}        {body}\n")
    arguments = ["servetwin", "run", workload, "--policy", str(tmp_path / "mine.py"), "--requests", "20"]
    monkeypatch.setattr("sys.argv", arguments)
    assert cli._run() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert told in captured.err


def test_a_fault_of_others_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("servetwin.core.loop.ServingLoop._commit", lambda *arguments: {}["no such key"])
    monkeypatch.setattr("sys.argv", ["servetwin", "run", "dit-s2-256-rtx4090", "--requests", "5"])
    with pytest.raises(KeyError, match="no such key"):
        cli._run()


def run_of(policy, workload, monkeypatch, capsys, tmp_path, verb="run"):
    """The exit code and the one line of a run under *policy*, the text of a file."""
    (tmp_path / "mine.py").write_text(policy)
    asked = [workload, "--policy", str(tmp_path / "mine.py"), "--requests", "20"]
    monkeypatch.setattr("sys.argv", ["servetwin", verb, *(asked if verb == "run" else [str(tmp_path / "mine.py")])])
    code = cli._run()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return code, captured.err


RUNS = "    def decide(self, view, now):\n        return Decision([*view.waiting, *view.running][: view.limit]"
STEPS = "    def decide(self, view, now):\n        return Step([(t, t.pending) for t in view.waiting], ALL"
FALSY = {
    "whole=None": "policy Mine (mine.py:5): whole of its decision is None (right would be: True or False)",
    "whole=0": "policy Mine (mine.py:5): whole of its decision is 0 (right would be: True or False)",
    "drop=None": "policy Mine (mine.py:5): drop of its decision is None (right would be: a list of tasks)",
}


@pytest.mark.parametrize("said", FALSY)
def test_what_is_no_answer_is_told_also_if_it_is_false(said, tmp_path, monkeypatch, capsys):
    text = f"{POLICY.rpartition('    def')[0]}{RUNS}, {said})\n"
    code, told = run_of(text, "dit-s2-256-rtx4090", monkeypatch, capsys, tmp_path)
    assert code == 2
    assert FALSY[said] in told


@pytest.mark.parametrize("said", ["drop=None", "preempt=None"])
def test_a_step_that_drops_none_is_told(said, tmp_path, monkeypatch, capsys):
    text = f"{TOKENS.rpartition('    def')[0]}{STEPS}, {said})\n"
    code, told = run_of(text, "opt-13b-a6000", monkeypatch, capsys, tmp_path)
    assert code == 2
    assert f"{said.partition('=')[0]} of its decision is None (right would be: a list of tasks)" in told


def test_admit_says_true_or_false(tmp_path, monkeypatch, capsys):
    text = f"{POLICY.rpartition('    def')[0]}    def admit(self, task, view, now):\n        pass\n\n{RUNS})\n"
    code, told = run_of(text, "dit-s2-256-rtx4090", monkeypatch, capsys, tmp_path)
    assert code == 2
    assert "policy Mine (mine.py:5): admit returned None (right would be: True or False)" in told
