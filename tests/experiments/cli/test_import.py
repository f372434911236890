"""``servetwin import``: what it writes and says, and that every report says what such a profile stands on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servetwin.experiments.assembly.llm_workers import settings_of
from servetwin.experiments.spec.loading import load
from servetwin.profiles import load as load_profile


def test_the_command(servetwin, tmp_path: Path):
    out = tmp_path / "new" / "p.yaml"
    code, said, err = servetwin("import", "roofline", "qwen3-8b", "--device", "h100", "--out", out)
    assert (code, err) == (0, "")
    assert "KV blocks of 16, computed" in said
    assert "is estimated by a roofline" in said
    code, said, _ = servetwin(
        "run",
        "opt-13b-h100-async",
        "--set",
        f"deployment.devices.gpu0={out}",
        "--requests",
        20,
        "--out",
        tmp_path / "r",
    )
    assert code == 0
    assert "is estimated by a roofline" in said
    assert "estimated" in json.loads((tmp_path / "r" / "summary.json").read_text())["basis"][0]
    assert "is estimated by" in servetwin("compare", tmp_path / "r", tmp_path / "r")[1]
    assert "is estimated by" in servetwin("profiles", out)[1]


def test_sweeps_and_searches_say_it_too(servetwin, tmp_path: Path):
    out = tmp_path / "p.yaml"
    servetwin("import", "roofline", "qwen3-8b", "--device", "h100", "--out", out)
    (tmp_path / "s.yaml").write_text(
        f"extends: opt-13b-h100-async\nset: {{requests: 20, deployment.devices.gpu0: {out}}}\ngrid: {{rate: [5.0]}}\n"
    )
    code, _, err = servetwin("sweep", tmp_path / "s.yaml", "--out", tmp_path / "s.csv", "--jobs", 1, "--no-cache")
    assert code == 0
    assert "is estimated by a roofline" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing", "x"), "unknown format 'nothing'"),
        (("roofline", "qwen3-8b", "--device", "h100", "--set", "compute"), "is no NAME=VALUE"),
        (("csv", "none.csv", "--device", "h100", "--model", "qwen3-8b"), "cannot be read"),
        (("llmservingsim", "nowhere"), "is no folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(servetwin, tmp_path: Path, arguments, said):
    out = tmp_path / "p.yaml"
    code, text, err = servetwin("import", *arguments, "--out", out)
    assert (code, text) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_blocks_follow_the_engine_of_the_experiment(servetwin, tmp_path: Path):
    out = tmp_path / "p.yaml"
    servetwin("import", "roofline", "qwen3-8b", "--device", "h100", "--out", out)
    profile = load_profile(out)

    def blocks(**engine: int) -> int:
        changes = [("deployment.devices.gpu0", str(out))]
        changes += [(f"deployment.workers.0.{key.replace('__', '.')}", value) for key, value in engine.items()]
        (spec,) = load("opt-13b-h100-async", changes).deployment.workers
        return settings_of(spec, profile).limits.blocks

    assert blocks() == profile.token_data.kv.blocks
    assert blocks(limit=16) > blocks()
    assert blocks(engine__max_batched_tokens=32768) < blocks()
    assert blocks(engine__blocks=77) == 77
