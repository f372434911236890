"""The profiler of steps of all compositions, on vLLM with a tiny model on the CPU: what is asked for is what runs."""

import dataclasses

import ahead
import numpy as np
import pytest
from servetwin.core import ServeTwinError
from servetwin.profiles.schema import ProfileFile
from servetwin.profiles.tables.costs import INTAKE, LAUNCH, LAUNCH_EACH
from servetwin.real.vllm.engine import EngineOptions, VllmEngine
from servetwin.real.vllm.profiling.compose import compose, described
from servetwin.real.vllm.profiling.fitting.step_profile import section
from servetwin.real.vllm.profiling.measuring.blind_traffic import Load
from servetwin.real.vllm.profiling.measuring.compositions import Player
from servetwin.real.vllm.profiling.measuring.step_cells import Beat, Part
from servetwin.real.vllm.profiling.measuring.step_files import add_engine, append, engine_of, read
from servetwin.real.vllm.profiling.profile_content import file_content

LOADS = (Load(None, None, 256, 6, prompt=(20, 60), output=(8, 20)), Load("sarathi", {"chunk": 32}, 256, 6))


OPTIONS = EngineOptions(
    model="tiny-llama", kv_bytes=32 << 20, max_sequences=32, max_batched_tokens=512, asynchronous=True
)


@pytest.fixture(scope="module")
def engine():
    ahead.force()
    return VllmEngine(OPTIONS)


@pytest.fixture(scope="module")
def parts(engine):
    return compose(engine, 8.0, 6.0, loads=LOADS, made_of=LOADS[:1])


def test_a_step_computes_what_it_was_told_to(engine):
    """Chunks stand on tokens that nobody computed, beside sequences that decode at their contexts."""
    player = Player(engine, watch=True)
    beats = [Beat((), 0, 3), Beat(((40, 0),), 0, 3), Beat(((24, 96), (8, 8)), 1, 2), Beat((), 0, 3), Beat((), 0, 3)]
    played = player.play(Part("mixed", (50, 100, 300), beats))
    computed = [sorted((n, c) for _, n, c in step.prefill) for step in played.steps[-5:]]
    assert computed == [[], [(40, 0)], [(8, 8), (24, 96)], [], []]
    contexts = [sorted(step.contexts) for step in played.steps[-5:]]
    assert [len(some) for some in contexts] == [3, 3, 2, 3, 3]
    assert [b - a for a, b in zip(contexts[3], contexts[4], strict=True)] == [1, 1, 1]
    assert 50 <= contexts[0][0] < 60
    assert 300 <= contexts[0][2] < 310
    assert len(played.launches) >= 5
    assert all(0.0 < at.launched <= at.sampled for at in played.launches)


def test_with_a_prefix_cache_steps_are_those_that_were_asked_for():
    """A whole pool stands, however much it is over the tokens of a step, and chunks stand on what nobody computed."""
    ahead.force()
    player = Player(VllmEngine(dataclasses.replace(OPTIONS, enable_prefix_caching=True)))
    shapes = (((100, 150),), ((40, 0), (8, 96), (16, 300), (100, 200)))
    beats = [Beat((), 0, 20), Beat(shapes[0], 4, 16), Beat((), 0, 20), Beat(shapes[1], 0, 3), Beat((), 19, 1)]
    for _ in range(2):  # what was cached before changes nothing
        steps = player.play(Part("mixed", (250,) * 20, tuple(beats))).steps[-5:]
        assert [sorted((n, c) for _, n, c in step.prefill) for step in steps] == [
            sorted(beat.chunks) for beat in beats
        ]
        assert [step.decode for step in steps] == [beat.size for beat in beats]
        assert all(context >= 250 for step in steps for context in step.contexts)


def test_a_pool_that_does_not_stand_is_no_part(engine):
    """Too little memory for all of it: smaller batches than asked for would be measured."""
    player = Player(engine)
    most = player.room // 2000
    assert most < 32
    with pytest.raises(ServeTwinError, match=f"of {most + 2} sequences that are to decode {most} stand"):
        player.play(Part("decode", (2000,) * (most + 2), (Beat((), 0, 1),)))
    assert len(player.play(Part("decode", (100,) * 4, (Beat((), 0, 4),))).steps) == 1


def test_parts_of_all_kinds_and_traffic(parts):
    found, intake = parts
    assert {"decode", "mixed", "prompts", "requests", "traffic"} <= {part.kind for part in found}
    assert sum(part.kind == "traffic" for part in found) == len(LOADS)
    assert all(len(part.contexts) == len(part) for part in found)
    assert intake
    assert min(intake) > 0.0


def test_a_profile_is_made_and_judged_of_them(engine, parts, tmp_path):
    found, intake = parts
    made = section(found, described(engine), {"file": "here"}, intake)
    content = ProfileFile.model_validate(
        file_content(made, described(engine), name="here/tiny", when="2026-11-29", command="this")
    )
    assert content.tokens.blind is not None
    assert "decode" in content.tokens.blind.kinds
    for name in (INTAKE(), LAUNCH(), LAUNCH_EACH()):
        assert content.costs[name].scalar() >= 0.0
    # Steps in a file are the same steps.
    file = tmp_path / "steps-tiny.npz"
    for number, part in enumerate(found):
        append(file, number, part)
    add_engine(file, described(engine))
    again = read(file)
    assert engine_of(file)["options"]["model"] == "tiny-llama"
    assert [len(part) for part in again] == [len(part) for part in found]
    for a, b in zip(found, again, strict=True):
        assert a.chunks == b.chunks
        assert np.allclose(a.end, b.end, atol=2e-6)
