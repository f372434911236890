"""Arrival processes: the published traces from their seeds, and the statistics of those that are drawn."""

from __future__ import annotations

import gzip
import json
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servetwin.experiments.spec.experiment import Bursty, Constant, Gamma, Poisson, UniformSteps
from servetwin.experiments.workload.draws import arrival_times, steps_of

#: cv -> arrival of request 0, 1, 2 and 499 at rate 1, as the NeuStream artifact stores them (to the microsecond).
PUBLISHED = {
    0.5: (2.04701, 3.168891, 5.301728, 485.257301),
    1.0: (0.795875, 2.051805, 2.975028, 504.337465),
    1.5: (0.583295, 1.310875, 1.636681, 500.618138),
    2.0: (0.362877, 0.890893, 1.01975, 548.454992),
    2.5: (0.146989, 0.411107, 0.440261, 518.440534),
    3.0: (0.04065, 0.135179, 0.139136, 540.621175),
    3.5: (0.007872, 0.0327, 0.03303, 516.175423),
    4.0: (0.001084, 0.005942, 0.005959, 482.389184),
}
#: (low, high) -> steps of the first ten requests and the sum over 500, as the artifact stores them.
PUBLISHED_STEPS = {
    (200, 249): ([244, 247, 200, 203, 203, 239, 209, 219, 221, 236], 112059),
    (80, 99): ([92, 95, 80, 83, 83, 87, 89, 99, 98, 84], 44621),
    (30, 50): ([42, 45, 30, 33, 33, 37, 39, 49, 48, 34], 19879),
}
STEPS_OF_FILE = {"DiT": (200, 249), "Palette": (80, 99), "SD15": (30, 50)}


def published(rate: float, cv: float, count: int = 500) -> np.ndarray:
    spec = Gamma(process="gamma", rate=rate, cv=cv)
    return np.array(list(islice(arrival_times(spec, seed=0, published=True), count)))


def published_steps(low: int, high: int) -> list[int]:
    spec = UniformSteps(draw="uniform", low=low, high=high)
    return list(islice(steps_of("unet", spec, seed=0, published=True), 500))


@pytest.mark.parametrize("cv", PUBLISHED)
@pytest.mark.parametrize("rate", [1.0, 0.35, 4.0])
def test_the_published_gaps_come_out_of_their_seed(rate, cv):
    times = published(rate, cv)[[0, 1, 2, 499]]
    assert times == pytest.approx(np.array(PUBLISHED[cv]) / rate, abs=6e-7 / min(rate, 1.0))


@pytest.mark.parametrize("bounds", PUBLISHED_STEPS)
def test_the_published_steps_come_out_of_their_seed(bounds):
    steps = published_steps(*bounds)
    assert (steps[:10], sum(steps)) == PUBLISHED_STEPS[bounds]


@pytest.mark.reference
def test_every_stored_trace_comes_out_to_the_microsecond(reference: Path):
    files = [f for f in sorted((reference / "diffusion" / "arrivals").glob("*.json.gz")) if "logged" not in f.name]
    assert len(files) == 7
    checked = 0
    for file in files:
        stored = json.loads(gzip.decompress(file.read_bytes()))
        for pair, times in stored["arrivals"].items():
            rate, cv = (float(part.split("=")[1]) for part in pair.split(","))
            assert np.abs(published(rate, cv, len(times)) - times).max() <= 5.001e-7, (file.name, pair)
            checked += 1
        # The steps stored with the H100 arrivals "as plotted" are those of DiT.
        kind = "DiT" if "as_plotted" in file.name else next(k for k in STEPS_OF_FILE if file.name.startswith(k))
        assert stored["steps"] == published_steps(*STEPS_OF_FILE[kind]), file.name
    assert checked == 6 * 64 + 49


SPECS = [
    Gamma(process="gamma", rate=3.0, cv=2.0),
    Poisson(process="poisson", rate=3.0),
    Constant(process="constant", rate=3.0),
    Bursty(process="bursty", rate=3.0, burst=6.0, share=0.2, cycle=10.0),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.process)
def test_the_mean_rate_is_what_was_asked_for(spec):
    times = list(islice(arrival_times(spec, seed=1, published=False), 60_000))
    assert len(times) / times[-1] == pytest.approx(3.0, rel=0.04)


@pytest.mark.parametrize(
    ("spec", "cv"), [(SPECS[0], 2.0), (SPECS[1], 1.0), (SPECS[2], 0.0)], ids=["gamma", "poisson", "constant"]
)
def test_gaps_vary_as_asked_for(spec, cv):
    gaps = np.diff(list(islice(arrival_times(spec, seed=1, published=False), 60_000)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03, abs=1e-9)


def test_bursts_are_faster_by_their_factor_and_take_their_share():
    spec = Bursty(process="bursty", rate=10.0, burst=20.0, share=0.25, cycle=400.0)
    times = np.array(list(islice(arrival_times(spec, seed=3, published=False), 400_000)))
    calm = 10.0 / (0.75 + 0.25 * 20.0)
    per_second = np.bincount(times.astype(int))[:-1]
    bursting = per_second > 6 * calm
    assert per_second[bursting].mean() / per_second[~bursting].mean() == pytest.approx(20.0, rel=0.1)
    assert bursting.mean() == pytest.approx(0.25, abs=0.06)


@given(st.sampled_from(SPECS), st.integers(0, 2**32), st.integers(1, 5000))
def test_a_longer_run_begins_with_the_requests_of_a_shorter_one(spec, seed, count):
    short = list(islice(arrival_times(spec, seed=seed, published=False), count))
    longer = list(islice(arrival_times(spec, seed=seed, published=False), 5000))
    assert longer[:count] == short
    assert all(a <= b for a, b in pairwise(longer))


def test_streams_of_one_seed_differ_by_purpose_and_seeds_differ():
    uniform = UniformSteps(draw="uniform", low=1, high=1_000_000)
    first = {
        (module, seed): next(steps_of(module, uniform, seed=seed, published=False))
        for module in ("unet", "dit")
        for seed in (0, 1)
    }
    assert len(set(first.values())) == 4
