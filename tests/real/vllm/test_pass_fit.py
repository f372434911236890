"""What steps are made of is found again, of steps that were made up by a rule; and timelines, of events."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from servetwin.real.vllm.profiling.fitting import decode_fit, pass_fit
from servetwin.real.vllm.profiling.measuring import step_files
from servetwin.real.vllm.profiling.measuring.device_steps import (
    Sample,
    Steps,
    all_samples,
    ends,
    launch_line,
    lines_through,
)

GRAPHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def sample(chunks: list[tuple[int, int]], contexts: list[int], seconds: float = 0.0, density: float = 0.0) -> Sample:
    longest = max(contexts, default=0)
    how = "pieces" if chunks else "graph"
    return Sample(
        "mixed",
        chunks,
        len(contexts),
        sum(contexts),
        longest,
        seconds,
        True,
        how,
        0.001,
        False,
        density,  # type: ignore[arg-type]
    )


def truth(s: Sample) -> float:
    tokens = next((n for n in GRAPHS if n >= s.tokens), s.tokens)
    seconds = 0.004 + 2e-5 * tokens + 8e-10 * s.pairs + 4e-10 * s.squares
    return seconds + 5e-6 * s.decode + 3e-8 * s.context if s.prompt else seconds


def made_up(count: int, noise: float) -> list[Sample]:
    rng = random.Random(3)
    found = []
    for _ in range(count):
        chunks = [
            (rng.randint(1, 1500), rng.choice((0, 0, rng.randint(0, 8000)))) for _ in range(rng.choice((1, 1, 2)))
        ]
        contexts = [rng.randint(10, 4000) for _ in range(rng.choice((0, 4, 32, 128)))]
        one = sample(chunks, contexts)
        one.seconds = truth(one) * (1.0 + rng.gauss(0.0, noise))
        one.density = rng.uniform(1e3, 4e4)
        found.append(one)
    return found


def predicted(model: pass_fit.PassModel, s: Sample) -> float:
    seconds = model.a_pass(s.tokens) + model.terms["pairs"] * s.pairs + 0.5 * model.terms["squares"] * s.squares
    seconds += model.terms["each"] * len(s.chunks) + model.terms["both"] * s.decode * s.context
    seconds += model.terms["tiles"] * sum((c + n) * (-n % pass_fit.TILE) for n, c in s.chunks)
    if s.decode:
        at, knots = np.log(max(n for n, _ in s.chunks)), np.log(pass_fit.LENGTHS)
        seconds += s.decode * float(np.interp(at, knots, model.per_sequence))
        seconds += s.context * float(np.interp(at, knots, model.per_context))
    return seconds * model.share(seconds, s.density)


def test_the_parts_of_steps_are_found_again() -> None:
    model = pass_fit.fit(made_up(1500, 0.01), GRAPHS, 0.05)
    fresh = made_up(1800, 0.0)[1500:]
    off = [abs(predicted(model, s) / truth(s) - 1.0) for s in fresh]
    assert np.median(off) < 0.01
    assert np.quantile(off, 0.95) < 0.03
    assert model.terms["pairs"] == pytest.approx(8e-10, rel=0.15)
    assert float(np.median(model.per_context)) == pytest.approx(3e-8, rel=0.25)
    assert model.padded(65) == 128
    assert model.padded(513) == 513


def test_a_size_that_the_device_runs_badly_is_no_chance() -> None:
    """And one step of another size that took as much longer is."""
    found = made_up(1500, 0.01)
    for n in (100, 100, 100, 120, 128, 110):
        found.append(sample([(n - 4, 0)], [50] * 4, density=2e4))
        found[-1].seconds = 1.25 * truth(found[-1])
    found.append(sample([(240, 0)], [], density=2e4))
    found[-1].seconds = 1.25 * truth(found[-1])
    rest = [s for s in found if next((n for n in GRAPHS if n >= s.tokens), 0) != 128]
    model = pass_fit.fit(rest + found[1500:1506], GRAPHS, 0.05)
    for tokens, times in ((60, 1.0), (100, 1.25), (128, 1.25), (200, 1.0)):
        one = sample([(tokens - 4, 0)], [50] * 4, density=2e4)
        assert predicted(model, one) == pytest.approx(times * truth(one), rel=0.03)


def test_recent_load_is_found_again() -> None:
    found = made_up(1500, 0.005)
    for s in found:
        s.seconds *= 1.0 + 0.08 * (s.density / 4e4) * pass_fit.fading(s.seconds / 0.05)
    model = pass_fit.fit(found, GRAPHS, 0.05)
    assert model.share(0.005, 38_000) / model.share(0.005, 2_000) == pytest.approx(1.07, abs=0.02)
    assert model.share(0.5, 38_000) < model.share(0.005, 38_000)  # a long step outlives what was before it


def test_steps_without_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="no step that computes prompts"):
        pass_fit.fit([sample([], [10])], GRAPHS, 0.05)


def test_a_surface_is_fitted_to_even_and_uneven_batches() -> None:
    rng = random.Random(5)
    found = []
    for size in (1, 8, 64):
        for each in (64, 256, 1024):
            for _ in range(6):
                seconds = 0.005 + 1e-5 * size + 2e-8 * size * each
                one = sample([], [each] * size, seconds * (1 + rng.gauss(0, 0.002)))
                one.kind = "decode"
                found.append(one)
    sizes, seconds, few = decode_fit.surface(found, (64, 256, 1024))
    assert sizes == [1, 8, 64]
    assert not few
    for size, row in zip(sizes, seconds, strict=True):
        for each, value in zip((64, 256, 1024), row, strict=True):
            assert value == pytest.approx(0.005 + 1e-5 * size + 2e-8 * size * each, rel=0.01)


def timeline(launch: float, device: float, count: int = 60) -> Steps:
    """Steps of one sequence, the host launching each within *launch*, the device taking *device*."""
    start, over, heard = [], [], []
    free, last = 0.0, 0.0
    for i in range(count):
        begun = free
        asked = begun
        launched = begun + launch
        last = max(last, launched) + device
        start.append(asked)
        over.append(last)
        free = max(launched, over[i - 1] if i else 0.0)
        heard.append(last + (5e-3 if i % 3 else 2e-5))
    starts, overs = np.array(start), np.array(over)
    gaps = np.maximum(starts[1:] + launch - overs[:-1], 0.0)
    return Steps(
        "decode",
        {},
        starts,
        starts,
        np.concatenate(([0.0], overs[:-1])),
        np.array(heard),
        [[] for _ in range(count)],
        [np.array([100.0 + i]) for i in range(count)],
        np.full(count, launch),
        np.full(count, launch),
        np.full(count, device),
        np.concatenate(([0.0], gaps)),
    )


def test_the_ends_of_steps_are_found_though_the_host_hears_late() -> None:
    steps = timeline(1e-3, 6e-3)
    assert ends(steps) == pytest.approx(np.array(steps.end) - np.where(np.arange(60) % 3, 5e-3, 2e-5), abs=1e-4)
    found = all_samples([steps], 512, 0.05)
    assert np.median([s.seconds for s in found]) == pytest.approx(6e-3, rel=0.02)
    assert not any(s.waited for s in found[5:])


def test_steps_that_wait_for_their_launch_are_known() -> None:
    found = all_samples([timeline(9e-3, 3e-3)], 512, 0.05)
    assert all(s.waited for s in found[5:])


def test_recorded_steps_come_back(tmp_path: Path) -> None:
    steps, file = timeline(1e-3, 6e-3), tmp_path / "steps.npz"
    step_files.append(file, 0, steps)
    step_files.add_engine(file, {"graphs": [1, 2]})
    (back,) = step_files.read(file)
    assert step_files.engine_of(file) == {"graphs": [1, 2]}
    assert back.kind == "decode"
    assert back.end == pytest.approx(steps.end, abs=1e-6)
    assert back.device == pytest.approx(steps.device)
    assert [c.tolist() for c in back.contexts] == [c.tolist() for c in steps.contexts]


def test_a_line_goes_through_medians() -> None:
    points = [(float(n), 2e-3 + 3e-5 * n) for n in (1, 2, 8, 64, 256) for _ in range(6)] + [(64.0, 1.0)]
    constant, slope = lines_through(points)
    assert (constant, slope) == (pytest.approx(2e-3, rel=0.05), pytest.approx(3e-5, rel=0.05))
    assert launch_line([], 512) is None
