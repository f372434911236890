"""Processes that simulate: what nobody waits for is ended, and what goes wrong in one is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from jobs_of_lanes import await_file, raise_bad_input
from servetwin.experiments.exploring.lanes import Lanes, Stale, Trouble


def until(there: Path) -> None:
    began = time.monotonic()
    while not there.exists():
        assert time.monotonic() - began < 30, f"{there.name} does not come"
        time.sleep(0.005)


def test_what_calls_give_comes_in_their_order(lanes: Lanes):
    assert lanes.ask("order", 1, [(pow, (2, 3)), (pow, (2, 4)), (pow, (2, 5))]) == [8, 16, 32]
    assert os.getpid() not in lanes.ask("order", 2, [(os.getpid, ())])


def test_a_newer_question_ends_the_older_one_of_its_tab(lanes: Lanes, tmp_path: Path):
    found: list[object] = []

    def first() -> None:
        try:
            lanes.ask("tab", 1, [(await_file, (tmp_path / "never",))] * 2)
        except Stale as stale:
            found.append(stale)

    thread = threading.Thread(target=first)
    thread.start()
    until(tmp_path / "never.begun")
    began = time.monotonic()
    assert lanes.ask("tab", 2, [(pow, (2, 3))] * 2) == [8, 8]  # though both processes were at work for good
    assert time.monotonic() - began < 10
    thread.join()
    assert isinstance(found[0], Stale)
    with pytest.raises(Stale):
        lanes.ask("tab", 2, [(pow, (2, 3))])


def test_tabs_do_not_end_each_others_questions(lanes: Lanes, tmp_path: Path):
    found: list[object] = []
    one = threading.Thread(target=lambda: found.extend(lanes.ask("one", 1, [(await_file, (tmp_path / "file",))])))
    one.start()
    until(tmp_path / "file.begun")
    for number in range(1, 4):
        assert lanes.ask("two", number, [(pow, (2, number))]) == [2**number]
    (tmp_path / "file").touch()
    one.join()
    assert found == ["there"]


def test_what_goes_wrong_is_told_in_a_line(lanes: Lanes, capsys):
    with pytest.raises(Trouble, match=r"^here: wrong \(right would be: another\)$"):
        lanes.ask("wrong", 1, [(raise_bad_input, ())])
    with pytest.raises(Trouble, match="own, told on the terminal: TypeError"):
        lanes.ask("wrong", 2, [(len, (3,))])
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(Trouble, match="process that simulates has ended, perhaps for want of memory"):
        lanes.ask("wrong", 3, [(signal.raise_signal, (signal.SIGKILL,))])
    assert lanes.ask("wrong", 4, [(pow, (2, 3))]) == [8]  # and it goes on


def test_what_takes_too_long_is_ended(tmp_path: Path):
    lanes = Lanes(1, longest=1.0)
    try:
        with pytest.raises(Trouble, match=r"not over after 1 s \(right would be: fewer requests\)"):
            lanes.ask("long", 1, [(await_file, (tmp_path / "never",))])
        [process] = lanes.ask("long", 2, [(os.getpid, ())])
    finally:
        lanes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
