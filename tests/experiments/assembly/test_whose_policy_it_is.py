"""Less is looked at where a policy comes along than where it is a user's. What a program has changed of one that
comes along is the program's, in this run and the next; what an object has of its own is asked as of a class."""

from __future__ import annotations

import pytest
from servetwin.core import Decision
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.isolation.integrity import comes_along
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load
from servetwin.policies.diffusion import _queue, edf
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.neustream import NeuStream

import servetwin

FULL = {"requests": 200, "rate": 150.0}  # of dit-s2-256-h100: more wait than a batch holds

OVER = """
def decide(self, view, now):
    tasks = [*view.running, *view.waiting]
    return Decision(tasks) if len(tasks) > view.limit else plain(self, view, now)
"""


def code_of_ours(text):
    """The function `decide` of *text*, which says of itself that it stands in the file of EDF."""
    names = {"Decision": Decision, "__name__": edf.__name__, "plain": EDF.decide}
    exec(compile(text, edf.__file__, "exec"), names)
    return names["decide"]


def form(self):
    while self.others:
        self.batch = [*self.batch, self.others.pop(0)[2]]


@pytest.mark.parametrize("name", ["decide", "_form", "__code__"])
@pytest.mark.parametrize("before", [False, True])
def test_a_policy_of_ours_that_was_changed_is_looked_after(name, before, monkeypatch):
    if before:
        servetwin.run("dit-s2-256-h100", policy="edf", **FULL)
    if name == "__code__":
        monkeypatch.setattr(EDF._form, "__code__", form.__code__.replace(co_filename=edf.__file__))
    else:
        monkeypatch.setattr(EDF, name, form if name == "_form" else code_of_ours(OVER))
    assert not comes_along(EDF)
    with pytest.raises(servetwin.RunError, match=r"policy EDF .*: a batch of 9 is over the limit of 8 of dit"):
        servetwin.run("dit-s2-256-h100", policy="edf", **FULL)
    monkeypatch.undo()
    assert comes_along(EDF)
    servetwin.run("dit-s2-256-h100", policy="edf", **FULL)


@pytest.mark.parametrize("before", [False, True])
def test_what_a_changed_one_writes_is_noticed_whatever_it_was_before(before, monkeypatch):
    plain = EDF.admit

    def admit(self, task, view, now):
        task.request.deadline += 10.0
        return plain(self, task, view, now)

    if before:
        servetwin.run("dit-s2-256-h100", policy="edf", **FULL)
    monkeypatch.setattr(EDF, "admit", admit)
    with pytest.raises(servetwin.RunError, match="it wrote deadline of request 0"):
        servetwin.run("dit-s2-256-h100", policy="edf", **FULL)


def test_what_stands_beside_a_policy_of_ours_counts_too(monkeypatch):
    kind = next(k for k in vars(_queue).values() if getattr(k, "__module__", "") == _queue.__name__)
    assert comes_along(NeuStream)
    monkeypatch.setattr(kind, next(n for n, t in vars(kind).items() if callable(t)), lambda self: None)
    assert not comes_along(NeuStream)
    assert comes_along(EDF)


@pytest.mark.parametrize("made", [lambda: type("Sub", (EDF,), {"admit": EDF.admit}), lambda: type("Sub", (EDF,), {})])
def test_a_class_made_elsewhere_is_none_of_ours(made):
    kind = made()
    kind.__module__ = edf.__name__
    assert not comes_along(kind)


def test_no_batch_is_over_the_limit_whoever_decides(monkeypatch):
    # As of a file that was put beside ours.
    monkeypatch.setattr("servetwin.core.isolation.integrity.comes_along", lambda kind: True)

    class Over(EDF):
        def decide(self, view, now):
            tasks = [*view.running, *view.waiting]
            return Decision(tasks) if len(tasks) > view.limit else super().decide(view, now)

    with pytest.raises(servetwin.RunError, match=r"policy Over .*: a batch of 9 is over the limit of 8 of dit"):
        servetwin.run("dit-s2-256-h100", policy=Over, **FULL)


HEAD = "from servetwin.core.llm import ALL, Step, TokenPolicy\n\n\nclass Mine(TokenPolicy):\n"

HALVES = f"""{HEAD}
    def decide(self, view, now):
        prefill = []
        for task in [*view.running, *view.waiting]:
            half = min(task.pending, 64) // 2
            if not task.decoding and not prefill and half:
                prefill = [(task, half), (task, half)] if task in view.running else [(task, half)]
        return Step(prefill, () if prefill else ALL)
"""


def test_a_step_prefills_no_task_twice(tmp_path):
    (tmp_path / "mine.py").write_text(HALVES)
    with pytest.raises(servetwin.RunError, match=r"prefill of its decision holds <TokenTask of 0 at llm: .*> twice"):
        servetwin.run("opt-13b-h100", policy=tmp_path / "mine.py", requests=20)


@pytest.mark.parametrize("by", ["class", "object"])
def test_an_object_is_asked_whom_it_admits_as_a_class_is(by, tmp_path):
    own = {"class": "pass", "object": "self.admit = self._even"}[by]
    method = {"class": "admit", "object": "_even"}[by]
    (tmp_path / "mine.py").write_text(
        f"""{HEAD}
    def __init__(self):
        {own}

    def {method}(self, task, view, now):
        return task.id % 2 == 0

    def decide(self, view, now):
        prefill = view.admissible([(t, t.pending) for t in view.waiting])
        return Step(prefill) if prefill else Step(decode=ALL)
"""
    )
    found = servetwin.run("opt-13b-h100", policy=tmp_path / "mine.py", requests=20)
    assert [row["outcome"] == "dropped" for row in found.requests.to_dicts()] == [False, True] * 10


@pytest.mark.parametrize(("workload", "policy"), [("dit-s2-256-h100", "edf"), ("sd15-512-h100-graphs", "neustream")])
def test_a_run_that_is_watched_takes_the_times_of_its_policy(workload, policy):
    point = load(workload, [("policy", policy), ("requests", 60)])
    plain, checker = build(point).play().as_dict(), InvariantChecker()
    run = build(point, checker)
    checker.watch(run.loop)
    assert run.play().as_dict() == plain
