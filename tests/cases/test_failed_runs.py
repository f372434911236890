"""What a command that fails leaves behind: what had finished, nothing that looks finished, and no empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from by_command import call, refused
from servetwin.core import RunFolder

#: EDF that fails in its nth decision.
POLICY = """
from servetwin.policies.diffusion.edf import EDF


class Late(EDF):
    seen = 0

    def decide(self, view, now):
        self.seen += 1
        if self.seen > {after}:
            raise RuntimeError("late")
        return super().decide(view, now)
"""

#: The command line with a limit on the size of files, which does what a full disk does.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
sys.dont_write_bytecode = True
from servetwin.experiments.cli import entry
entry.main()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for after in (0, 300):
        Path(f"late{after}.py").write_text(POLICY.format(after=after))
    return tmp_path


def entry(*arguments: object, limit: int = -1) -> tuple[int, str]:
    """A command in a process of its own: exit code, and what it said on standard error."""
    given = [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


def test_22_a_run_that_fails_before_anything_was_recorded_leaves_nothing(here: Path) -> None:
    before = names(here)
    code, err = entry("run", "dit-s2-256-rtx4090", "--policy", "./late0.py", "--requests", 50, "--out", "a/b/run")
    assert (code, err.count("\n")) == (2, 1), err
    assert "RuntimeError: late" in err
    assert names(here) == before


def test_22_nor_does_one_into_a_folder_that_was_there(here: Path) -> None:
    """The folder stays, and what else is in it."""
    (here / "run").mkdir()
    (here / "run/notes.txt").write_text("mine")
    refused("run", "dit-s2-256-rtx4090", "--policy", "./late0.py", "--requests", 50, "--out", "run", says=("late",))
    assert names(here / "run") == {"notes.txt"}
    (here / "run/notes.txt").unlink()
    refused("run", "dit-s2-256-rtx4090", "--policy", "./late0.py", "--requests", 50, "--out", "run", says=("late",))
    assert names(here / "run") == set()


def test_22_out_that_is_no_folder_says_what_it_is(here: Path) -> None:
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    for name, what in (("file", "this is a file, not a folder"), ("link", "this is a link to nothing")):
        refused("run", "tiny-dit-cpu", "--requests", 3, "--out", name, says=(name, what))
    assert not Path("nowhere").exists()


def test_22_a_run_that_fails_late_keeps_what_ended_and_does_not_look_finished(here: Path) -> None:
    run = ("run", "dit-s2-256-rtx4090", "--requests", 100, "--out", "run")
    refused(*run, "--policy", "./late300.py", says=("late300.py",))
    assert names(here / "run") == {"meta.json", "experiment.yaml", "requests.jsonl", "batches.jsonl"}
    lines = (here / "run/requests.jsonl").read_text().splitlines()
    assert len(lines) > 10
    assert all(line.startswith("{") and line.endswith("}") for line in lines)
    refused(*run, says=("the folder holds a run already, one that did not come to its end", "or remove it"))
    refused("compare", "run", "run", says=("run",))
    refused("score", "run", "--out", "o.csv", says=("run",))
    assert len((here / "run/requests.jsonl").read_text().splitlines()) == len(lines)
    code, _, err = call("run", "dit-s2-256-rtx4090", "--requests", 20, "--out", "whole")
    assert code == 0, err
    refused("run", "dit-s2-256-rtx4090", "--requests", 20, "--out", "whole", says=("holds a run already (right",))


@pytest.mark.parametrize("room", [0, 700, 2000])
def test_22_a_disk_without_room_for_the_beginning_of_a_run_is_left_as_it_was(here: Path, room: int) -> None:
    """No room at all, for a part of ``meta.json``, and for a part of what is written after it."""
    before = names(here)
    code, err = entry("run", "dit-s2-256-rtx4090", "--requests", 3, "--out", "a/run", limit=room)
    assert (code, err.count("\n")) in {(1, 1), (2, 1)}, err
    assert "a/run" in err
    assert "summary.json" not in {path.name for path in here.rglob("*")}
    if room < 2000:
        assert names(here) == before


def test_22_a_summary_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    recorder = RunFolder(tmp_path / "run", {})
    (tmp_path / "run/summary.json.new").mkdir()  # where it is written first
    with pytest.raises(OSError, match="directory"):
        recorder.close()
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("sweep", "grid.yaml", "--out", "a/b/o.csv", "--jobs", 1, "--no-cache"),
        ("search", "dit-s2-256-rtx4090", "--policy", "./late0.py", "--out", "a/b/o.csv", "--jobs", 1),
    ],
    ids=lambda command: command[0],
)
def test_22_tables_of_nothing_leave_no_folders(here: Path, command: tuple[object, ...]) -> None:
    grid = "extends: dit-s2-256-rtx4090\nset: {requests: 5}\ngrid: {policy: [./late0.py], rate: [2.0, 4.0]}\n"
    (here / "grid.yaml").write_text(grid)
    before = names(here)
    code, err = entry(*command)
    assert (code, err.count("\n")) == (2, 1), err
    assert names(here) == before


def test_22_a_sweep_that_fails_late_keeps_the_points_that_finished(here: Path) -> None:
    grid = "extends: dit-s2-256-rtx4090\nset: {requests: 5}\ngrid: {policy: [edf, ./late0.py], rate: [2.0]}\n"
    (here / "grid.yaml").write_text(grid)
    code, _ = entry("sweep", "grid.yaml", "--out", "a/o.csv", "--jobs", 1, "--no-cache")
    assert code == 2
    assert "o.csv" not in names(here / "a")
    (kept,) = map(json.loads, filter(None, (here / "a/o.csv.part").read_text().splitlines()))
    assert kept["row"]["requests"] == 5
