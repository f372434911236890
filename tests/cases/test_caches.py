"""Kind 2, caches and resumption: cases 04 (what a policy imports and reads), 05 (edits while a sweep runs, notebooks,
clusters) and 20 (real sweeps that go on, `score` on run folders), each with variants of its own.

A policy serves as many requests at once as some file says: 1, then 8. Which file was really read shows in the largest
batch of the row. How it may be read otherwise is in tests/experiments/provenance/test_kept_rows.py, where Dask and
Ray are too; real sweeps under torch are in tests/real/diffusion/test_command_line.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.backends import grid
from servetwin.experiments.backends.diffusion import Backend
from servetwin.experiments.provenance import policy_code
from servetwin.experiments.sweeps import point
from servetwin.experiments.sweeps.cache import Cache
from servetwin.experiments.sweeps.sweep import sweep
from toy_systems import refused, rows, servetwin, write_one

import servetwin as st

HEAD = (
    "from pathlib import Path\nfrom servetwin.core import Decision, Policy\n\nP = Path(__file__).with_name('n.txt')\n"
)
FIRST = "Decision([*view.running, *view.waiting][: min({n}, view.limit)])"
INIT = "    def __init__(self):\n        self.n = {n}\n\n"


def policy(n: str = "self.n", *, top: str = "", init: str | None = None) -> str:
    body = INIT.format(n=init) if init is not None else ""
    decide = f"    def decide(self, view, now):\n        return {FIRST.format(n=n)}\n"
    return f"{HEAD}{top}\n\nclass Mine(Policy):\n{body}{decide}"


@pytest.fixture
def place(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment of a worker that takes eight requests at once as quickly as one."""
    monkeypatch.syspath_prepend(str(here))
    write_one(here)
    for name, old, new in (
        ("one.yaml", "limit: 1}", "limit: 8}"),
        ("one.profile.yaml", "[1, 2], seconds: [0.010, 0.020]", "[1, 8], seconds: [0.010, 0.010]"),
    ):
        (here / name).write_text((here / name).read_text().replace(old, new))
    # 60 requests in a second: all eight places are taken as soon as there are eight
    (here / "s.yaml").write_text(
        "extends: one.yaml\nset: {requests: 60, policy: mine.py}\ngrid: {rate: [60.0, 70.0]}\n"
    )
    before = set(sys.modules)
    yield here
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(here)):
            del sys.modules[name]


def batches(found: Any) -> list[int]:
    return [row["max_batch_size"] for row in (found.to_dicts() if hasattr(found, "to_dicts") else found)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which points are run from now on, in this process."""
    ran: list[str] = []
    run_point = point.run_point
    monkeypatch.setattr(point, "run_point", lambda e: ran.append(point.title(e)) or run_point(e))
    return ran


def write_number(place: Path, n: int) -> None:
    """The number in each of the files that a policy may take it from."""
    (place / "n.txt").write_text(str(n))
    (place / "aid.py").write_text(f"N = {n}\n")
    # Python takes a module's bytecode for that of its source while size and second of change are the same.
    os.utime(place / "aid.py", (1_700_000_000 + 10 * n,) * 2)
    (place / f"n{n}.txt").write_text(str(n))
    link = place / "link.txt"
    link.unlink(missing_ok=True)
    link.symlink_to(f"n{n}.txt")
    with zipfile.ZipFile(place / "aids.zip", "w") as archive:
        archive.writestr("zipped.py", f"N = {n}\n")


# -- case 04 --------------------------------------------------------------------------------------------

LOADER = (
    "import importlib.util\nS = importlib.util.spec_from_file_location('aside', P.with_name('aid.py'))\n"
    "M = importlib.util.module_from_spec(S)\nS.loader.exec_module(M)\n"
)
BY_EXEC = (
    HEAD
    + "\nclass Mine(Policy):\n    exec('''\ndef decide(self, view, now):\n    n = int(P.read_text())\n    return "
    + FIRST.format(n="n")
    + "\n''')\n"
)

#: How a policy comes by its number, and whether the row may be kept.
WAYS: dict[str, tuple[str, bool]] = {
    "helper.py": (policy("N", top="from aid import N"), True),
    "base.py": ("from base import Base\n\n\nclass Mine(Base):\n    pass\n", True),
    "dpol.json": (policy(init="int(P.read_text())"), True),
    "numpy": (policy(top="import numpy as np", init="int(np.loadtxt(P))"), True),
    "a memory map": (policy(top="import numpy as np", init="int(np.memmap(P, dtype='u1', mode='r')[0]) - 48"), True),
    "a link": (policy(init="int(P.with_name('link.txt').read_text())"), True),
    "a resource": (policy(top="import pkgutil", init="int(pkgutil.get_data(__name__, 'n.txt'))"), True),
    "code of no file": (BY_EXEC, True),
    "run_path": (policy("N", top="import runpy\nN = runpy.run_path(str(P.with_name('aid.py')))['N']"), True),
    "a loader of its own": (policy("M.N", top=LOADER), False),
    "an archive": (
        policy("N", top="import sys\nsys.path.insert(0, str(P.with_name('aids.zip')))\nfrom zipped import N"),
        False,
    ),
    "a thread": (
        policy(
            top="from concurrent.futures import ThreadPoolExecutor",
            init="int(ThreadPoolExecutor(1).submit(Path.read_text, P).result())",
        ),
        False,
    ),
    "a process": (policy(top="import subprocess", init="int(subprocess.check_output(['cat', P]))"), False),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda name: f"04: {name}")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_row_is_of_what_the_policy_reads_now(place: Path, monkeypatch, way: str):
    text, kept = WAYS[way]
    (place / "mine.py").write_text(text)
    (place / "base.py").write_text(policy("N", top="from aid import N").replace("Mine", "Base"))
    said: list[str] = []
    with Cache() as cache:
        for n in (1, 8, 1):
            write_number(place, n)
            out = place / f"{n}.csv"
            assert batches(sweep(place / "s.yaml", out, jobs=1, cache=cache, say=said.append)) == [n, n]
        ran = counted(monkeypatch)
        assert batches(sweep(place / "s.yaml", place / "again.csv", jobs=1, cache=cache)) == [1, 1]
    assert (ran == []) is kept
    assert any("rows are not kept" in line for line in said) is not kept


@pytest.mark.parametrize("how", ["04: python", "04: search", "04: by command", "04: as a module"])
def test_so_it_is_by_every_way_in(place: Path, how: str):
    """The cache is one: what one command keeps another takes, and none takes what was edited."""
    (place / "mine.py").write_text(policy("N", top="from aid import N"))
    found = []
    for n in (1, 8, 1):
        write_number(place, n)
        if how == "04: python":
            found.append(batches(st.sweep("one.yaml", requests=60, policy=["mine.py"], rate=60.0, jobs=1))[0])
        elif how == "04: as a module":
            found.append(batches(st.sweep("one.yaml", requests=60, policy=["mine:Mine"], rate=60.0, jobs=1))[0])
        elif how == "04: by command":
            assert servetwin("sweep", "s.yaml", "--out", f"{n}.csv", "-j", 1)[0] == 0
            found.append(int(rows(place / f"{n}.csv")[0]["max_batch_size"]))
        else:
            asked = {"policy": "mine.py", "target": 0.9, "seeds": 1, "requests": 60, "longest": 60, "jobs": 1}
            value = st.search("one.yaml", "rate", **asked).answer.value
            found.append(1 if value < 20.0 else 8)  # one at a time it takes ten a second, eight at a time eighty
    assert found == [1, 8, 1]


def test_04_a_table_of_a_parameter(place: Path):
    """The file is named by a parameter, not by the policy."""
    init = "    def __init__(self, table='n.txt'):\n        self.n = int(P.with_name(table).read_text())\n\n"
    decide = f"    def decide(self, view, now):\n        return {FIRST.format(n='self.n')}\n"
    (place / "mine.py").write_text(f"{HEAD}\n\nclass Mine(Policy):\n{init}{decide}")
    for n in (1, 8):
        write_number(place, n)
        table = st.sweep("one.yaml", requests=60, policy=[("mine.py", {"table": f"n{n}.txt"})], rate=60.0, jobs=1)
        assert batches(table) == [n]
    (place / "n8.txt").write_text("3")
    assert batches(
        st.sweep("one.yaml", requests=60, policy=[("mine.py", {"table": "n8.txt"})], rate=60.0, jobs=1)
    ) == [3]


# -- case 05 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("edited", ["mine.py", "aid.py", "n.txt"], ids=lambda name: f"05 A: {name}")
def test_an_edit_while_a_sweep_runs(place: Path, edited: str, jobs: int):
    """Run A: every row is of one version; what is kept under the first version's key is of the first version."""
    texts = {
        "mine.py": policy("1"),
        "aid.py": policy("N", top="from aid import N"),
        "n.txt": policy(init="int(P.read_text())"),
    }
    write_number(place, 1)
    (place / "mine.py").write_text(texts[edited])
    (place / "s.yaml").write_text(
        "extends: one.yaml\nset: {requests: 300, policy: mine.py}\ngrid: {seed: [0, 1, 2, 3], rate: [60.0, 70.0]}\n"
    )
    first, second = (place / edited).read_text(), (place / edited).read_text().replace("1", "8")

    def edit(done: int, *_: object) -> None:
        if done == 2:
            (place / edited).write_text(second)

    with Cache() as cache:
        found = sweep(place / "s.yaml", place / "a.csv", jobs=jobs, cache=cache, progress=edit)
        assert batches(found) == [8] * 8
        (place / edited).write_text(first)
        assert batches(sweep(place / "s.yaml", place / "b.csv", jobs=jobs, cache=cache)) == [1] * 8
        (place / edited).write_text(second)
        assert batches(sweep(place / "s.yaml", place / "c.csv", jobs=jobs, cache=cache)) == [8] * 8


def test_05_b_a_notebook_and_then_another_process(place: Path):
    """Run B, `nb_demo.py`: sweep, edit, sweep in one process; then the command in a fresh one."""
    (place / "mine.py").write_text(policy("LIMIT", top="LIMIT = 1"))
    with Cache() as cache:
        assert batches(sweep("s.yaml", place / "n1.csv", jobs=1, cache=cache)) == [1, 1]
        (place / "mine.py").write_text((place / "mine.py").read_text().replace("LIMIT = 1", "LIMIT = 8"))
        assert batches(sweep("s.yaml", place / "n2.csv", jobs=1, cache=cache)) == [8, 8]
    command = [sys.executable, "-m", "servetwin.experiments.cli", "sweep", "s.yaml", "--out", "n3.csv", "-j", "1"]
    subprocess.run(command, check=True, capture_output=True, cwd=place)
    assert [row["max_batch_size"] for row in rows(place / "n3.csv")] == ["8", "8"]


#: Policies that keep something in their class or module: the run after another one must not find it there.
MEMORY = {
    "a class counts": policy(init="self.count()").replace(
        "class Mine(Policy):\n", "class Mine(Policy):\n    seen = []\n\n    def count(self):\n"
        "        self.seen.append(1)\n        return len(self.seen)\n\n",
    ),
    "a module counts": policy(top="SEEN = []", init="SEEN.append(1) or len(SEEN)"),
    "a helper counts": policy(top="from aid import count", init="count()"),
    "a file that is read once": policy(
        top="import functools\n\n\n@functools.cache\ndef n():\n    return int(P.read_text())", init="n()"
    ),
}  # fmt: skip


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("case", MEMORY, ids=lambda name: f"05 B: {name}")
def test_a_run_is_not_of_what_earlier_ones_left(place: Path, case: str, jobs: int):
    (place / "n.txt").write_text("1")
    (place / "aid.py").write_text("SEEN = []\n\n\ndef count():\n    SEEN.append(1)\n    return len(SEEN)\n")
    (place / "mine.py").write_text(MEMORY[case])
    assert batches(sweep("s.yaml", place / "a.csv", jobs=jobs)) == [1, 1]
    assert batches(sweep("s.yaml", place / "b.csv", jobs=jobs)) == [1, 1]
    for _ in range(2):
        assert max(st.run("one.yaml", policy="mine.py", rate=60.0, requests=60).batches["size"]) == 1
    if case == "a file that is read once":
        (place / "n.txt").write_text("8")
        assert batches(sweep("s.yaml", place / "c.csv", jobs=jobs)) == [8, 8]


def test_05_c_processes_that_stay_between_sweeps(place: Path):
    """Run C without a cluster: the processes of the first sweep serve the second, after an edit."""
    (place / "mine.py").write_text(policy("N", top="from aid import N"))
    for n in (1, 8, 1):
        write_number(place, n)
        with Cache() as cache:
            assert batches(sweep("s.yaml", place / f"{n}.csv", jobs=2, cache=cache)) == [n, n]


# -- case 20 --------------------------------------------------------------------------------------------


class Served(Backend):
    """A real side that simulates: what is served, and with which options, is for the test to say."""

    options: ClassVar[dict[str, Any]] = {}
    served: ClassVar[list[str]] = []

    def __init__(self, setup: Any) -> None:
        self.setup = setup

    def made_with(self, experiment: Any) -> dict[str, Any]:
        return {"model": "toy", "options": dict(self.options), "weights": None}

    def run(self, experiment: Any, folder: Path) -> None:
        self.served.append(point.title(experiment))
        facts = {"kind": "real", **self.made_with(experiment)}
        recorder = build.folder_for(experiment, folder, {**build.describe(experiment), **facts})
        with policy_code.as_loaded(), build.closing(recorder):
            build.build(experiment, recorder).play()


@pytest.fixture
def real(place: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Sweep s.yaml for real, once; gives how to do so again, and what was served."""
    monkeypatch.setattr(grid, "Backend", Served)
    monkeypatch.setattr(Served, "options", {"scheduler": "ddim", "eager": False})
    monkeypatch.setattr(Served, "served", [])
    write_number(place, 1)
    (place / "mine.py").write_text(policy("N * int(P.read_text())", top="from aid import N"))

    def again(**more: Any) -> int:
        Served.served.clear()
        grid.serve(place / "s.yaml", place / "runs", None, **{"seeds": 1, "repeats": 1, **more})
        return len(Served.served)

    assert again() == 2
    return SimpleNamespace(again=again, options=Served.options)


EDITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "the policy": (lambda p: (p / "mine.py").write_text((p / "mine.py").read_text() + "# x\n"), "mine.py"),
    "a module of it": (lambda p: (p / "aid.py").write_text("N = 8\n"), "aid.py"),
    "a file that it reads": (lambda p: (p / "n.txt").write_text("8"), "n.txt"),
    "the profile": (
        lambda p: (p / "one.profile.yaml").write_text((p / "one.profile.yaml").read_text().replace("0.010", "0.011")),
        "the profile mine/one",
    ),
}


@pytest.mark.parametrize("case", EDITS, ids=lambda name: f"20: {name}")
def test_a_real_sweep_goes_on_only_with_what_its_runs_were_made_with(place: Path, real, case: str):
    edit, named = EDITS[case]
    assert real.again() == 0
    edit(place)
    with pytest.raises(BadInput, match="made with another state") as told:
        real.again()
    assert named in str(told.value)
    assert real.again(as_they_are=True) == 0
    shutil.rmtree(place / "runs")
    assert real.again() == 2


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        pytest.param("scheduler", "euler", "--sampler (ddim, now euler)", id="20: --sampler euler"),
        pytest.param("eager", True, "--eager (no, now yes)", id="20: --eager"),
        pytest.param("slots", 4, "--slots (left out, now 4)", id="20: --slots"),
    ],
)
def test_nor_with_other_options(real, option: str, value: object, named: str):
    real.options[option] = value
    with pytest.raises(BadInput) as told:
        real.again()
    assert named in str(told.value)


def test_20_a_run_that_was_cut_off_is_served_again_and_no_other(place: Path, real):
    next((place / "runs").rglob("summary.json")).unlink()
    assert real.again() == 1
    assert real.again(repeats=2) == 2


def test_20_seeds_that_send_the_same_requests_are_no_seeds(place: Path, real):
    (place / "s.yaml").write_text(
        "extends: one.yaml\nset: {requests: 9, workload.arrivals: {process: constant, rate: 5.0}}\n"
        "grid: {policy: [fcfs]}\n"
    )
    with pytest.raises(BadInput, match="2 seeds would be the same run 2 times"):
        real.again(seeds=2)
    assert real.again(repeats=2) == 2


@pytest.mark.parametrize("case", EDITS, ids=lambda name: f"20: score, {name}")
def test_score_on_run_folders_repeats_only_what_is_as_it_was(place: Path, case: str):
    write_number(place, 1)
    (place / "mine.py").write_text(policy("N * int(P.read_text())", top="from aid import N"))
    options = ("--policy", "mine.py", "--rate", 60, "--set", "requests=60")
    assert servetwin("run", "one.yaml", *options, "--out", "runs/a")[0] == 0
    score = ("score", "runs", "--out", "s.csv", "--seeds", 1, "-j", 1)
    assert servetwin(*score)[0] == 0
    (row,) = rows(place / "s.csv")
    assert float(row["gap_met_pp"]) == 0.0
    edit, named = EDITS[case]
    kept = {p.name: p.read_bytes() for p in place.glob("*.*") if p.is_file()}
    edit(place)
    (place / "s.csv").unlink()
    assert named in refused(*score)
    assert not (place / "s.csv").exists()
    code, told, _ = servetwin(*score, "--as-they-are")
    assert code == 0
    assert named in told
    for name in ("mine.py", "aid.py", "n.txt", "one.profile.yaml"):
        (place / name).write_bytes(kept[name])
    assert servetwin(*score)[0] == 0
    assert json.loads((place / "runs/a/summary.json").read_text())["requests"] == 60
