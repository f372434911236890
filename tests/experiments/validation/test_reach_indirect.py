"""Roundabout ways of writing what a policy only reads, and answers that lie; and honest policies of odd style."""

import pytest
from servetwin.core import Policy
from servetwin.core.isolation.purity import innocent
from servetwin.core.isolation.task_ledger import WRITABLE
from servetwin.experiments.registry import policy_registry
from test_reach import DECIDE, FILL, RUN, STEPS, TASKS, TOKENS, refused, soon, told  # noqa: F401

CASES = {
    "functools.update_wrapper": (
        "import functools\n\n\nclass One:\n    left = 1\n",
        "            try:\n                functools.update_wrapper(task, One, assigned=('left',), updated=())\n"
        "            except AttributeError:\n                pass\n",
    ),
    "copy": (
        "import copy",
        "            copy._reconstruct(task, None, lambda: task, (), (None, {'left': 1}))\n",
    ),
    "argparse": (
        "import argparse\n\nP = argparse.ArgumentParser()\nP.add_argument('--left', type=int)",
        "            P.parse_args(['--left', '1'], namespace=task)\n",
    ),
    "timeit": ("import timeit", "            timeit.timeit('t.left = 1', globals={'t': task}, number=1)\n"),
    "pkgutil": (
        "import pkgutil\n\nput = pkgutil.resolve_name('builtins:set' + 'attr')",
        "            put(task, 'left', 1)\n",
    ),
    "pydoc": ("import pydoc\n\nput = pydoc.locate('builtins.set' + 'attr')", "            put(task, 'left', 1)\n"),
    "annotations": (
        "import typing\n\n\ndef hints(a: 'set' 'attr(t, \"left\", 1) or int'):\n    pass\n",
        "            typing.get_type_hints(hints, {'t': task})\n",
    ),
    "code": (
        "import code",
        "            code.InteractiveInterpreter({'t': task}).runsource('t.left = 1', symbol='exec')\n",
    ),
    "a module behind a module": (
        "import collections\nimport string\n",
        "            there = collections._sys.modules['built' + 'ins']\n"
        "            string.Formatter().get_field('0.set' + 'attr', [there], {})[0](task, 'left', 1)\n",
    ),
    "a pattern": (
        "",
        "            match task:\n                case object(request=r):\n                    r.work['dit'] = 1\n",
    ),
    "another module's name": (
        "import copy\n\n__name__ = 'servetwin.core.policy'\n",
        "            copy._reconstruct(task, None, lambda: task, (), (None, {'left': 1}))\n",
    ),
    "a deleted attribute": ("", "            del task.left\n"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_way_of_writing_that_no_name_tells_is_found_out(case, monkeypatch, capsys, tmp_path):
    above, statement = case
    head = STEPS.replace("\n\n\nclass", f"\n{above}\n\n\nclass")
    text = f"{head}{DECIDE}{TASKS}{statement}{RUN}"
    refused(told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", text), "which policies may only read")


OURS = {
    "a function, as it is loaded": (
        "import servetwin.core.serving.loop as L\n\nL.latest = lambda d: d + 99", "", "", 3,
    ),
    "a method, as it is loaded": (
        "from servetwin.core import ServingLoop\n\nServingLoop.leave = lambda self, task, now: None", "", "", 3,
    ),
    "the books": ("import servetwin.core.isolation.task_ledger as B\n"
        "\nB.Books.take = lambda self, d: tuple(d.run)", "", "", 3),
    "a builtin name": ("import servetwin.core.serving.loop as L\n\nL.min = lambda *a: 1", "", "", 3),
    "a function, as it is made": (
        "import servetwin.core.serving.loop as L",
        "    def __init__(self):\n        L.latest = lambda d: d + 99\n\n", "", 6,
    ),
    "a function, in a run": (
        "import servetwin.core.serving.loop as L", "", "        L.latest = lambda d: d + 99\n", 7,
    ),
    "defaults of a function": (
        "from servetwin.core.llm import CumulativeSLO", "",
        "        CumulativeSLO.met = lambda self, task: True\n", 7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OURS.values(), ids=OURS)
def test_who_changes_servetwin_itself_is_found_out_and_it_is_put_back(case, monkeypatch, capsys, tmp_path):
    above, members, statement, _ = case
    head = STEPS.replace("\n\n\nclass", f"\n{above}\n\n\nclass")
    text = f"{head}{members}{DECIDE}{statement}{RUN}"
    code, out, err = told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", text)
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert "mine.py:" in err, err
    assert "it wrote servetwin.core." in err, err
    code, out, err = told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", STEPS + DECIDE + RUN)
    assert code == 0, err
    assert "met" in out, err


ENDS = {
    "leaves as it is made": (
        "    def __init__(self):\n        raise SystemExit(0)\n\n" + DECIDE + RUN,
        "SystemExit: 0",
    ),
    "leaves at the start": ("    def start(self, view):\n        raise SystemExit\n\n" + DECIDE + RUN, "SystemExit"),
    "fails as it is made": (
        "    def __init__(self):\n        raise ValueError('x')\n\n" + DECIDE + RUN,
        "ValueError: x",
    ),
    "forgets to answer": (
        "    def admit(self, task, view, now):\n        pass\n\n" + DECIDE + RUN,
        "admit returned None (right would be: True or False)",
    ),
    "is ahead in words": ("    ahead = 'yes'\n\n" + DECIDE + RUN, "its ahead is 'yes'"),
    "is whole in words": (DECIDE + RUN.replace("])", "], whole='no')"), "whole of its decision is 'no'"),
    "cannot tell its error": (
        "    class Bad(Exception):\n        def __str__(self):\n            raise ValueError\n\n"
        + DECIDE
        + "        raise self.Bad\n",
        "Bad",
    ),
    "speaks as we do": (
        DECIDE + "        from servetwin.core import InvariantBroken\n        raise InvariantBroken('x')\n",
        "the policy failed",
    ),
    "stops as we do": (
        DECIDE + "        from servetwin.core.errors import Stopped\n        raise Stopped('x')\n",
        "the policy failed",
    ),
    "gives a list whose length lies": (
        "    class Full(list):\n        def __len__(self):\n            return 1\n\n"
        + DECIDE
        + "        return Decision(self.Full())\n",
        "run of its decision is true, and holds no tasks",
    ),
    "idles for longer than a float": (
        DECIDE + "        return Decision(idle_until=10**400)\n",
        "it idles until 1000",
    ),
    "takes itself for a watcher": (
        "    watches = True\n    inner = None\n\n" + DECIDE + TASKS + "            task.left = 1\n" + RUN,
        "left of task",
    ),
}


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS)
def test_what_a_policy_says_is_an_answer_or_is_refused(case, monkeypatch, capsys, tmp_path):
    body, word = case
    refused(told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", STEPS + body), word)


AHEAD = (
    STEPS + "    ahead = True\n\n" + DECIDE + "{}"
    "        busy = {{t for b in (view.in_flight, *view.backlog) if b for t in b.tasks}}\n"
    "        free = [t for t in [*view.running, *view.waiting] if t not in busy][: view.limit]\n"
    "        return Decision(free if len(view.backlog) < 1 else [])\n"
)


def test_what_stands_in_a_batch_that_is_shown_cannot_be_changed(monkeypatch, capsys, tmp_path):
    clear = "        for b in view.backlog:\n            if b.joiners:\n                b.joiners.clear()\n"
    found = told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", AHEAD.format(clear))
    refused(found, "'tuple' object has no attribute 'clear'")
    assign = "        for b in view.backlog:\n            b.joiners = b.tasks = ()\n"
    _, changed, _ = told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", AHEAD.format(assign))
    _, plain, _ = told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", AHEAD.format(""))
    assert [line for line in changed.splitlines() if "served in" not in line] == [
        line for line in plain.splitlines() if "served in" not in line
    ]


TOKEN_CASES = {
    "the view's own dictionary": (
        "        from servetwin.core.llm import TokenView\n"
        "        TokenView.__dict__['__dict__'].__get__(view)['free_blocks'] = 10**6\n" + FILL,
        "free_blocks of its view",
    ),
    "a budget, by copy": (
        "        import copy\n" + TASKS + "            copy._reconstruct(task, None, lambda: task, (), "
        "(None, {'budget': 9.0}))\n" + FILL,
        "budget of task",
    ),
    "a step that was changed": (
        FILL.replace("return Step(fits)", "step = Step(fits)")
        + "        step.plain = 2\n        return step\n",
        "plain of its decision is 2",
    ),
    "beyond the profile": ("        view.estimate_decode(10**9, 10**12)\n" + FILL, "the policy failed: mine.py:7"),
    "fewer than no repeats": (
        FILL.replace("Step(decode=ALL)", "Step(decode=ALL, repeat=Repeat(-5))"), "it repeats its decision -5 times",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKEN_CASES.values(), ids=TOKEN_CASES)
def test_likewise_for_an_engine(case, monkeypatch, capsys, tmp_path):
    body, word = case
    refused(told(monkeypatch, capsys, tmp_path, "opt-13b-a6000", TOKENS + DECIDE + body), word)


PAST = {
    "finished": ("old is not task and old.finished", "old.finished = 0.0", "of a visit of request"),
    "tokens": ("hasattr(old, 'base_generated') and old.finished", "old.base_generated = 1", "of a visit of request"),
    "tasks": ("old is task and len(task.request.tasks) < 9", "task.request.tasks.append(old)", "tasks of request"),
}


@pytest.mark.parametrize("case", PAST.values(), ids=PAST)
def test_stays_that_are_over_cannot_be_rewritten(case, monkeypatch, capsys, tmp_path):
    if_so, statement, word = case
    body = f"{'':12}for old in list(task.request.tasks):\n{'':16}if {if_so}:\n{'':20}{statement}\n"
    text = TOKENS + DECIDE + TASKS + body + FILL
    refused(told(monkeypatch, capsys, tmp_path, "matplotagent-rtx4090", text), word)


HONEST = {
    "dataclass": (
        "from dataclasses import dataclass, field\n\nfrom servetwin.core import Decision, Policy\n\n\n@dataclass\n"
        "class Mine(Policy):\n    seen: dict = field(default_factory=dict)\n\n" + DECIDE + RUN
    ),
    "type checking": (
        "from __future__ import annotations\n\nfrom typing import TYPE_CHECKING\n\n"
        "from servetwin.core import Decision, Policy\n\n"
        "if TYPE_CHECKING:\n    from collections.abc import Sequence\n\n\n"
        "class Mine(Policy):\n    def __init__(self, a: Sequence[int] | None = None) -> None:\n        self.a = a\n\n"
        + DECIDE
        + RUN
    ),
    "numpy": "import numpy as np\n" + STEPS + DECIDE + "        np.minimum(1, view.limit)\n" + RUN,
    "cached": (
        "from functools import cached_property, lru_cache\n" + STEPS + "    @cached_property\n    def most(self):\n"
        "        return 1000\n\n" + DECIDE + RUN.replace("view.limit", "min(self.most, view.limit)")
    ),
}


@pytest.mark.parametrize("case", HONEST)
def test_honest_policies_of_any_style_are_served(case, monkeypatch, capsys, tmp_path):
    code, out, err = told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", HONEST[case])
    assert code == 0, err
    _, plain, _ = told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", STEPS + DECIDE + RUN)
    assert _results(out) == _results(plain)


def _results(out: str) -> list[str]:
    """What was printed, without the policy's name and how long the run took."""
    return [line for line in out.splitlines()[1:] if " served in " not in line]


@pytest.mark.parametrize("case", ["numpy", "cached"])
def test_and_their_code_needs_no_books(case, tmp_path):
    (tmp_path / "mine.py").write_text(HONEST[case])
    assert innocent(policy_registry.make(str(tmp_path / "mine.py"), {}), WRITABLE)


def test_a_class_that_others_made_or_changed_is_read_as_it_is():
    """Its module, or what it says is its module, need not hold the code that runs."""
    text = "class Made(Policy):\n    def decide(self, view, now):\n        view.task.left = 1\n"
    names = {"Policy": Policy}
    exec(text, names)
    assert not innocent(names["Made"](), WRITABLE)

    class Changed(policy_registry.find_policy("fcfs")):
        pass

    def write(self, view, now):
        view.task.left = 1

    write.__module__ = "servetwin.policies.diffusion.fcfs"
    Changed.__module__ = "servetwin.policies.diffusion.fcfs"
    Changed.decide = write
    assert not innocent(Changed(), WRITABLE)
    assert innocent(policy_registry.make("fcfs", {}), WRITABLE)
