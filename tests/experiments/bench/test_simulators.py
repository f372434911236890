"""The table of simulators: equal results first, and ratios that may not fall."""

import pytest
from servetwin.experiments.bench import simulators
from servetwin.experiments.bench.simulators import (
    OVER_BARE,
    RECORDED,
    SHARE,
    Ratios,
    check_equal,
    fallen,
    measured,
    work,
)


def test_servetwin_the_naive_model_and_the_bare_loop_report_the_same(monkeypatch):
    check_equal(work(300))
    for wrong in (1.0 + 1e-6, 1.01):  # of which a report in thousandths would not tell the first
        with monkeypatch.context() as other:
            other.setattr(simulators, "theirs", lambda *_, by=wrong: {"mean_ttft_ms": by * REPORT["mean_ttft_ms"]})
            with pytest.raises(SystemExit, match="mean_ttft_ms"):
                check_equal(work(300))


REPORT = simulators.ours(simulators.POLICIES["vllm"], work(300))


def test_no_ratio_has_fallen():
    assert fallen(measured(rounds=2)) == []


def test_a_ratio_that_has_fallen_is_told():
    slower = {**RECORDED, "vllm, latencies": 0.99 * SHARE * RECORDED["vllm, latencies"]}
    assert fallen(Ratios(RECORDED, OVER_BARE)) == []
    (told,) = fallen(Ratios(slower, OVER_BARE))
    assert told.startswith("vllm, latencies: naive SimPy takes 33.3 times as long, below 0.8 of the recorded 42")
    over = {**OVER_BARE, "step-level EDF": 1.01 * OVER_BARE["step-level EDF"] / SHARE}
    (told,) = fallen(Ratios(RECORDED, over))
    assert told.startswith(f"step-level EDF: takes {over['step-level EDF']:.2f} times as long as a bare loop")
