"""Engines beside others take steps on end as one event, and nothing else shows it (`sim.llm.look_ahead_lane`)."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import servetwin.policies
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.loading import load
from servetwin.sim.llm.look_ahead_lane import may_look_ahead

AGENTS = "matplotagent-rtx4090"


def recorded(experiment, folder: Path, ahead: bool) -> tuple[bytes, dict, dict, int]:
    """Its requests, summary, the ends of all steps by engine, and how many lines there are of batches."""
    recorder = build.folder_for(experiment, folder, {})
    run = build.build(experiment, recorder)
    with build.closing(recorder):
        run.play(columns=ahead)
    batches = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
    steps: dict[str, list] = {}
    for batch in batches:
        ends = batch.get("ends", [batch["end"]])
        parts = [
            (end, batch["context"] + i * batch["decode"]) if "decode" in batch else end for i, end in enumerate(ends)
        ]
        steps.setdefault(batch["worker"], []).extend(parts)
        assert batch["end"] == ends[-1]
        assert all(a < b for a, b in pairwise(ends))
    requests = (folder / "requests.jsonl").read_bytes()
    return requests, json.loads((folder / "summary.json").read_text()), steps, len(batches)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"policy": "vllm", "seed": 3},
        {"policy": "sarathi", "rate": 3.0},
        {"policy": "edf-llm", "seed": 1, "rate": 0.4},
        {"policy": "vllm-v1", "deployment.routers": {"llava": "jsq"}},
        {"deployment.routers": {"llava": "least_violating"}, "seed": 2},
    ],
    ids=str,
)
def test_every_time_and_every_step_is_the_same(settings: dict, tmp_path: Path):
    experiment = load(AGENTS, [("requests", 25), ("records.tokens", True), *settings.items()])
    *plain, many = recorded(experiment, tmp_path / "plain", ahead=False)
    *ahead, few = recorded(experiment, tmp_path / "ahead", ahead=True)
    assert ahead == plain
    assert few < many / 2


def test_where_somebody_could_look_in_between_nobody_is_ahead(tmp_path: Path):
    assert may_look_ahead(build.build(load(AGENTS)).loop)
    assert not may_look_ahead(build.build(load("opt-13b-a6000")).loop)  # alone
    own = tmp_path / "own.py"
    own.write_text("from servetwin.policies.llm.vllm import VLLM\n\n\nclass Own(VLLM):\n    seen = []\n")
    assert not may_look_ahead(build.build(load(AGENTS, [("policy", str(own))])).loop)
    stopped = load(AGENTS, [("requests", 10), ("system.stop_after", 5.0)])
    *plain, many = recorded(stopped, tmp_path / "plain", ahead=False)
    *ahead, few = recorded(stopped, tmp_path / "ahead", ahead=True)
    assert (ahead, few) == (plain, many)


def test_no_policy_or_router_of_ours_asks_peers_for_what_is_only_known_between_events():
    """`may_look_ahead` counts on it."""
    for file in Path(servetwin.policies.__path__[0]).rglob("*.py"):
        text = file.read_text()
        assert "kv_use" not in text, file
        # `cascade` decides for diffusion, by how many requests there are at a peer, which is right at any time.
        assert ".peers" not in text or file.name == "cascade.py", file
