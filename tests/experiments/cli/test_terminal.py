"""What commands look like on a terminal, and where there is none."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*(3|9)[0-9](;[0-9]+)*m")


def on_terminal(*arguments: object, columns: int = 80, **environment: str) -> str:
    """What a command writes to a terminal that is so wide; standard output and standard error are the same."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    program = "from servetwin.experiments.cli import main; main()"
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True, env={**kept, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(theirs)
    written, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            written += chunk
    os.close(ours)
    assert process.wait(60) == 0
    return written.decode()


def lines_of(written: str) -> list[str]:
    """The lines of results, without what a progress bar wrote and took away again."""
    lines = written.replace("\r\n", "\n").split("\n")
    return [ESCAPES.sub("", line.rpartition("\x1b[2K")[2]).rstrip() for line in lines]


@pytest.mark.parametrize("command", ["workloads", "profiles", "policies", "run", "compare", "explain"])
def test_results_fit_80_columns(command, tmp_path: Path, servetwin):
    arguments: tuple[object, ...] = ()
    if command == "run":
        arguments = ("opt-13b-h100", "--policy", "neustream-llm", "--requests", 40, "--out", tmp_path / "run")
    elif command == "compare":
        for name in "ab":
            servetwin("run", "dit-s2-256-rtx4090", "--requests", 20, "--out", tmp_path / name)
        arguments = (tmp_path / "a", tmp_path / "b")
    elif command == "explain":
        servetwin(
            "run", "dit-s2-256-rtx4090", "--policy", "fcfs", "--rate", 6, "--requests", 60, "--out", tmp_path / "a"
        )
        arguments = (tmp_path / "a", "--request", 50)
    lines = lines_of(on_terminal(command, *arguments))
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if "…" in line] == []  # nothing is cut off
    if command == "run":
        assert "% met their SLO" in " ".join(lines[:4])  # the answer comes first
        assert any(line.startswith("gpu0 busy") for line in lines)


def test_a_long_run_tells_how_far_it_is_and_how_many_were_met(tmp_path: Path):
    written = on_terminal("run", "dit-s2-256-rtx4090", "--requests", 20_000, "--rate", 2)
    found = [(int(n), float(p)) for n, p in re.findall(r"(\d+)/20000.*?([\d.]+) % met", ESCAPES.sub("", written))]
    assert found
    assert [n for n, _ in found] == sorted(n for n, _ in found)
    assert all(0 <= share <= 100 for _, share in found)
    assert re.search(r"left .?0:00:\d\d", ESCAPES.sub("", written))


def test_a_search_tells_between_which_places_it_is_and_how_much_is_left(toy: Path):
    few = ("--seeds", 2, "--requests", 100, "--longest", 200, "--jobs", 1, "--no-cache")
    lines = ESCAPES.sub("\n", on_terminal("search", toy, *few))
    brackets = [(float(low), float(high)) for low, high in re.findall(r"search: ([\d.]+) to ([\d.]+)", lines)]
    assert brackets
    assert all(low < high for low, high in brackets)
    runs = [(int(done), int(most)) for done, most in re.findall(r"^ *(\d+)/(\d+)", lines, flags=re.MULTILINE)]
    assert runs
    assert all(done <= most for done, most in runs)


def test_colours_are_off_where_nobody_sees_them(servetwin, toy: Path):
    assert COLOURS.search(on_terminal("sweep", "--help"))
    assert not COLOURS.search(on_terminal("sweep", "--help", NO_COLOR="1"))
    for arguments in (("sweep", "--help"), ("run", toy), ("workloads",)):
        code, out, err = servetwin(*arguments)
        assert (code, err) == (0, "")
        assert "\x1b" not in out


def test_lines_are_whole_where_there_is_no_terminal(servetwin):
    _, out, _ = servetwin("run", "opt-13b-h100", "--requests", 20)
    faults = "points with few samples, prompts beyond the table that do not go on from it, disturbed samples"
    assert f"h100/opt-13b-tp1 is not clean: {faults} (servetwin profiles" in out
