"""What a policy is shown cannot be written and leads nowhere; no answers are refused with file and line."""

import signal
import sys

import pytest
from servetwin.core.isolation.purity import innocent
from servetwin.core.isolation.task_ledger import WRITABLE
from servetwin.experiments.cli import entry
from servetwin.experiments.registry import policy_registry

STEPS = "from servetwin.core import Decision, Policy, Repeat\n\n\nclass Mine(Policy):\n"
TOKENS = """from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
"""
RUN = "        return Decision([*view.running, *view.waiting][: view.limit])\n"
FILL = (
    "        fits = view.admissible([(t, t.pending) for t in view.waiting])\n"
    "        return Step(fits) if fits else Step(decode=ALL)\n"
)
DECIDE = "    def decide(self, view, now):\n"
TASKS = "        for task in [*view.running, *view.waiting]:\n"


def told(monkeypatch, capsys, tmp_path, workload, text, *more):
    """(exit code, the line that is told) of a run under a policy of this *text*."""
    (tmp_path / "mine.py").write_text(text)
    command = ["servetwin", "run", workload, "--policy", str(tmp_path / "mine.py"), "--requests", "30", *more]
    monkeypatch.setattr("sys.argv", command)
    try:
        code = entry._run()
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(told, *words, line=None):
    code, out, err = told
    assert code == 2, (code, err)
    assert out == ""
    assert err.count("\n") == 1, err
    where = f"policy Mine (mine.py:{line})" if line is not None else "policy Mine (mine.py:"
    assert where in err, err
    for word in words:
        assert word in err, err


STEP_WRITES = {
    "left": (TASKS + "            task.left = 1\n", "left of task", 7),
    "left by setattr": (TASKS + "            setattr(task, 'left', 1)\n", "left of task", 7),
    "left by object": (TASKS + "            object.__setattr__(task, 'left', 10**6)\n", "left of task", 7),
    "left by its slot": (TASKS + "            type(task).left.__set__(task, 1)\n", "left of task", 5),
    "deadline": (TASKS + "            task.deadline += 5.0\n", "deadline of", 7),
    "deadline of the request": (TASKS + "            task.request.deadline = 1e9\n", "deadline of", 7),
    "queued": (TASKS + "            task.queued = 0.0\n", "queued of", 7),
    "started": (TASKS + "            task.started = 0.0\n", "started of", 7),
    "what is asked for": (
        TASKS + "            task.request.work['dit'] = 1\n",
        "(it says {'dit': 1} now)",
        7,
    ),
    "what is asked for, by another name": (
        TASKS + "            work = task.request.work\n            work.update(dit=2)\n",
        "(it says {'dit': 2} now)",
        8,
    ),
    "what is asked for, as no mapping": (TASKS + "            task.request.work = 5\n", "(it says 5 now)", 7),
    "the request's arrival": (TASKS + "            task.request.arrival = now\n", "arrival of", 7),
    "the outcome": (TASKS + "            task.request.outcome = 'met'\n", "outcome of", 7),
    "stays": (TASKS + "            task.request.tasks.clear()\n", "tasks of", None),
    "the worker": (TASKS + "            task.worker = None\n", "worker", 7),
    "limit": ("        view.limit = 10**6\n", "view.limit is not the policy's to set", 6),
    "limit by object": ("        object.__setattr__(view, 'limit', 10**6)\n" + RUN, None, None),
    "waiting": ("        view.waiting.clear()\n", "mappingproxy", 6),
    "running": ("        view.running[1] = None\n", "mappingproxy", 6),
    "dictionary": ("        vars(view)['limit'] = 10**6\n", "mappingproxy", 6),
    "in flight": ("        view.in_flight = 3\n", "view.in_flight is not the policy's to set", 6),
    "a class": ("        type(next(iter(view.waiting))).left = 1\n", None, None),
    "a function": ("        type(view).solo = None\n", None, None),
    "a stage": ("        view.stage.next.clear()\n" + RUN, "next of stage", None),
}


@pytest.mark.parametrize("case", STEP_WRITES.values(), ids=STEP_WRITES)
def test_what_a_policy_may_only_read_cannot_be_written(case, monkeypatch, capsys, tmp_path):
    body, word, line = case
    text = STEPS + DECIDE + body + ("" if body.endswith(RUN) else RUN)
    found = told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", text)
    if "object.__setattr__(view" in body:  # it has written what only it sees
        code, _, err = found
        assert code in (0, 2), err
        return
    refused(found, *([word] if word else ()), line=line)


TOKEN_WRITES = {
    "generated": (TASKS + "            task.generated = 5\n", "generated of task", 8),
    "computed": (TASKS + "            task.computed = 0\n", "generated or computed", 8),
    "behind it": (TASKS + "            object.__setattr__(task, 'base_generated', 3)\n", "generated of task", None),
    "the clock": (TASKS + "            if task.ticks: task.ticks.count += 1\n", "count of", 8),
    "prompt": (TASKS + "            task.prompt = 1\n", "prompt of task", 8),
    "arrival": (TASKS + "            task.arrival = now\n", "arrival of task", 8),
    "first token": (TASKS + "            task.first_token = 0.0\n", "first_token of task", 8),
    "budget": (TASKS + "            setattr(task, 'budget', 9.0)\n", "budget of task", 8),
    "free blocks": ("        view.free_blocks += 1000\n", "view.free_blocks is not the policy's to set", 7),
    "free blocks by object": (
        "        object.__setattr__(view, 'free_blocks', 10**6)\n",
        "view.free_blocks is not",
        7,
    ),
    "running": ("        view.running.clear()\n", "mappingproxy", 7),
    "behind the view": (
        "        kept = TokenPolicy.decide.__globals__['TokenView'].__dict__['__dict__'].__get__(view)\n"
        "        kept['free_blocks'] += 1\n",
        "it wrote free_blocks",
        None,
    ),
}


@pytest.mark.parametrize("case", TOKEN_WRITES.values(), ids=TOKEN_WRITES)
def test_nor_what_it_may_read_of_an_engine(case, monkeypatch, capsys, tmp_path):
    body, word, line = case
    found = told(monkeypatch, capsys, tmp_path, "opt-13b-a6000", TOKENS + DECIDE + body + FILL)
    refused(found, word, line=line)


LOOKS = {
    "the engine": "next(iter(view.waiting)).worker.engine",
    "the loop": "next(iter(view.waiting)).worker.loop",
    "the worker of a batch": "view.engine",
    "an estimate": "view.estimate.__self__",
    "an estimate's wrapped function": "view.estimate_prefill.__wrapped__",
    "an estimate's variables": "view.estimate_decode.__closure__",
    "the SLO's prefill": "view.slo.prefill_alone.__closure__",
    "the profile": "view._estimate_prefill",
    "the batches": "view.batches.__wrapped__",
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_what_a_policy_is_shown_leads_nowhere(look, monkeypatch, capsys, tmp_path):
    text = TOKENS + DECIDE + f"        if view.waiting:\n            {look}\n" + FILL
    refused(told(monkeypatch, capsys, tmp_path, "opt-13b-a6000", text), "AttributeError", line=8)


FRAMES = {
    "frames": "import sys; sys._getframe(1).f_locals",
    "a traceback's frames": "try: 1 / 0\n            except ZeroDivisionError as e: e.__traceback__.tb_frame.f_back",
    "the collector": "import gc; gc.get_referrers(view)",
}


@pytest.mark.parametrize("look", FRAMES.values(), ids=FRAMES)
def test_words_of_the_interpreter_are_refused(look, monkeypatch, capsys, tmp_path):
    text = TOKENS + DECIDE + f"        if view.waiting:\n            {look}\n" + FILL
    refused(told(monkeypatch, capsys, tmp_path, "opt-13b-a6000", text), "by which it could look where no policy may")


STEP_ANSWERS = {
    "leaving": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "leaving by hand": ("raise SystemExit", "SystemExit"),
    "interrupting": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "leaving a generator": ("raise GeneratorExit", "GeneratorExit"),
    "a time in words": ("return Decision(idle_until='soon')", "it idles until 'soon'"),
    "a time that is true": ("return Decision(idle_until=True)", "it idles until True"),
    "a time of others": ("import numpy; return Decision(idle_until=numpy.float32(now + 1))", "it idles until"),
    "no time": ("return Decision(idle_until=float('nan'))", "not in the future"),
    "nanoseconds": ("return Decision(idle_until=now + 1e-9)", "it idled 10000 times on end at dit"),
    "the next number": ("import math; return Decision(idle_until=math.nextafter(now, 1e9))", "it idled 10000 times"),
    "None": ("return None", "decide returned None (right would be: a Decision)"),
    "a number": ("return 3", "decide returned 3"),
    "a list": ("return [*view.waiting]", "decide returned ["),
    "a generator": ("return Decision(t for t in view.waiting)", "right would be: a list of tasks"),
    "no tasks": ("return Decision([1])", "run of its decision holds 1"),
    "twice": ("return Decision([*view.waiting][:1] * 2)", "twice"),
    "twice while it runs": ("return Decision([*view.running] * 2 or [*view.waiting])", "twice"),
    "twice on end": ("return Decision([*view.running] * 2 or [*view.waiting], repeat=Repeat(7))", "twice"),
    "twice beside others": (
        "here = [*view.running]; return Decision([*here[:1], *here, *view.waiting], repeat=Repeat(2))", "twice",
    ),
    "twice to the end": ("on = [*view.running]; return Decision(on * 2 or [*view.waiting], whole=on != [])", "twice"),
    "again while it runs": (
        "self.ahead = True; return Decision([*view.running] or [*view.waiting])", "in a batch already",
    ),
    "of its own": (
        "import copy; return Decision([copy.copy(t) for t in view.waiting][:1])", "which is not at dit",
    ),
    "a false drop": ("return Decision(drop=[3])", "drop of its decision holds 3"),
    "no Repeat": ("return Decision([*view.running, *view.waiting][:1], repeat=5)", "repeat of its decision is 5"),
    "half a Repeat": (
        "return Decision([*view.running, *view.waiting][:1], repeat=Repeat(2.5))",
        "it repeats its decision 2.5 times",
    ),
    "never": ("return Decision()", "never ended"),
}  # fmt: skip


@pytest.mark.parametrize("case", STEP_ANSWERS.values(), ids=STEP_ANSWERS)
def test_an_answer_that_is_none_is_refused(case, monkeypatch, capsys, tmp_path):
    body, word = case
    refused(told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", f"{STEPS}{DECIDE}        {body}\n"), word)


TOKEN_ANSWERS = {
    "leaving": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "None": ("return None", "decide returned None (right would be: a Step)"),
    "half a token": ("return Step([(t, t.pending / 2) for t in view.waiting])", "tokens of"),
    "a true token": ("return Step([(t, True) for t in view.waiting])", "True tokens of"),
    "tokens in words": ("return Step([(t, '9') for t in view.waiting])", "'9' tokens of"),
    "fewer than none": ("return Step([(t, -9) for t in view.waiting])", "-9 tokens of"),
    "more than there are": ("return Step(view.admissible([(t, t.pending + 1) for t in view.waiting]))", "tokens of"),
    "a list that goes on": (
        "fits = view.admissible([(t, 9) for t in view.waiting]); fits.append((3, 3)); return Step(fits)",
        "prefill of its decision holds 3",
    ),
    "no tasks": ("return Step([(1, 2)])", "prefill of its decision holds 1"),
    "decoding what waits": ("return Step(decode=[*view.waiting])", "which is not decoding"),
    "preempting what waits": ("return Step(preempt=[*view.waiting])", "which is not running"),
    "a Repeat in words": (
        "fits = view.admissible([(t, t.pending) for t in view.waiting]); "
        "return Step(fits) if fits else Step(decode=ALL, repeat=Repeat(9, longest='soon'))",
        "longest of its Repeat is 'soon'",
    ),
    "nanoseconds": ("return Step(idle_until=now + 1e-9)", "it idled 10000 times on end"),
    "a time in words": ("return Step(idle_until='soon')", "it idles until 'soon'"),
    "never": ("return Step()", "never ended"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKEN_ANSWERS.values(), ids=TOKEN_ANSWERS)
def test_nor_one_that_no_engine_can_carry_out(case, monkeypatch, capsys, tmp_path):
    body, word = case
    refused(told(monkeypatch, capsys, tmp_path, "opt-13b-a6000", f"{TOKENS}{DECIDE}        {body}\n"), word)


HIDDEN = {
    "a module beside it": (
        "import beside_it",
        "beside_it.shorten(task)",
        "def shorten(task):\n    task.left = 1\n",
    ),
    "a function that it is told": ("import beside_it", "beside_it.SHORTEN(task, 'left', 1)", "SHORTEN = setattr\n"),
    "text": ("", "exec('task.left = 1')", ""),
    "another name": ("write = setattr", "write(task, 'le' + 'ft', 1)", ""),
    "a partial function": (
        "import functools\nwrite = functools.partial(setattr)", "write(task, 'le' + 'ft', 1)", "",
    ),
    "made anew": ("", "task.__init__(task.request, task.stage, 0.0)", ""),
    "a class of its own": (
        "class Other:\n    def __call__(self, task):\n        task.left = 1\n\n\nother = Other()", "other(task)", "",
    ),
    "loaded late": ("", "import beside_it; beside_it.shorten(task)", "def shorten(task):\n    task.left = 1\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", HIDDEN.values(), ids=HIDDEN)
def test_who_writes_by_a_roundabout_way_is_found_out(case, monkeypatch, capsys, tmp_path):
    above, statement, beside = case
    (tmp_path / "beside_it.py").write_text(beside)
    monkeypatch.syspath_prepend(tmp_path)
    head = STEPS.replace("\n\n\nclass", f"\n{above}\n\n\nclass")
    text = f"{head}{DECIDE}{TASKS}            {statement}\n{RUN}"
    try:
        refused(told(monkeypatch, capsys, tmp_path, "dit-s2-256-rtx4090", text))
    finally:
        sys.modules.pop("beside_it", None)


def test_code_that_cannot_write_needs_no_books():
    """So that the policies that come along cost what they did; and what is said of them holds for copies as well.
    Those that read something of a request reach what could be written, and books are kept of their runs."""
    guilty = set()
    for name in policy_registry.policy_names():
        kind = policy_registry.find_policy(name)
        if not innocent(policy_registry.make(name, policy_registry.defaults(kind)), WRITABLE):
            guilty.add(name)
    assert guilty == {"vtc"}  # whose tenant it is


CHECKED = [
    ("edf", 0, "297 with a Repeat, the same step by step"),
    ("sarathi", 0, "no fault found"),
]


@pytest.mark.parametrize(("policy", "code", "word"), CHECKED)
def test_a_policy_can_be_checked(policy, code, word, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["servetwin", "check", policy])
    assert entry._run() == code
    assert word in capsys.readouterr().out


FALSE = {
    "a false Repeat": (
        STEPS + DECIDE + "        tasks = [*view.running, *view.waiting]\n"
        "        k = int(now * 10) % max(1, len(tasks))\n"
        "        return Decision((tasks[k:] + tasks[:k])[:2], repeat=Repeat(50))\n",
        "a Repeat of its is false",
    ),
    "a false Repeat of an engine": (
        TOKENS
        + "    turn = 0\n\n"
        + DECIDE
        + "        self.turn += 1\n"
        + FILL.replace(
            "Step(decode=ALL)",
            "Step(decode=[t for t in view.running if t.decoding][: 1 + self.turn % 3],"
            " repeat=Repeat(9)) if self.turn % 2 else Step(decode=ALL, repeat=Repeat(40))",
        ),
        "a Repeat of its is false",
    ),
    "a policy that draws": (
        "import random\n" + STEPS + DECIDE + RUN.replace("[: view.limit]", "[: random.randint(1, 9)]"),
        "draws from the generator that all of the process share",
    ),
    "one that writes": (STEPS + DECIDE + TASKS + "            task.left = 1\n" + RUN, "left of task"),
    "one that gives no answer": (STEPS + DECIDE + "        return Decision()\n", "never ended"),
}


@pytest.mark.parametrize("case", FALSE.values(), ids=FALSE)
def test_a_check_finds_what_a_policy_does_wrong(case, monkeypatch, capsys, tmp_path):
    text, word = case
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr("sys.argv", ["servetwin", "check", str(tmp_path / "mine.py")])
    code = entry._run()
    captured = capsys.readouterr()
    refused((code, "", captured.err), word)
    assert code == 2
    assert captured.out == "" or "request" in captured.out.splitlines()[0], captured.out  # the schedule, drawn


@pytest.fixture(autouse=True)
def soon():
    """A policy that is not stopped would go on for ever."""

    def late(number, frame):
        raise AssertionError("the run does not come to an end")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)
