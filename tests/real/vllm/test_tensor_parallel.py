"""vLLM over two devices: its workers are processes of their own, which launch the steps and watch themselves.

On the CPU, with a tiny model and two workers that exchange by gloo: what launches take says nothing of a GPU, but who
launches, who waits for whom, and what comes to whom is as there.
"""

import itertools
import random

import ahead
import numpy as np
import pytest
import yaml
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.backends.profile_llm import plan_for, text_of
from servetwin.experiments.backends.vllm import VllmBackend
from servetwin.experiments.registry.vllm_settings import settings_of
from servetwin.experiments.spec.loading import load as load_experiment
from servetwin.profiles import load
from servetwin.profiles.tables.costs import BEGINS, LAUNCH, TOLD, TOLD_EACH
from servetwin.real.vllm.engine import EngineOptions, VllmEngine
from servetwin.real.vllm.launches.in_workers import apart
from servetwin.real.vllm.profiling.compose import described
from servetwin.real.vllm.profiling.fitting.step_profile import MEMORY, section
from servetwin.real.vllm.profiling.measuring.blind_traffic import Load, play_loads
from servetwin.real.vllm.profiling.measuring.compositions import Player
from servetwin.real.vllm.profiling.measuring.device_steps import all_samples, samples, steps_of
from servetwin.real.vllm.profiling.measuring.step_cells import (
    Beat,
    Cells,
    Limits,
    Part,
    decode_batches,
    mixed_batches,
    prompt_batches,
)
from servetwin.real.vllm.profiling.measuring.step_files import append, read
from servetwin.real.vllm.profiling.profile_content import file_content

OPTIONS = EngineOptions(
    model="tiny-llama",
    kv_bytes=8 << 20,
    max_sequences=16,
    max_batched_tokens=256,
    asynchronous=True,
    tensor_parallel=2,
)
#: A few steps of each kind, made in seconds.
CELLS = Cells(
    decode=(1, 4, 8, 14),
    contexts=(32, 256),
    steps=4,
    totals=(16, 64, 128, 256),
    prompts=(2,),
    chunks=(32, 128),
    before=(250,),
    mixed=(4, 12),
    beside=(100,),
    anchors=((32, 0), (64, 250)),
    drawn=4,
    budgets=(256,),
)


@pytest.fixture(scope="module")
def engine():
    ahead.force()
    engine = VllmEngine(OPTIONS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def profile(engine, tmp_path_factory):
    options, player, rng = engine.options, Player(engine, watch=True), random.Random(1)
    limits = Limits(options.max_batched_tokens, options.max_sequences, options.max_model_len, player.room)
    rounds = (
        *decode_batches(CELLS, limits, rng),
        *prompt_batches(CELLS, limits, rng, chunks=True),
        *mixed_batches(CELLS, limits, rng),
    )
    loads = [Load("vllm-v1", None, 256, 6, prompt=(20, 60), output=(8, 20))]
    with engine.undisturbed():
        parts = [steps_of(player.play(part)) for part in rounds]
        found = all_samples(parts, 0, MEMORY)
        served, intake = play_loads(engine, player.clock, found, 5.0, lambda _: None, loads)
    parts += served
    facts = described(engine)
    content = file_content(
        section(parts, facts, {"file": "here"}, intake),
        facts,
        name="here/tiny-tp2",
        when="2026-11-30",
        command="this",
    )
    file = tmp_path_factory.mktemp("profile") / "tiny-tp2.yaml"
    file.write_text(text_of(content))
    return file


def test_the_workers_tell_when_they_launched_a_step(engine, tmp_path):
    """They launch one step after the other; the engine's process is free as soon as it has told them."""
    assert apart(engine.core)
    player = Player(engine, watch=True)
    beats = [Beat((), 0, 8)] * 12 + [Beat(((200, 0),), 0, 8)] + [Beat((), 0, 8)] * 12
    played = player.play(Part("mixed", (50,) * 8, beats))
    steps = steps_of(played)
    assert steps.apart
    assert len(played.launches) == len(steps) == len(beats)
    launched = steps.scheduled + steps.held + steps.launched
    sampled = steps.scheduled + steps.held + steps.sampled
    assert all(a <= b for a, b in itertools.pairwise(launched))
    assert (sampled[:-1] <= launched[1:]).all(), "a worker launches a step when it is done with the one before"
    assert (steps.launched > 0.0).all()
    assert (steps.sampled >= steps.launched).all()
    # They compute while they launch, here, and exchange in each layer: a step is over when both are at it.
    assert (steps.end[1:] >= sampled[:-1]).all()
    assert np.median(steps.end - launched) > -1e-3
    # It told them of the most steps while they were at the one before, and was free long before these were launched.
    assert np.median(steps.held) > 0.0
    assert np.median(steps.told) < np.median(steps.held + steps.sampled)
    # What a launch is said to take is without that.
    found = list(samples(steps, 512, 0.05, None))
    assert len(found) >= len(steps) - 1
    for i, sample in enumerate(found, len(steps) - len(found)):
        assert (sample.sampled, sample.held, sample.told) == (steps.sampled[i], steps.held[i], steps.told[i])
    file = tmp_path / "steps.npz"
    append(file, 0, steps)
    again = read(file)[0]
    assert np.allclose(again.told, steps.told, rtol=1e-6)
    assert np.allclose(again.held, steps.held, rtol=1e-6)


def test_a_profile_has_traffic_and_launches_of_its_own(profile):
    made = load(str(profile))
    assert made.token_data.tensor_parallel == 2
    blind = made.token_data.blind
    assert blind is not None
    assert "decode" in blind.kinds
    told = made.costs[TOLD()].scalar()
    assert 0.0 < told < made.costs[LAUNCH()].scalar() + made.costs.get(BEGINS(), made.costs[LAUNCH()]).scalar()
    assert TOLD_EACH() in made.costs


def test_a_run_is_served_and_simulated_by_such_a_profile(engine, profile, tmp_path, monkeypatch):
    content = {
        "name": "tp2",
        "pipeline": {"modules": {"llm": {"kind": "llm"}}},
        "workload": {
            "requests": 40,
            "draws": "seeded",
            "arrivals": {"process": "poisson", "rate": 20.0},
            "lengths": {
                "llm": {
                    "prompt": {"draw": "uniform", "low": 20, "high": 60},
                    "output": {"draw": "uniform", "low": 6, "high": 12},
                }
            },
        },
        "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 5000, "tpot_ms": 2000}},
        "policy": {"name": "vllm-v1"},
        "deployment": {
            "devices": {"gpu0": str(profile)},
            "workers": [{"modules": ["llm"], "device": "gpu0", "limit": 16}],
        },
    }
    file = tmp_path / "tp2.yaml"
    file.write_text(yaml.safe_dump(content))
    experiment = load_experiment(str(file))
    backend = VllmBackend()
    assert backend.kept_for(experiment).tensor_parallel == 2
    # Blocks of the same number: each device holds half of every token's keys and values.
    assert backend.kept_for(experiment).kv_bytes == OPTIONS.kv_bytes
    monkeypatch.setattr(backend, "_engine", lambda *_: engine)
    report = backend.run(experiment, tmp_path / "real")
    assert report.summary.finished == 40
    assert report.steps > 40
    assert report.host is None  # the profile has no graphs, and so no launches of graphs to hold these against
    assert build.run(experiment, tmp_path / "sim").finished == 40


def test_after_a_run_that_broke_off_the_workers_serve_the_next(engine):
    from servetwin.core.llm import Step, TokenPolicy
    from servetwin.real.vllm.plan import Planned
    from servetwin.real.vllm.scheduler import Settings

    class Breaks(TokenPolicy):
        """Raises in the middle."""

        steps = 0

        def decide(self, view, now):
            self.steps += 1
            if self.steps > 4:
                raise ValueError("enough")
            return Step([(task, task.pending) for task in view.waiting], [t for t in view.running if t.decoding])

    heard = []
    planned = [Planned(i, 0.0, 20, 8) for i in range(4)]
    with pytest.raises(Exception, match="enough"):
        engine.serve(planned, Settings(), policy=Breaks(), stopped=heard.append)
    assert [served.outcome for served in heard[0].requests] == ["failed"] * 4
    run = engine.serve(planned, Settings(policy="vllm-v1"))
    assert [served.outcome for served in run.requests] == ["finished"] * 4
    assert len(run.launches) == len(run.steps)
    assert all(0.0 < at.launched <= at.sampled for at in run.launches)


def test_heads_that_cannot_be_shared_are_refused():
    with pytest.raises(BadInput, match=r"2 heads .* which 3 devices cannot share"):
        plan_for("tiny-opt", settings=settings_of(["tensor-parallel-size=3"]))
    options, _ = plan_for("tiny-opt", settings=settings_of(["tensor-parallel-size=2"]))
    assert options.tensor_parallel == 2
