"""A policy that fails, or answers with what is no answer, is told in one line that names it."""

from abc import ABC, abstractmethod

import pytest
from servetwin.core import Decision, Policy
from servetwin.experiments.cli import entry

import servetwin

POLICY = "from servetwin.core import Decision, Policy\n\n\nclass Mine(Policy):\n    def decide(self, view, now):\n"
TOKENS = """from servetwin.core.llm import ALL, Step, TokenPolicy

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
    assert entry._run() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert told in captured.err


def test_a_fault_of_others_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(
        "servetwin.core.serving.batch_worker.BatchWorker._commit", lambda *arguments: {}["no such key"]
    )
    monkeypatch.setattr("sys.argv", ["servetwin", "run", "dit-s2-256-rtx4090", "--requests", "5"])
    with pytest.raises(KeyError, match="no such key"):
        entry._run()


def run_of(policy, workload, monkeypatch, capsys, tmp_path, verb="run"):
    """The exit code and the one line of a run under *policy*, the text of a file."""
    (tmp_path / "mine.py").write_text(policy)
    asked = [workload, "--policy", str(tmp_path / "mine.py"), "--requests", "20"]
    monkeypatch.setattr("sys.argv", ["servetwin", verb, *(asked if verb == "run" else [str(tmp_path / "mine.py")])])
    code = entry._run()
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


@pytest.mark.parametrize(
    ("workload", "head", "body"),
    [
        ("dit-s2-256-rtx4090", POLICY, body)
        for body in [*DIFFUSION, "return [*view.waiting]", "return Decision(drop=5)"]
    ]
    + [
        ("opt-13b-a6000", TOKENS, body)
        for body in [*LANGUAGE, "return [*view.waiting]", "return Step(idle_until='x')"]
    ],
)
def test_check_tells_them_in_one_line_too(workload, head, body, tmp_path, monkeypatch, capsys):
    code, told = run_of(f"{head}        {body}\n", workload, monkeypatch, capsys, tmp_path, "check")
    assert code == 2
    assert "policy Mine (mine.py:" in told or "Mine: the policy failed: mine.py:" in told


def test_admit_says_true_or_false(tmp_path, monkeypatch, capsys):
    text = f"{POLICY.rpartition('    def')[0]}    def admit(self, task, view, now):\n        pass\n\n{RUNS})\n"
    code, told = run_of(text, "dit-s2-256-rtx4090", monkeypatch, capsys, tmp_path)
    assert code == 2
    assert "policy Mine (mine.py:5): admit returned None (right would be: True or False)" in told


BODY = ":\n        return None\n"
WRONG = {
    f"    def decide(self, view){BODY}": "(mine.py:5): its decide takes (self, view) (right would be: def",
    f"    def admit(self, task){BODY}{RUNS})\n": "(mine.py:5): its admit takes (self, task) (right",
    f"    def ended(self, *, batch=1){BODY}{RUNS})\n": "(mine.py:5): its ended takes (self, *, batch=1) (right",
    f"    def start(self){BODY}{RUNS})\n": "(mine.py:5): its start takes (self) (right would be: def start(",
    f"    def decides(self, view, now){BODY}": "(mine.py:5): it has no decide, but decides (right would be: ",
    "    pass\n": "(mine.py:4): it has no decide (right would be: def decide(self, view, now))",
}


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize("text", WRONG)
def test_methods_that_cannot_be_asked_are_told_before_the_run(text, verb, tmp_path, monkeypatch, capsys):
    head = POLICY.rpartition("    def")[0]
    code, told = run_of(head + text, "dit-s2-256-rtx4090", monkeypatch, capsys, tmp_path, verb)
    assert code == 2
    assert f"policy Mine {WRONG[text]}" in told


def test_they_are_told_in_python_as_well():
    class Mine(Policy):
        def decide(self, view):
            return Decision()

    class Abstract(Policy, ABC):
        @abstractmethod
        def order(self): ...

    for kind, told in ((Mine, r"its decide takes \(self, view\)"), (Abstract, "it leaves order abstract")):
        with pytest.raises(servetwin.RunError, match=told):
            servetwin.run("dit-s2-256-rtx4090", policy=kind, requests=5)


def test_methods_that_say_it_otherwise_are_well():
    class Mine(Policy):
        def __init__(self):
            self.decide = self.order

        @staticmethod
        def admit(*anything):
            return True

        def order(self, v, t=0.0, more=None):
            return Decision([*v.waiting, *v.running][: v.limit])

    assert servetwin.run("dit-s2-256-rtx4090", policy=Mine, requests=5).summary["requests"] == 5


def test_what_a_view_refuses_is_told_of_the_policy(tmp_path, monkeypatch, capsys):
    for number, (workload, text, told) in enumerate(
        [
            ("dit-s2-256-rtx4090", f"{POLICY}        return view.estimate('unet', 1)\n", "no module 'unet' (right"),
            ("dit-s2-256-rtx4090", f"{POLICY}        return view.estimate('dit', 99)\n", "(right would be: 1 to 20)"),
            ("opt-13b-a6000", f"{TOKENS}        return view.estimate_decode(9**9, 9)\n", " as measured)"),
        ]
    ):
        code, said = run_of(text, workload, monkeypatch, capsys, tmp_path)
        line = 6 if number < 2 else 5
        assert code == 2
        assert f"policy Mine (mine.py:{line}): the policy failed: mine.py:{line}, in decide: " in said
        assert told in said
        assert "hold: true" not in said
