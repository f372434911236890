"""How far a measurement is, where it has a time."""

from __future__ import annotations

import pytest
from servetwin.experiments.backends import profile_llm


def test_of_measuring_that_ends_with_its_time_seconds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now, heard = [100.0], []
    monkeypatch.setattr(profile_llm.time, "monotonic", lambda: now[0])
    say = profile_llm._in_seconds(lambda *told: heard.append(told), 3.2)
    for passed, what in ((0.0, "decode"), (1.6, "mixed"), (9.0, "traffic")):
        now[0] = 100.0 + passed
        say(what)
    assert heard == [("decode, seconds", 0, 4), ("mixed, seconds", 2, 4), ("traffic, seconds", 3, 4)]
    profile_llm._in_seconds(None, 1.0)("nobody hears it")
