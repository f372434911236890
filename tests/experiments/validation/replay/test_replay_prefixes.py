"""Packed runs of engines that cache prefixes are repeated with the cache and the prefixes of their experiments."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.replay import chat

PROFILE = "h200-lengths/llama-3.1-8b"
WORKER = {"modules": ["llm"], "device": "gpu0", "limit": 256}


def packed(folder: Path, engine: dict[str, object]) -> Path:
    content = {
        "name": "assistants",
        "pipeline": {"modules": {"llm": {"kind": "llm"}}},
        "workload": {
            "requests": 200,
            "arrivals": {"process": "gamma", "rate": 30.0, "cv": 1.0},
            "lengths": {
                "llm": {
                    "prompt": {"draw": "uniform", "low": 600, "high": 1500},
                    "output": {"draw": "uniform", "low": 20, "high": 90},
                    "prefix": {"draw": "shared", "groups": 5, "tokens": 512},
                }
            },
        },
        "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 150, "tpot_ms": 18}},
        "policy": {"name": "vllm-v1"},
        "deployment": {"devices": {"gpu0": PROFILE}, "workers": [{**WORKER, "engine": engine}]},
    }
    build.run(load(content), folder / "runs" / "one")
    out = folder / "runs-one.json.gz"
    assert chat.pack(folder / "runs", PROFILE, out, PROFILE) == []
    return out


def test_what_was_found_is_packed_and_found_again(tmp_path: Path) -> None:
    file = packed(tmp_path, {"enable_prefix_caching": True})
    _, (run,) = chat.read(file)
    summary = json.loads((tmp_path / "runs" / "one" / "summary.json").read_text())
    assert run.hit_rate == pytest.approx(summary["prefix_cache_hit_rate"])
    assert 0.3 < run.hit_rate < 0.5  # type: ignore[operator]
    # All but the first of each group find its 512 tokens: repeated, with other noise, one group more or less early.
    simulated = chat.simulate(run, PROFILE)
    assert simulated.hit_rate == pytest.approx(run.hit_rate, abs=0.01)
    told = [line for line in chat.lines(file, seeds=1) if "prefix cache" in line]
    assert told == [line for line in told if line.startswith(f"    prefix cache: {100 * run.hit_rate:.2f} % of")]  # type: ignore[operator]
    assert len(told) == 1


def test_without_the_cache_nothing_is_said_of_it(tmp_path: Path) -> None:
    file = packed(tmp_path, {})
    assert not {"ids", "cached"} & set(json.loads(gzip.decompress(file.read_bytes()))["runs"][0])
    _, (run,) = chat.read(file)
    assert (run.hit_rate, chat.simulate(run, PROFILE).hit_rate) == (None, None)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ids", [0, 1], "200 requests, and ids of 2"),
        ("cached", [16] * 201, "200 requests, and cached of 201"),
        ("cached", [-1] * 200, "cached"),
        ("ids", ["one"] * 200, "ids"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path: Path, key: str, value: object, said: str) -> None:
    file = packed(tmp_path, {"enable_prefix_caching": True})
    data = json.loads(gzip.decompress(file.read_bytes()))
    data["runs"][0][key] = value
    file.write_bytes(gzip.compress(json.dumps(data).encode()))
    with pytest.raises(BadInput, match=said):
        chat.read(file)


def test_requests_that_the_experiment_does_not_draw_are_refused(tmp_path: Path) -> None:
    file = packed(tmp_path, {"enable_prefix_caching": True})
    data = json.loads(gzip.decompress(file.read_bytes()))
    data["runs"][0]["ids"][7] = 4000
    file.write_bytes(gzip.compress(json.dumps(data).encode()))
    _, (run,) = chat.read(file)
    with pytest.raises(BadInput, match="its experiment draws no request 4000"):
        chat.simulate(run, PROFILE)
