"""Closed loops that others measured, by profiles of aiconfigurator's tables."""

from __future__ import annotations

import pytest
from servetwin.experiments.validation.replay import closed_loop
from servetwin.profiles import load
from servetwin.profiles.importing.formats.aiconfigurator import KNOWN_ERROR


def test_what_imported_profiles_say_of_their_error_is_what_comes_of_the_runs():
    found = list(closed_loop.scored(closed_loop.read()))
    told = closed_loop.told(found)
    assert len(found) == 90
    signed, size, tail = told["tpot"]
    assert f"{round(-signed)} % too little time per token in the median, {round(tail)} % at p90" in KNOWN_ERROR
    assert f"time to first token off by {round(told['ttft'][1])} % in the median" in KNOWN_ERROR
    assert size < 18.0


@pytest.mark.parametrize("in_flight", [4, 64])
def test_so_many_are_in_flight_and_no_more(in_flight: int):
    """Where prompts are short a token takes what a decode step of all in flight takes."""
    run = closed_loop.Loop(devices=2, in_flight=in_flight, prompt=16, output=600, ttft=1.0, tpot=1.0)
    ttft, tpot = closed_loop.simulate(run)
    table = load(run.profile).tokens("measured", hold=True)
    assert tpot == pytest.approx(table.decode(in_flight, in_flight * 316), rel=0.03)
    assert ttft < 3 * table.prefill(16 * in_flight)


def test_requests_are_sent_in_rounds():
    run = closed_loop.Loop(devices=8, in_flight=3, prompt=100, output=5, ttft=1.0, tpot=1.0)
    with pytest.raises(AttributeError):
        run.in_flight = 4  # type: ignore[misc]
    client = closed_loop._Client(run)
    asked = []
    client.loop = type(
        "Loop", (), {"executor": type("E", (), {"call_at": lambda self, at, do: asked.append(at)})()}
    )()
    for i in range(100):
        client.send(float(i))
    assert len(asked) == closed_loop.ROUNDS * 3
