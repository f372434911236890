"""The gate on runs of Llama-3.1-8B with vLLM's prefix cache on an H200, the second time, and on the steps of their
profile (docs/reports/2026-11-h200-cached.md)."""

import numpy as np
import pytest
from servetwin.experiments.registry.catalog import MEASURED
from servetwin.experiments.validation.replay import chat
from servetwin.experiments.validation.replay import steps as replay_steps

FOLDER = MEASURED / "h200-cached"


def test_what_is_found_in_the_cache_is_predicted_and_goodput_is_as_reported() -> None:
    """Goodput is over the limits of 1 and 3 points, as the report tells, and too high."""
    profile, runs = chat.read(FOLDER / "runs-llama-3.1-8b.json.gz")
    assert len(runs) == 11
    gaps, found = [], []
    for run in runs:
        simulated = chat.simulate(run, profile, 2)
        gaps.append(chat.gap(run, simulated))
        assert run.hit_rate is not None
        assert simulated.hit_rate is not None
        found.append(100.0 * (simulated.hit_rate - run.hit_rate))
    assert np.abs(found).max() <= 0.8
    assert [round(f, 2) for run, f in zip(runs, found, strict=True) if run.policy == "vllm-v1"] == [0.0] * 6
    assert np.abs(gaps).mean() <= 4.2
    assert np.abs(gaps).max() <= 11.5
    for others in chat.trivial(runs).values():
        assert np.abs(gaps).mean() < 0.35 * np.abs(others).mean()


@pytest.mark.slow
def test_steps_of_requests_tell_what_chosen_steps_do_not() -> None:
    """Made of every second load of its traffic as well, a profile is better on the other loads."""
    for errors in replay_steps.halves(FOLDER / "steps-llama-3.1-8b.npz"):
        without, beside = errors["no traffic"], errors["the other loads too"]
        for kind in ("decode", "mixed"):
            medians = [float(np.median(np.abs(some[kind]))) for some in (without, beside)]
            assert medians[1] < 0.9 * medians[0]
        assert np.quantile(np.abs(beside["mixed"]), 0.95) < 0.05
