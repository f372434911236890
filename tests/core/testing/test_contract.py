"""How the contract is told: one line and a drawing, by `assert_policy_contract`, fixtures and the command line."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servetwin.core import BadInput, Decision, Policy
from servetwin.core.testing import assert_policy_contract
from servetwin.core.testing.conduct import Shared, said
from servetwin.experiments.cli import entry
from servetwin.policies.diffusion.fcfs import FCFS

from servetwin.testing import run_under_invariants


class LIFO(Policy):
    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][::-1][: view.limit])


class Seeded(Policy):
    """Draws, but from a generator of its own that everybody can repeat."""

    starves = True  # by bad luck

    def __init__(self, seed: int = 7) -> None:
        self.dice = random.Random(seed)

    def decide(self, view, now):
        tasks = [*view.running, *view.waiting]
        self.dice.shuffle(tasks)
        return Decision(tasks[: view.limit])


def test_a_failure_is_told_in_one_line_with_the_schedule_below() -> None:
    with pytest.raises(AssertionError) as failed:
        assert_policy_contract(LIFO)
    line, _, drawing = str(failed.value).partition("\n\n")
    assert "\n" not in line
    assert "policy LIFO (test_contract.py:" in line
    assert "starves = True" in line
    assert "[scenario: " in line
    assert "#" in drawing
    assert "........." in drawing or "---------" in drawing


def test_a_generator_of_its_own_with_a_seed_is_no_fault() -> None:
    kept = assert_policy_contract(Seeded, seed=3)
    assert kept.decisions > 500


def test_what_declares_that_it_starves_may() -> None:
    class Declared(LIFO):
        starves = True

    assert assert_policy_contract(Declared).promises == 0


def test_factories_give_a_new_policy_each_time() -> None:
    one = Seeded()
    with pytest.raises(BadInput, match="the same object twice"):
        assert_policy_contract(lambda: one)
    with pytest.raises(BadInput, match="a class of policies"):
        assert_policy_contract(dict)


def test_a_profiler_that_listens_already_is_left_alone() -> None:
    """(Not cProfile, which from Python 3.12 on listens in a way of its own.)"""
    heard = []

    def listener(frame: object, event: str, value: object) -> None:
        heard.append(event)

    sys.setprofile(listener)
    try:
        assert_policy_contract(FCFS)
        assert sys.getprofile() is listener
    finally:
        sys.setprofile(None)
    assert heard


def test_who_listens_to_the_garbage_collector_is_not_taken_for_the_policy() -> None:
    def listens(phase: str, info: dict[str, int]) -> None:
        time.perf_counter()

    before = gc.get_threshold()
    gc.callbacks.append(listens)
    gc.set_threshold(1, 1, 1)
    try:
        assert_policy_contract(FCFS)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(listens)


def test_what_is_shared_is_told_apart_from_what_stays() -> None:
    class Holder(Policy):
        table = [1, {"a": (2, 3)}]  # noqa: RUF012
        dice = random.Random(1)

    shared = Shared(Holder)
    assert shared.changed() is None
    Holder.table[1]["a"] = (2, 4)
    assert shared.changed() == "Holder.table, which all its objects share"
    Holder.table[1]["a"] = (2, 3)
    assert shared.changed() is None
    Holder.dice.random()
    assert shared.changed() == "Holder.dice, which all its objects share"
    loop: list[object] = []
    loop.append(loop)
    assert said(loop) == said(loop)


def test_the_command_draws_it_as_well(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "last.py").write_text(
        "from servetwin.core import Decision, Policy\n\n\nclass Last(Policy):\n    def decide(self, view, now):\n"
        "        return Decision([*view.running, *view.waiting][::-1][: view.limit])\n"
    )
    monkeypatch.setattr("sys.argv", ["servetwin", "check", str(tmp_path / "last.py")])
    assert entry._run() == 2
    out, err = capsys.readouterr()
    assert "request" in out
    assert "#" in out
    assert err.count("\n") == 1
    assert "policy Last (last.py:5): it starves request" in err


def test_hashes_of_texts_show_in_another_process(monkeypatch, capsys) -> None:
    fault = Path(__file__).parents[2] / "policies" / "faults" / "hash_of_a_text.py"
    monkeypatch.setattr("sys.argv", ["servetwin", "check", str(fault)])
    assert entry._run() == 2
    assert "in another process it does not decide the same" in capsys.readouterr().err


SMALLEST = """from servetwin.core import Decision, Policy


class Whole(Policy):
    def decide(self, view, now):
        return Decision([*view.waiting][: view.limit], whole=True)


def test_by_fixtures(fake_worker, play_scenario, policy_contract):
    assert fake_worker(Whole(), waiting=[50, 20], limit=1).decide(now=0.0) == [0]
    play_scenario(Whole, [3, 2], limit=1).expect([0], [1])
    policy_contract(Whole)


def test_no_fixture_was_asked_for():
    assert True
"""


def test_pytest_has_the_fixtures_and_loads_nothing_else(tmp_path) -> None:
    (tmp_path / "test_it.py").write_text(SMALLEST)
    plugin = ["-p", "servetwin.pytest_plugin", "-p", "no:cacheprovider"]
    run = [sys.executable, "-m", "pytest", "-q", *plugin, "test_it.py"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    code = "import sys, servetwin.pytest_plugin; sys.exit('servetwin.core' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_whole_run_under_the_invariants() -> None:
    summary = run_under_invariants("dit-s2-256-rtx4090", policy=Seeded, rate=2.0, requests=20)
    assert summary.requests == 20


WITH_ACTIONS = """from servetwin.core import Decision, Policy, Repeat


class Acts(Policy):
    def decide(self, view, now):
        run = [*view.running, *view.waiting][: view.limit]
        if view.stage.actions is None:
            return Decision(run)
        begin = [task for task in run if task in view.waiting]
        return Decision(run, {})
"""


@pytest.mark.parametrize(
    ("acts", "told"),
    [
        ("steps={task: 1 for task in begin}", "it sets 1 steps for "),
        ("steps={task: 20 for task in begin}", "it sets 20 steps for "),
        ("reuse=[task for task in view.running if task in run and task.left > 1]", "is left with fewer than "),
        ("reuse=[task for task in view.running if task in run and task.may_skip]", "where none may be"),
        (
            "repeat=Repeat(2) if not begin and run[0].left > 2 else None, "
            "reuse=[t for t in run if view.stage.actions.reuse and t in view.running and t.may_skip and t.left % 2]",
            "a Repeat of its is false",
        ),
    ],
)
def test_a_wrong_action_with_steps_is_found(tmp_path, monkeypatch, capsys, acts: str, told: str) -> None:
    (tmp_path / "acts.py").write_text(WITH_ACTIONS.format(acts))
    monkeypatch.setattr("sys.argv", ["servetwin", "check", str(tmp_path / "acts.py")])
    assert entry._run() == 2
    err = capsys.readouterr().err
    assert told in err
    assert "requests may get fewer steps" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("acts", ["", "steps={t: view.stage.actions.fewest(t.asked) for t in begin}"])
def test_allowed_actions_with_steps_keep_the_contract(tmp_path, monkeypatch, capsys, acts: str) -> None:
    (tmp_path / "acts.py").write_text(WITH_ACTIONS.format(acts))
    monkeypatch.setattr("sys.argv", ["servetwin", "check", str(tmp_path / "acts.py")])
    assert not entry._run()
    assert "no fault found" in capsys.readouterr().out
