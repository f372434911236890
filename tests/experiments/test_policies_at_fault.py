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
