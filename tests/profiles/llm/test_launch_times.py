"""A run on vLLM says how fast its host was beside the one of its profile."""

import numpy as np
import pytest
from servetwin.experiments.cli.output.run_output import show_real
from servetwin.profiles import load
from servetwin.profiles.llm.launch_times import TAIL, line, over_profile
from servetwin.profiles.tables.costs import BEGINS, BEGINS_EACH, LAUNCH, LAUNCH_EACH, LAUNCH_PIECES

PROFILE = load("h200-full/llama-3.1-8b")
GRAPHS = PROFILE.token_data.engine.graph_tokens
SCHEDULE = 4e-4


def cost(name: str) -> float:
    return PROFILE.cost(name).scalar()


def launches(slower: float) -> np.ndarray:
    """Thirty steps of each kind, ten sequences in each, on a host that is so many times as slow as the profile's."""
    begins = slower * (cost(BEGINS()) + 10 * cost(BEGINS_EACH())) - SCHEDULE
    rows = [(10, 10, begins, begins)] * 30
    for name, tokens in ((LAUNCH_PIECES(), GRAPHS), (LAUNCH(), GRAPHS + 1)):
        launched = slower * (cost(name) + 10 * cost(LAUNCH_EACH())) - SCHEDULE - TAIL
        rows += [(tokens, 10, launched, launched)] * 30
    return np.array(rows)


@pytest.mark.parametrize("slower", [0.8, 1.0, 1.5])
def test_a_host_is_as_slow_as_its_launches(slower: float) -> None:
    found = over_profile(launches(slower), (SCHEDULE, SCHEDULE), PROFILE.costs, GRAPHS)
    assert [*found] == [BEGINS(), LAUNCH_PIECES(), LAUNCH()]
    assert list(found.values()) == pytest.approx([slower] * 3)
    told = line(found, PROFILE.name)
    assert f"{slower:.2f} times as one graph" in told
    assert ("slower" in told, "faster" in told) == (slower > 1.1, slower < 0.9)


def test_what_is_rare_is_not_told() -> None:
    some = launches(1.2)[:40]  # ten of them piece by piece
    assert [*over_profile(some, (SCHEDULE, SCHEDULE), PROFILE.costs, GRAPHS)] == [BEGINS()]
    assert over_profile(some[:5], (SCHEDULE, SCHEDULE), PROFILE.costs, GRAPHS) == {}


def test_a_profile_that_knows_no_launches_tells_nothing() -> None:
    assert over_profile(launches(1.2), (SCHEDULE, SCHEDULE), load("a6000/opt-13b-tp1").costs, 0) == {}


def test_a_run_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    host = {
        "profile": PROFILE.name,
        "over_profile": over_profile(launches(1.5), (SCHEDULE, SCHEDULE), PROFILE.costs, GRAPHS),
    }
    show_real({"lateness_ms": {}, "gap_ms": {}, "host": host})
    assert "the host was slower" in capsys.readouterr().out
    show_real({"lateness_ms": {}, "gap_ms": {}})
    assert capsys.readouterr().out == ""
