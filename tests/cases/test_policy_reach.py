"""A policy's reach: case 16 (a policy wrote what it only reads, and looked where nobody may) and variants of it.

Other ways of writing, looking, answering wrongly and never finishing; by the command line, `check`, sweeps, searches
and Python; under policies for steps and for tokens, in turn and ahead. Each ends in one line that names policy, file
and line, with exit code 2."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from by_command import refused, sets, steps, summary, toy
from servetwin.core.invariants import watchdog

import servetwin

STEPS = "from servetwin.core import Decision, Policy, Repeat\n\n\nclass Mine(Policy):\n"
TOKENS = "from servetwin.core import Repeat\nfrom servetwin.core.llm import ALL, Step, TokenPolicy\n\n\n"
TOKENS += "class Mine(TokenPolicy):\n"
DECIDE = "    def decide(self, view, now):\n"
RUN = "        return Decision([*view.running, *view.waiting][: view.limit])\n"
FILL = (
    "        fits = view.admissible([(t, t.pending) for t in view.waiting])\n"
    "        return Step(fits) if fits else Step(decode=ALL)\n"
)
EACH = "        for task in [*view.running, *view.waiting]:\n"
ON_STEPS = ("run", "dit-xl2-256-rtx4090", "--rate", 2, "--requests", 30)
ON_TOKENS = ("run", "opt-13b-a6000", "--rate", 2, "--requests", 30)

# -- writing and looking ------------------------------------------------------------------------------------------

WRITES = {
    "16 case: shortcut": (ON_STEPS, STEPS + DECIDE + EACH + "            task.left = 1\n" + RUN, "it wrote left", 7),
    "16 case: later": (
        ON_STEPS,
        STEPS + "    def admit(self, task, view, now):\n        task.request.deadline = 1e9\n        return True\n\n"
        + DECIDE + RUN,
        "it wrote deadline", 6,
    ),
    "16 case: peek": (
        ON_TOKENS,
        TOKENS + DECIDE + "        {t: t.worker._engine._lengths[t] for t in view.waiting}\n" + FILL,
        "AttributeError", 7,
    ),
    "16 as it ends": (
        ON_STEPS,
        STEPS + "    def ended(self, batch, view, now):\n        for task in batch.tasks:\n"
        "            task.request.deadline += 60.0\n\n" + DECIDE + RUN,
        "it wrote deadline", 7,
    ),
    "16 in a helper": (
        ON_STEPS,
        "def hurry(tasks):\n    for task in tasks:\n        task.left -= 1\n\n\n" + STEPS + DECIDE
        + "        hurry(view.running)\n" + RUN,
        "it wrote left", 3,
    ),
    "16 by augmented names": (
        ON_STEPS, STEPS + DECIDE + EACH + "            vars(type(task))['left'].__set__(task, 2)\n" + RUN,
        "which policies may only read", None,
    ),
    "16 the clock of a step": (
        ON_TOKENS, TOKENS + DECIDE + EACH + "            task._generated = 9\n" + FILL, "generated", None,
    ),
    "16 an engine's memory": (
        ON_TOKENS, TOKENS + DECIDE + "        view.free_blocks = 10**6\n" + FILL, "free_blocks", 7,
    ),
    "16 the true length, by closures": (
        ON_TOKENS, TOKENS + DECIDE + "        view.estimate_decode.__closure__[0]\n" + FILL, "AttributeError", 7,
    ),
    "16 the request's own": (
        ON_TOKENS, TOKENS + DECIDE + EACH + "            task.request.outputs['llm']\n" + FILL, "TypeError", 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("case", WRITES.values(), ids=WRITES)
def test_16_who_writes_or_looks_is_told(case, ahead, here) -> None:
    command, text, word, line = case
    (here / "mine.py").write_text(text)
    more = sets(deployment__workers__0__engine__asynchronous=True) if ahead and command is ON_TOKENS else []
    if ahead and command is ON_STEPS:
        (here / "mine.py").write_text(
            text.replace("class Mine(Policy):\n", "class Mine(Policy):\n    ahead = True\n")
        )
        line = None
        if "batch.tasks" in text or "ended" in text:
            pytest.skip("what runs ahead is decided while it runs")
    said = refused(*command, "--policy", "./mine.py", *more)
    if not (ahead and command is ON_STEPS):
        assert word in said, said
    assert f"policy Mine (mine.py:{'' if line is None else line}" in said, said


BY = {
    "16 check": ("check", "./mine.py"),
    "16 check on an experiment": ("check", "./mine.py", "dit-xl2-256-rtx4090"),
    "16 sweep": ("sweep", "s.yaml", "--out", "rows.csv"),
    "16 search": ("search", "dit-xl2-256-rtx4090", "--policy", "./mine.py", "--seeds", 2, "--requests", 50),
}


@pytest.mark.parametrize("command", BY.values(), ids=BY)
def test_16_by_whatever_command(command, here) -> None:
    (here / "mine.py").write_text(WRITES["16 case: shortcut"][1])
    (here / "s.yaml").write_text(
        "extends: dit-xl2-256-rtx4090\nset: {workload.requests: 30}\ngrid: {rate: [1, 2], policy: [edf, ./mine.py]}\n"
    )
    said = refused(*command, out=True)
    assert "policy Mine (mine.py:7)" in said
    assert "it wrote left" in said
    assert not (here / "rows.csv").exists()


def test_16_in_python() -> None:
    class Later(servetwin.Policy):
        def admit(self, task, view, now):
            task.request.deadline = 1e9
            return True

        def decide(self, view, now):
            return servetwin.Decision([*view.running, *view.waiting][: view.limit])

    with pytest.raises(servetwin.RunError, match=r"policy Later \(test_policy_reach\.py:\d+\): it wrote deadline"):
        servetwin.run("dit-xl2-256-rtx4090", rate=2, requests=30, policy=Later)


# -- answers that are none ----------------------------------------------------------------------------------------

NO_LISTS = ("False", "0", "None", "''", "{}", "set()", "0.0", "b''")
ODD = {
    **{f"16 Step(drop={x})": (TOKENS, f"Step(decode=ALL, drop={x})", "drop of its decision") for x in NO_LISTS},
    **{f"16 Step(preempt={x})": (TOKENS, f"Step(decode=ALL, preempt={x})", "preempt of its") for x in NO_LISTS},
    **{f"16 Step({x})": (TOKENS, f"Step({x}, ALL)", "prefill of its decision") for x in NO_LISTS},
    **{
        f"16 Step(decode={x})": (TOKENS, f"Step([(t, t.pending) for t in view.waiting], {x})", "decode of its")
        for x in NO_LISTS
    },
    **{
        f"16 Decision(drop={x})": (STEPS, f"Decision([*view.waiting], drop={x})", "drop of its decision")
        for x in NO_LISTS
    },
    **{f"16 Decision({x})": (STEPS, f"Decision({x})", "run of its decision") for x in NO_LISTS},
}


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("case", ODD.values(), ids=ODD)
def test_16_what_is_false_and_no_list_is_no_answer(case, ahead, here) -> None:
    head, answer, word = case
    (here / "mine.py").write_text(f"{head}{DECIDE}        return {answer}\n")
    toy(here, [(1.0 + i / 9, 50, 5) for i in range(9)])
    steps(here, [(1.0 + i / 9, 5) for i in range(9)])
    if head is STEPS:
        if ahead:
            (here / "mine.py").write_text(
                (here / "mine.py").read_text().replace(DECIDE, "    ahead = True\n" + DECIDE)
            )
        refused("run", "steps.yaml", "--policy", "./mine.py", says=("policy Mine (mine.py:", word, "a list of tasks"))
        return
    more = sets(deployment__workers__0__engine__asynchronous=ahead)
    refused(
        "run", "llm.yaml", "--policy", "./mine.py", *more, says=("policy Mine (mine.py:", word, "a list of tasks")
    )


CHANGED = {
    "16 a step to drop by": "step.drop = [*view.waiting][:1]",
    "16 a step to preempt by": "step.preempt = [*view.running][:1]",
    "16 a step to prefill by": "step.prefill = [(t, 1) for t in view.waiting]",
    "16 a step of another kind": "step.plain = 2",
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_16_a_step_that_is_changed_once_it_is_made_is_found_out(change, here) -> None:
    """Engines go by what a step said when it was made: what is set later would be passed over."""
    body = FILL.replace(
        "return Step(fits) if fits else Step(decode=ALL)", "step = Step(fits) if fits else Step(decode=ALL)"
    )
    extra = f"        if not fits and (view.running or view.waiting):\n            {change}\n        return step\n"
    (here / "mine.py").write_text(TOKENS + DECIDE + body + extra)
    toy(here, [(1.0, 50, 50), *((1.1 + i / 50, 4000, 5) for i in range(9))])
    refused("run", "llm.yaml", "--policy", "./mine.py", *sets(deployment__workers__0__engine__blocks=300),
            says=("its Step was changed after it was made", "a new Step"))  # fmt: skip


def test_16_an_empty_list_or_tuple_is_one(here) -> None:
    toy(here, [(1.0 + i / 9, 50, 5) for i in range(9)])
    met = []
    for empty in ("[]", "()", "[][:1]"):
        (here / "mine.py").write_text(
            TOKENS + DECIDE + FILL.replace("decode=ALL)", f"{empty}, ALL, drop={empty}, preempt={empty})")
        )
        met.append(summary("llm.yaml", "--policy", "./mine.py")["met"])
    assert met == [9, 9, 9]


# -- never finishing ----------------------------------------------------------------------------------------------

FOR_EVER = {
    "16 a loop": DECIDE + "        while True:\n            pass\n",
    "16 a loop that catches": DECIDE + "        while True:\n            try:\n                sorted(range(999))\n"
    "            except BaseException:\n                pass\n",
    "16 one that answers as it is caught": DECIDE + "        try:\n            while True:\n                pass\n"
    "        except BaseException:\n    " + RUN,
    "16 one that goes on at last": DECIDE + "        try:\n            while True:\n                pass\n"
    "        finally:\n    " + RUN,
    "16 sleeping": "    import time\n\n" + DECIDE + "        self.time.sleep(10**6)\n",
    "16 waiting for a lock": "    import threading\n\n" + DECIDE + "        lock = self.threading.Lock()\n"
    "        lock.acquire()\n        lock.acquire()\n",
    "16 in a helper": "    def search(self):\n        while True:\n            pass\n\n" + DECIDE
    + "        self.search()\n",
    "16 in a generator": DECIDE + "        return Decision([t for t in view.waiting for _ in iter(int, 1) if 0])\n",
    "16 for ever deeper": DECIDE + "        n = 1\n        while n:\n            n += self.more(n)\n\n"
    "    def more(self, n):\n        return n % 7\n",
    "16 admit": "    def admit(self, task, view, now):\n        while True:\n            pass\n\n" + DECIDE + RUN,
    "16 ended": "    def ended(self, batch, view, now):\n        while True:\n            pass\n\n" + DECIDE + RUN,
    "16 start": "    def start(self, view):\n        while True:\n            pass\n\n" + DECIDE + RUN,
    "16 as it is made": "    def __init__(self):\n        while True:\n            pass\n\n" + DECIDE + RUN,
    "16 as it is loaded": DECIDE + RUN + "\n\nwhile True:\n    pass\n",
}  # fmt: skip


@pytest.fixture
def soon(monkeypatch):
    """A call may take a quarter of a second."""
    monkeypatch.setenv(watchdog.SETTING, "0.25")
    threads = {thread.name for thread in threading.enumerate()}
    yield
    assert {thread.name for thread in threading.enumerate()} <= threads


@pytest.mark.parametrize("case", FOR_EVER.values(), ids=FOR_EVER)
def test_16_a_call_that_never_ends_is_ended(case, soon, here) -> None:
    steps(here, [(1.0 + i / 9, 5) for i in range(9)])
    (here / "mine.py").write_text(STEPS + case)
    before = signal.getsignal(signal.SIGRTMIN + 11)
    said = refused(
        "run", "steps.yaml", "--policy", "./mine.py", says=("has taken 0.25 s and does not come to an end",)
    )
    loaded = "its loading" in said
    assert ("policy mine.py:" if loaded else "policy Mine (mine.py:") in said, said
    if not loaded and "__init__" not in said:
        assert "at worker loop" in said, said
    number = int(said.partition("mine.py:")[2].partition(")" if not loaded else ":")[0])
    line = (here / "mine.py").read_text().splitlines()[number - 1].strip()
    assert line in case, line
    assert signal.getsignal(signal.SIGRTMIN + 11) == before


@pytest.mark.parametrize("ahead", [False, True], ids=["16 in turn", "16 ahead"])
def test_16_likewise_where_tokens_are_decided(ahead, soon, here) -> None:
    toy(here, [(1.0 + i / 9, 50, 5) for i in range(9)])
    (here / "mine.py").write_text(TOKENS + DECIDE + "        while True:\n            pass\n")
    more = sets(deployment__workers__0__engine__asynchronous=ahead)
    refused("run", "llm.yaml", "--policy", "./mine.py", *more, says=("policy Mine (mine.py:", "decide at worker llm"))


COMMANDS = {
    "16 check": ("check", "./mine.py", "steps.yaml"),
    "16 sweep": ("sweep", "s.yaml", "--out", "rows.csv"),
    "16 search": ("search", "steps.yaml", "--seeds", 1, "--policy", "./mine.py", *sets(workload__arrivals__rate=1)),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_16_by_other_commands_too(command, soon, here) -> None:
    steps(here, [(1.0 + i / 9, 5) for i in range(60)])
    (here / "mine.py").write_text(STEPS + FOR_EVER["16 a loop"])
    (here / "s.yaml").write_text("extends: steps.yaml\ngrid: {slo.seconds: [1, 2], policy: [edf, ./mine.py]}\n")
    refused(*command, says=("policy Mine (mine.py:", "does not come to an end"), out=True)


class Endless(servetwin.Policy):
    def decide(self, view, now):
        while True:
            pass


@pytest.mark.parametrize("thread", [False, True], ids=["16 in the main thread", "16 in another thread"])
def test_16_from_python(thread, soon, here) -> None:
    steps(here, [(1.0 + i / 9, 5) for i in range(9)])
    found = []

    def go():
        with pytest.raises(
            servetwin.RunError, match=r"policy Endless \(test_policy_reach\.py:\d+\): one call of decide"
        ):
            servetwin.run("steps.yaml", policy=Endless)
        found.append(servetwin.run("steps.yaml", policy="edf").attainment)

    if thread:
        one = threading.Thread(target=go)
        one.start()
        one.join()
    else:
        go()
    assert found == [1.0]


def test_16_a_script_that_holds_the_policy_itself_is_no_call_of_it(here) -> None:
    """The frame of the script, which is of the policy's file, lasts as long as the run."""
    steps(here, [(1.0 + i, 3) for i in range(4)])
    (here / "script.py").write_text(
        "import time\n\nimport servetwin\n\n\nclass Mine(servetwin.Policy):\n" + DECIDE
        + "        time.sleep(0.05)\n" + RUN.replace("Decision", "servetwin.Decision")
        + "\n\nprint(servetwin.run('steps.yaml', policy=Mine).attainment)\n"
    )  # fmt: skip
    environment = {**os.environ, watchdog.SETTING: "0.3"}
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "1.0\n", done.stderr


def test_16_many_calls_are_not_one(monkeypatch, here) -> None:
    """The run takes longer than a call may, and each call is short."""
    monkeypatch.setenv(watchdog.SETTING, "0.2")
    steps(here, [(1.0 + i, 3) for i in range(20)])
    text = STEPS.replace("\n\n\nclass", "\nimport time\n\n\nclass") + DECIDE + "        time.sleep(0.02)\n" + RUN
    (here / "mine.py").write_text(text)
    assert summary("steps.yaml", "--policy", "./mine.py")["met"] == 20


def test_16_nothing_but_the_process_stops_who_catches_everything(here) -> None:
    """As a command, even that ends with the line and exit code 2."""
    steps(here, [(1.0 + i / 9, 5) for i in range(9)])
    nest = "        while True:\n            try:\n                while True:\n                    try:\n"
    nest += "                        sum(x for x in range(100))\n                    except BaseException:\n"
    nest += "                        continue\n            except BaseException:\n                continue\n"
    (here / "mine.py").write_text(STEPS + DECIDE + nest)
    code = "import sys; from servetwin.core.invariants import watchdog; watchdog.TRIES = 2; watchdog.AGAIN = 0.1\n"
    code += "from servetwin.experiments.cli.entry import main; main()"
    command = [sys.executable, "-c", code, "run", "steps.yaml", "--policy", "./mine.py"]
    environment = {**os.environ, watchdog.SETTING: "0.25"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "policy Mine (mine.py:" in done.stderr


def test_16_the_limit_can_be_set(monkeypatch, here) -> None:
    steps(here, [(1.0, 1)])
    (here / "mine.py").write_text(STEPS + "    import time\n\n" + DECIDE + "        self.time.sleep(0.3)\n" + RUN)
    monkeypatch.setenv(watchdog.SETTING, "0")
    assert summary("steps.yaml", "--policy", "./mine.py")["met"] == 1
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv(watchdog.SETTING, wrong)
        refused("run", "steps.yaml", "--policy", "./mine.py", says=(watchdog.SETTING, wrong, "seconds"))


def test_16_the_cases_own_files_end_as_they_should() -> None:
    """As they stand beside the checkout, where they do; the import of one has moved since."""
    folder = Path(__file__).parents[3] / "shared" / "cases" / "16-policy-writes-what-it-only-reads"
    if not folder.is_dir():
        pytest.skip("the cases are not beside the checkout")
    for name, word in (("shortcut", "it wrote left"), ("later", "it wrote deadline")):
        refused(*ON_STEPS, "--policy", folder / f"{name}.py", says=(word, f"({name}.py:"))


def test_16_the_interpreter_is_as_it_was_after_another_thread(soon, here) -> None:
    """A profiler waits for ever in CPython 3.11 where an exception for a thread was taken back."""
    (here / "endless.py").write_text(STEPS + DECIDE + "        while True:\n            pass\n")
    code = (
        "import sys, threading, servetwin\n"
        "def go():\n"
        "    try:\n"
        "        servetwin.run('dit-s2-256-rtx4090', requests=5, policy='endless.py')\n"
        "    except servetwin.RunError as error:\n"
        "        print('told' if 'does not come to an end' in str(error) else error)\n"
        "one = threading.Thread(target=go); one.start(); one.join()\n"
        "sys.setprofile(lambda *_: None)\n"
        "sorted([3, 1], key=lambda x: x)\n"
        "sys.setprofile(None)\n"
        "print('on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["told", "on"], done.stderr
