"""A policy of which a real engine makes no end: the run ends with one line that names policy, file, line and engine,
the requests that were live are recorded, and no process is left."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time

import pytest
from servetwin.core.errors import INVARIANTS, InvariantBroken, PolicyFault
from servetwin.core.llm import ALL, Step, TokenPolicy
from servetwin.experiments.backends.pipeline import AgentsBackend
from servetwin.experiments.cli import entry
from servetwin.experiments.spec.loading import load
from servetwin.real.vllm import engine_process
from servetwin.real.vllm.engine import EngineOptions, VllmEngine
from servetwin.real.vllm.plan import Planned
from servetwin.real.vllm.scheduler import Settings
from servetwin.real.vllm.watchdog import MANY, Watchdog

HEAD = """import itertools
import os
import time

from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    calls = 0

    def decide(self, view, now):
"""
SERVES = """        new = view.admissible([(task, task.pending) for task in view.waiting], decode=view.decoding)
        return Step(new, ALL)
"""
LINE = HEAD.count("\n") + 1
#: What a policy does, what is said of it, and at which line of its own (0: where its decide begins).
FAULTS = {
    "never schedules anything": ("        return Step()\n", "6 requests never ended, though nothing was left", 0),
    "raises": ("        return view.nothing\n", "the policy failed in decide: AttributeError", LINE),
    "leaves": ("        raise SystemExit(0)\n", "the policy failed in decide: SystemExit: 0", LINE),
    "idles by nanoseconds": ("        return Step(idle_until=now + 1e-9)\n", "times on end at llm, in", 0),
    "polls for ever": ("        return Step(idle_until=now + 0.001)\n", "and ran nothing of the 6 requests", 0),
    "loops": ("        while True:\n            pass\n", "decide at llm has not come back for", LINE),
    "sleeps": ("        time.sleep(1000)\n", "decide at llm has not come back for", LINE),
    "catches all": (
        "        while True:\n"
        "            try:\n                time.sleep(9)\n            except BaseException:\n                pass\n",
        "decide at llm has not come back for",
        LINE + 2,
    ),
}


def where(line: int) -> str:
    return f"policy Mine (mine.py:{line or LINE - 1}"


@pytest.fixture
def servetwin(monkeypatch, capsys, tmp_path):
    """Serve six requests under a policy of this body by a backend; gives exit code, what is said, and records."""

    def call(backend, body, *more):
        (tmp_path / "mine.py").write_text(HEAD + body)
        out = tmp_path / "run"
        command = ["run", "tiny-opt-cpu", "--backend", backend, "--any-device", "--requests", "6", "--rate", "40"]
        command += ["--policy", str(tmp_path / "mine.py"), "--out", str(out), *more]
        monkeypatch.setattr("sys.argv", ["servetwin", *command])
        code = entry._run()
        text = (out / "requests.jsonl").read_text() if (out / "requests.jsonl").exists() else ""
        said = capsys.readouterr().err.splitlines()
        return code, [line for line in said if line.startswith("servetwin:")], [*map(json.loads, text.splitlines())]

    return call


@pytest.fixture
def impatient(monkeypatch):
    """A second is all that a policy gets."""
    before = Settings.__init__.__defaults__
    monkeypatch.setattr(Settings.__init__, "__defaults__", (*before[:-1], 1.0))
    settings = AgentsBackend._settings

    def hurried(self, *given):
        told, make = settings(self, *given)
        return {**told, "longest": 1.0}, make

    monkeypatch.setattr(AgentsBackend, "_settings", hurried)
    monkeypatch.setattr("servetwin.real.vllm.watchdog.MANY", 20)


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS)
def test_a_policy_at_fault_in_this_process(servetwin, impatient, case):
    body, word, line = case
    code, said, records = servetwin("vllm", body)
    assert code == 2
    assert len(said) == 1
    assert word in said[0]
    assert where(line) in said[0]
    assert [r["outcome"] for r in records] == ["failed"] * len(records)
    assert records


@pytest.mark.parametrize("name", ["never schedules anything", "raises", "loops"])
def test_a_policy_at_fault_in_an_engine_s_process(servetwin, impatient, name):
    body, word, line = FAULTS[name]
    code, said, records = servetwin("real", body)
    assert code == 2
    assert len(said) == 1
    assert word in said[0]
    assert where(line) in said[0]
    assert [r["outcome"] for r in records] == ["failed"] * len(records)
    assert records
    assert multiprocessing.active_children() == []


def test_an_engine_that_gives_no_sign_of_life(servetwin, monkeypatch):
    monkeypatch.setattr(engine_process, "SILENT", 3.0)
    code, said, records = servetwin("real", "        return sum(itertools.repeat(1))\n")  # nobody else gets a turn
    assert code == 2
    assert f"{where(0)}): its engine llm has given no sign of life for 3 s" in said[0]
    assert records
    assert multiprocessing.active_children() == []


def test_an_engine_whose_process_ends(servetwin):
    code, said, records = servetwin("real", "        os.kill(os.getpid(), 9)\n")
    assert code == 1
    assert "the process of llm has ended (by signal 9)" in said[0]
    assert records
    assert multiprocessing.active_children() == []


@pytest.fixture(scope="module")
def engine(model):
    return VllmEngine(EngineOptions(model=str(model[0]), max_sequences=32, kv_bytes=16 << 20))


PLANNED = [Planned(i, 0.01 * i, 20, 5) for i in range(6)]


class Serves(TokenPolicy):
    def decide(self, view, now):
        return Step(view.admissible([(t, t.pending) for t in view.waiting], decode=view.decoding), ALL)


class Circles(TokenPolicy):
    """Preempts whoever has begun, together with the next or before it."""

    def __init__(self, together):
        self.together = together

    def decide(self, view, now):
        begun = list(view.running)
        if begun and not self.together:
            return Step((), [], preempt=begun)
        return Step([(next(iter(view.waiting)), 1)] if view.waiting else (), [], preempt=begun)


@pytest.mark.parametrize("together", [True, False])
def test_an_engine_that_goes_round_in_circles_breaks_invariant_13(engine, together):
    with pytest.raises(
        InvariantBroken, match=r"invariant 13 .*engine llm goes round in circles under policy Circles \(test_w"
    ):
        engine.serve(PLANNED, Settings(name="llm"), policy=Circles(together))
    assert INVARIANTS[13]
    assert len(engine.serve(PLANNED, Settings(name="llm"), policy=Serves()).requests) == 6


class Endless(Serves):
    """Does not come back from what is asked besides."""

    def __init__(self, method):
        setattr(self, method, self._loop)

    def _loop(self, *_):
        while True:
            pass


@pytest.mark.parametrize("method", ["start", "admit", "decide"])
def test_each_method_is_watched_and_the_engine_serves_the_next(engine, method):
    with pytest.raises(PolicyFault, match=rf"policy Endless \(test_watchdog.py:\d+\): {method} at llm has not come"):
        engine.serve(PLANNED, Settings(name="llm", longest=0.5), policy=Endless(method))
    run = engine.serve(PLANNED, Settings(name="llm"), policy=Serves())
    assert [r.outcome for r in run.requests] == ["finished"] * 6


class Patient(Serves):
    """Waits until all are there, and then a while longer."""

    def __init__(self):
        self.asked = []

    def decide(self, view, now):
        self.asked.append((now, len(view.waiting)))
        if len(view.waiting) < 6 and not view.running:
            return Step()
        if not view.running and now < 0.4:
            return Step(idle_until=0.4)
        return super().decide(view, now)


def test_a_policy_is_asked_again_when_something_came_or_it_is_time(engine):
    policy = Patient()
    run = engine.serve(PLANNED, Settings(name="llm", longest=0.5), policy=policy)
    assert [r.outcome for r in run.requests] == ["finished"] * 6
    before = [(now, count) for now, count in policy.asked if now < run.steps[0].decided]
    assert len(before) <= 8  # as often as something came, and when its time had come
    assert run.steps[0].start == pytest.approx(0.4, abs=0.1)


def test_idling_that_is_long_or_rare_is_no_fault():
    dog = Watchdog("llm", longest=5.0)
    for i in range(MANY - 1):  # polling, for longer than an engine may stand still, but not often
        dog.idled(Serves(), 1.0 * i, 1.0 * i + 1.0, 1)
    dog.stepped(False)
    for i in range(MANY + 1):  # often, but not for long
        dog.idled(Serves(), 0.001 * i, 0.001 * i + 0.001, 1)
    with pytest.raises(PolicyFault, match=r"idled 1002 times on end at llm"):
        dog.idled(Serves(), 6.0, 6.1, 1)


def test_idling_by_nanoseconds_is_told_by_what_was_asked_for():
    dog = Watchdog("llm")
    for i in range(9_999):  # half a millisecond passes between two answers
        dog.idled(Serves(), 0.0005 * i, 0.0005 * i + 1e-9, 1)
    with pytest.raises(
        PolicyFault, match=r"idled 10000 times on end at llm, the last 10000 of them to idle for 1e-0"
    ):
        dog.idled(Serves(), 5.0, 5.0 + 1e-9, 1)


def test_nobody_is_watched_after_a_run(engine):
    before = signal.getsignal(signal.SIGALRM)
    engine.serve(PLANNED, Settings(name="llm", longest=0.5), policy=Serves())
    assert signal.getsignal(signal.SIGALRM) == before
    time.sleep(0.8)  # nobody interrupts this


ONCE = """        self.calls += 1
        if self.calls == 1:
            with open({log!r}, "a") as log:
                log.write("new\\n")
"""


def test_a_policy_s_state_is_not_carried_over_to_the_next_run(tmp_path):
    """The engine's process stays from one run to the next; its policy is a new one."""
    (tmp_path / "mine.py").write_text(HEAD + ONCE.format(log=str(tmp_path / "log")) + SERVES)
    changes = [("requests", 6), ("rate", 40.0), ("policy", str(tmp_path / "mine.py"))]
    backend = AgentsBackend()
    try:
        first = backend.run(load("tiny-opt-cpu", changes))
        pid = backend.engines["llm"].process.pid
        second = backend.run(load("tiny-opt-cpu", changes))
        assert backend.engines["llm"].process.pid == pid
    finally:
        backend.close()
    assert first.summary.finished == second.summary.finished == 6
    assert (tmp_path / "log").read_text() == "new\nnew\n"
