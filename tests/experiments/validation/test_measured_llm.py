"""Runs of OPT-13B on an H100, repeated in simulation by a profile taken once before them: the gate of fidelity.

What was measured stands in ``experiments/measured/h100``; docs/reports/2026-11-h100-llm.md tells how, and what the
gaps are made of.
"""

from functools import cache

import numpy as np
import pytest
from gaps import p99, relative, unique, within
from held_points import hold_scored
from servetwin.experiments.validation.replay.llm import BLIND, MEASURED, read, scored
from servetwin.experiments.validation.score import of_tokens, score
from servetwin.profiles import load


@cache
def pairs(name, profile, folder="h100"):
    """(run, SLO, real score, simulated score) of each run; those that do not read the SLO count for both."""
    campaign = read(MEASURED / folder / f"{name}.json.gz")
    assert campaign.profile == profile
    return list(scored(campaign, load(profile)))


def gap(real, simulated):
    """Percentage points of the requests sent."""
    return 100 * (simulated.good - real.good) / real.requests


def test_with_cuda_graphs_goodput_is_near():
    found = pairs("llm-opt-13b", "h100/opt-13b-tp1")
    assert len(found) == 6
    gaps = {(run.policy, slo): abs(gap(a, b)) for run, slo, a, b in found}
    # Least slack drops whoever is a little too late: it turns the 3 % by which steps had got faster since the profile
    # was taken into 18 points.
    assert gaps.pop(("edf-llm", "3+1.5")) < 15
    assert max(gaps.values()) <= 2.5
    assert np.mean(list(gaps.values())) <= 1.2


def test_with_cuda_graphs_latencies_are_near():
    for run, _, a, b in pairs("llm-opt-13b", "h100/opt-13b-tp1"):
        # Steps were 3 to 4 % shorter in most of these runs than in the profile. As long as taking requests in cost
        # nothing in simulation, that hid some of it.
        assert abs(relative(a, b, "e2el")) < 4.5
        assert abs(relative(a, b, "e2el", np.median)) < 5
        assert abs(relative(a, b, "tpot")) < 4.5
        assert abs(relative(a, b, "ttft")) < (6 if run.policy in BLIND else 8)


def test_with_cuda_graphs_the_order_of_policies_is_the_same():
    found = [
        (run.policy, a.good, b.good) for run, slo, a, b in pairs("llm-opt-13b", "h100/opt-13b-tp1") if slo == "3+1.5"
    ]
    real = [name for name, _, _ in sorted(found, key=lambda f: f[1])]
    simulated = [name for name, _, _ in sorted(found, key=lambda f: f[2])]
    assert real == simulated == ["vllm", "neustream-llm", "edf-llm", "vllm-v1"]


def test_without_them_a_run_repeats_itself_no_better_than_it_is_simulated():
    """Where the host launches each kernel of a prefill, its moods decide: the very same run, three times."""
    found = pairs("llm-opt-13b-eager", "h100/opt-13b-tp1-eager")
    assert len({run.id for run, *_ in found}) == 42
    repeats = [
        a.good for run, slo, a, _ in found if run.policy == "vllm-v1" and (run.rate, run.cv, slo) == (16, 1, "3+1.5")
    ]
    assert repeats == [34, 85, 118]  # of 144
    gaps = [abs(gap(a, b)) for _, _, a, b in found]
    assert np.mean(gaps) < 19
    assert np.mean([abs(gap(a, b)) for run, _, a, b in found if run.cv == 4]) < 6


def asynchronous():
    return pairs("llm-opt-13b", "h100-async/opt-13b-tp1", "h100-async")


def test_with_asynchronous_scheduling_goodput_is_near():
    """But for NeuStream under the tighter SLO, which takes the last decode step's time thirty times."""
    found = asynchronous()
    assert len(found) == 30
    gaps = {(run.id, slo): abs(gap(a, b)) for run, slo, a, b in found}
    assert np.mean(list(gaps.values())) <= 2.9
    tight = {key: value for key, value in gaps.items() if key[0].startswith("neustream-llm_3")}
    assert max(tight.values()) <= 21
    others = [value for key, value in gaps.items() if key not in tight]
    assert np.mean(others) <= 1.75
    assert max(others) <= 6


def test_with_asynchronous_scheduling_latencies_are_near():
    """Means within 3 % but for the first token's, and where NeuStream decides otherwise."""
    for run, _, a, b in asynchronous():
        if run.id.startswith("neustream-llm_3"):
            continue
        assert abs(relative(a, b, "e2el")) < 2.5
        assert abs(relative(a, b, "tpot")) < 2.5
        assert abs(relative(a, b, "e2el", np.median)) < 3.5
        assert abs(relative(a, b, "ttft")) < (6 if run.cv == 1 else 7)


def test_with_asynchronous_scheduling_the_best_policy_is_the_same():
    """In each setting, of those that lead the next one by more than repeats differ (4 points)."""
    told = 0
    cells = {}
    for run, slo, a, b in asynchronous():
        if run.cv == 1:
            cells.setdefault((run.rate, slo), {}).setdefault(run.policy, []).append((a.good, b.good))
    for policies in cells.values():
        real, simulated = ({p: np.mean([v[i] for v in found]) for p, found in policies.items()} for i in (0, 1))
        first, second = sorted(real.values(), reverse=True)[:2]
        if first - second > 0.04 * 240:
            told += 1
            assert max(real, key=real.get) == max(simulated, key=simulated.get)
    assert told == 3


@cache
def about_the_knees(model):
    """Runs below, at and above the knee of either SLO, at cv 1 and 4; stalls of the host are drawn three times."""
    campaign = read(MEASURED / "h100-knees" / f"llm-{model}.json.gz")
    assert campaign.profile == f"h100-knees/{model}-tp1"
    return list(scored(campaign, load(campaign.profile), 3))


def test_about_the_knees_goodput_is_near():
    """The limits hold what was reached by a model that was mended after these runs had been seen:
    docs/reports/2026-11-h100-llm.md.
    """
    for model in ("opt-13b", "opt-30b"):
        campaign = read(MEASURED / "h100-knees" / f"llm-{model}.json.gz")
        hold_scored(f"h100-knees/llm-{model}.json.gz", of_tokens(campaign, about_the_knees(model)), 3)
    found = about_the_knees("opt-13b")
    assert len(found) == 110
    gaps = [abs(gap(a, b)) for _, _, a, b in found]
    assert np.mean(gaps) <= 2.3
    assert max(gaps) <= 8.5
    larger = [abs(gap(a, b)) for _, _, a, b in about_the_knees("opt-30b")]
    assert len(larger) == 13
    assert np.mean(larger) <= 3.8
    assert max(larger) <= 9


def test_about_the_knees_latencies_are_near():
    runs = [(a, b) for _, a, b in unique(about_the_knees("opt-13b"))]
    assert len(runs) == 70

    for what, mean, middle, tail in (("ttft", 42, 38, 50), ("tpot", 65, 62, 69), ("e2el", 66, 66, 70)):
        assert within(runs, what, np.mean, 3) >= mean
        assert within(runs, what, np.median, 3) >= middle
        assert within(runs, what, p99, 10) >= tail


@pytest.mark.parametrize(
    "name",
    [
        "h100/llm-opt-13b",
        "h100/llm-opt-13b-eager",
        "h100-async/llm-opt-13b",
        "h100-knees/llm-opt-13b",
        "h100-knees/llm-opt-30b",
    ],
)
def test_the_records_hold_together(name):
    campaign = read(MEASURED / f"{name}.json.gz")
    assert campaign.engine["device"] == "NVIDIA H100 80GB HBM3"
    assert campaign.engine["vllm"] == "0.25.1"
    for run in campaign.runs:
        for r in run.requests:
            assert len(r.times) == (r.output if r.outcome == "finished" else 0)
            assert list(r.times) == sorted(r.times)
            assert not r.times or r.arrival < r.times[0]


def test_servetwin_score_takes_them(tmp_path):
    found = score(MEASURED / "h100" / "llm-opt-13b.json.gz", tmp_path / "gaps.csv")
    hold_scored("h100/llm-opt-13b.json.gz", found, 10)
    gaps = {(s.run.policy, s.run.workload.split()[-1]): s.gap_met for s in found}
    for run, slo, a, b in pairs("llm-opt-13b", "h100/opt-13b-tp1"):
        assert gaps[run.policy, slo] == pytest.approx(gap(a, b))
    assert len((tmp_path / "gaps.csv").read_text().splitlines()) == 1 + len(gaps)
