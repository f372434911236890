"""Case 22: whoever is killed leaves no process that computes and no folder behind, and two do not write one file.

Each test starts ServeTwin as a user does, sends real signals to it and looks what the system has left.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servetwin.experiments.registry.catalog import MEASURED
from toy_systems import write_one

COMMAND = [sys.executable, "-m", "servetwin.experiments.cli"]
#: Seconds within which all of a killed command must be gone: less than a point takes, or than loky's workers stay.
GONE = 10.0
#: A point takes minutes, so that workers are computing when the signal comes.
LONG = ["--requests", "2000000", "--longest", "2000000", "--no-cache", "--jobs", "2"]

SWEEP = """
extends: dit-s2-256-rtx4090
set: {requests: 4000000}
grid: {policy: [edf, fcfs], rate: [2, 3, 4, 5]}
"""
PLAN = """
extends: one.yaml
set: {requests: 4000000, workload.arrivals: {process: poisson, rate: 30.0}, slo.seconds: 0.25}
target: 90
seeds: 4
fleets:
  - {name: slow, counts: [2, 7], devices: {gpu0: {profile: one.profile.yaml, per_hour: 1.0, source: made up}}}
"""
SHORT = "extends: dit-s2-256-rtx4090\nset: {requests: 40}\ngrid: {policy: [edf], rate: [2, 4]}\n"

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


class Started:
    """A command in a session of its own, with a folder for its temporary files, and all processes that it starts."""

    def __init__(self, here: Path, *arguments: object) -> None:
        self.temporary = here / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.mark = f"{here}"
        environment = {
            **os.environ, "TMPDIR": str(self.temporary), "SERVETWIN_TEST_MARK": self.mark, "LOKY_MAX_CPU_COUNT": "2",
            "SERVETWIN_CACHE": str(here / "cache"),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], cwd=here, env=environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def others(self) -> dict[int, str]:
        """The processes beside the first that have its environment, by number: what state they are in."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() not in (place / "environ").read_bytes():
                    continue
                state = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if state[0] not in "ZX" and int(place.name) != self.process.pid:
                found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def computing(self, seconds: float = 0.2) -> list[int]:
        """Those of them that have begun with a point: they use the processor, and have used more than imports do."""
        before = {number: used(number) for number, command in self.others().items() if "LokyProcess" in command}
        time.sleep(seconds)
        return [number for number, ticks in before.items() if 300 < ticks < used(number)]

    def until(self, ready, seconds: float = 60.0) -> None:
        """Wait until *ready*; it must not end before."""
        end = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < end, "it does not come to where it is to be killed"
            time.sleep(0.05)

    def check_all_gone(self) -> None:
        end = time.monotonic() + GONE
        while (left := self.others()) or list(self.temporary.iterdir()):
            assert time.monotonic() < end, (left, list(self.temporary.iterdir()))
            time.sleep(0.1)

    def close(self) -> None:
        """Leave nothing of it, whatever a test found."""
        for number in self.others():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def start(here: Path) -> Iterator[Callable[..., Started]]:
    """Starts a command."""
    with contextlib.ExitStack() as stack:

        def started(*arguments: object) -> Started:
            found = Started(here, *arguments)
            stack.callback(found.close)
            return found

        yield started


def used(number: int) -> int:
    """Ticks of processor time that a process has used; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


KILLED = {
    "sweep": ["sweep", "s.yaml", "--out", "o.csv", "--jobs", 2, "--no-cache"],
    "search": ["search", "dit-s2-256-rtx4090", *LONG, "--policy", "edf"],
    "plan": ["plan", "p.yaml", "--jobs", 2, "--no-cache"],
    "score": [
        "score",
        MEASURED / "h100-quiet/diffusion/dit-s2-256.json.gz",
        "--out",
        "o.csv",
        "--seeds",
        400,
        "--jobs",
        2,
    ],
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", KILLED)
def test_22_case_who_is_killed_leaves_nobody_computing_and_no_folder(kind, number, here, start) -> None:
    (here / "s.yaml").write_text(SWEEP)
    write_one(here)
    (here / "p.yaml").write_text(PLAN)
    started = start(*KILLED[kind])
    started.until(lambda: len(started.computing()) >= 2)
    os.kill(started.process.pid, number)
    _, said = started.process.communicate(timeout=GONE)
    assert started.process.returncode == (143 if number == signal.SIGTERM else -9), said
    if number == signal.SIGTERM:
        assert said.splitlines()[-1].startswith("servetwin: terminated"), said
    started.check_all_gone()


def test_22_a_worker_that_is_stopped_ends_with_its_killed_parent(here, start) -> None:
    (here / "s.yaml").write_text(SWEEP)
    started = start(*KILLED["sweep"])
    started.until(lambda: len(started.computing()) >= 2)
    for number in started.computing():
        os.kill(number, signal.SIGSTOP)
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.communicate(timeout=GONE)
    started.check_all_gone()


def test_22_all_killed_at_once_leave_no_folder(here, start) -> None:
    (here / "s.yaml").write_text(SWEEP)
    started = start(*KILLED["sweep"])
    started.until(lambda: len(started.computing()) >= 2)
    os.killpg(started.process.pid, signal.SIGKILL)
    started.process.communicate(timeout=GONE)
    started.check_all_gone()


def test_22_a_sweep_that_was_killed_goes_on_where_it_was(here, start) -> None:
    """What was finished is kept, and the lock is gone with the process."""
    (here / "s.yaml").write_text(SWEEP.replace("4000000", "3000"))
    started = start(*KILLED["sweep"])
    started.until(lambda: (here / "o.csv.part").exists() and b"{" in (here / "o.csv.part").read_bytes())
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.communicate(timeout=GONE)
    again = start(*KILLED["sweep"])
    _, said = again.process.communicate(timeout=120)
    assert again.process.returncode == 0, said
    assert len((here / "o.csv").read_text().splitlines()) == 9
    assert not (here / "o.csv.part").exists()


def test_22_case_two_sweeps_into_one_file_are_told_apart(here, start) -> None:
    (here / "s.yaml").write_text(SWEEP)
    (here / "t.yaml").write_text(SHORT)
    first = start(*KILLED["sweep"])
    first.until(lambda: (here / "o.csv.part").exists())
    second = start("sweep", "t.yaml", "--out", "o.csv")
    _, said = second.process.communicate(timeout=60)
    assert second.process.returncode == 2
    assert said.splitlines()[-1].startswith("servetwin: o.csv: another process is writing this table"), said
    assert not (here / "o.csv").exists()
    os.kill(first.process.pid, signal.SIGINT)
    _, said = first.process.communicate(timeout=GONE)
    assert first.process.returncode == 130, said
    third = start("sweep", "t.yaml", "--out", "o.csv")
    _, said = third.process.communicate(timeout=60)
    assert third.process.returncode == 0, said


def test_22_case_two_runs_into_one_folder_are_told_apart(here, start) -> None:
    first = start("run", "dit-s2-256-rtx4090", "--requests", 100000, "--out", "o")
    first.until(lambda: (here / "o/meta.json").exists())
    second = start("run", "dit-s2-256-rtx4090", "--requests", 10, "--out", "o")
    _, said = second.process.communicate(timeout=60)
    assert (second.process.returncode, said.count("\n")) == (2, 1), said
    assert "the folder holds a run already" in said
    first.process.kill()
    first.process.communicate()


PIPED = {
    "help": ["--help"],
    "run": ["run", "dit-s2-256-rtx4090", "--requests", "20"],
    "json": ["run", "dit-s2-256-rtx4090", "--requests", "20", "--json"],
    "profiles": ["profiles"],
    "policies": ["policies", "edf"],
    "sweep": ["sweep", "t.yaml", "--out", "o.csv", "--jobs", "1", "--no-cache", "--json"],
    "workloads": ["workloads"],
    "profiles --json": ["profiles", "--json"],
}


@pytest.mark.parametrize("command", PIPED.values(), ids=PIPED)
def test_22_case_a_broken_pipe_ends_quietly_with_one_code(command, here) -> None:
    """What reads is gone before the first word is written."""
    (here / "t.yaml").write_text(SHORT)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*COMMAND, *command], cwd=here, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_22_a_signal_that_comes_twice_ends_it_no_less_quietly(here, start) -> None:
    (here / "s.yaml").write_text(SWEEP)
    started = start(*KILLED["sweep"])
    started.until(lambda: len(started.computing()) >= 2)
    os.kill(started.process.pid, signal.SIGTERM)
    os.kill(started.process.pid, signal.SIGTERM)
    _, said = started.process.communicate(timeout=GONE)
    assert started.process.returncode == 143
    assert "Traceback" not in said
    started.check_all_gone()


# -- temporary folders --------------------------------------------------------------------------------------------

MAKES = """
import os, signal, sys, time
from servetwin.core.processes import temporary_folders
kept, gone = temporary_folders.make(), temporary_folders.make()
(kept / "nest").mkdir(); (kept / "nest/file").write_text("x"); os.chmod(kept / "nest", 0)
temporary_folders.remove(gone)
print(kept, gone, flush=True)
os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("group", [False, True])
def test_22_temporary_folders_go_with_whoever_made_them(number, group, here) -> None:
    text = MAKES.replace("os.kill(os.getpid()", "os.killpg(0") if group else MAKES
    command = [sys.executable, "-c", text, str(int(number))]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(here)}, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, start_new_session=True)  # fmt: skip
    kept, gone = map(Path, done.stdout.split())
    assert done.returncode in (-number, 130)
    assert not gone.exists()
    end = time.monotonic() + GONE
    while kept.exists():
        assert time.monotonic() < end, list(kept.rglob("*"))
        time.sleep(0.05)
