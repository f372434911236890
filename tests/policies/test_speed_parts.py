"""What serves only speed in a policy that comes along (a word to repeat, rounds left out) changes no record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from servetwin.core.llm import ALL, Step
from servetwin.experiments.assembly import build
from servetwin.experiments.registry.policy_registry import find_policy, policy_names
from servetwin.experiments.spec.loading import load
from servetwin.policies.diffusion import (
    batcher,
    cascade,
    clockwork,
    deadline_degree,
    edf,
    fcfs,
    fewer_steps,
    fixed_degree,
    from_similar,
    lsf,
    neustream,
    nexus,
    reuse_steps,
    shepherd,
    slack_batch,
    slack_or_neustream,
    srpt,
    symphony,
    tetriserve,
)
from servetwin.policies.llm import (
    andes,
    edf_llm,
    fastserve,
    neustream_llm,
    orca,
    sarathi,
    sjf,
    slack_admission,
    slos_serve,
    splitwise,
    srpt_llm,
    vllm,
    vllm_v1,
    vtc,
)

DIFFUSION = {
    "batcher": batcher,
    "cascade": cascade,
    "clockwork": clockwork,
    "deadline-degree": deadline_degree,
    "edf": edf,
    "fcfs": fcfs,
    "fewer-steps": fewer_steps,
    "fixed-degree": fixed_degree,
    "from-similar": from_similar,
    "lsf": lsf,
    "neustream": neustream,
    "nexus": nexus,
    "reuse-steps": reuse_steps,
    "shepherd": shepherd,
    "slack-batch": slack_batch,
    "slack-or-neustream": slack_or_neustream,
    "srpt": srpt,
    "symphony": symphony,
    "tetriserve": tetriserve,
}
LLM = {
    "andes": andes,
    "edf-llm": edf_llm,
    "fastserve": fastserve,
    "neustream-llm": neustream_llm,
    "orca": orca,
    "sarathi": sarathi,
    "sjf": sjf,
    "slack-admission": slack_admission,
    "slos-serve": slos_serve,
    "splitwise": splitwise,
    "srpt-llm": srpt_llm,
    "vllm": vllm,
    "vllm-v1": vllm_v1,
    "vtc": vtc,
}
#: Those that have no such part: they run whole requests, or share out the devices of a group.
PLAIN = {"batcher", "clockwork", "deadline-degree", "fcfs", "fixed-degree", "nexus", "symphony"}


def slow(name: str, patch: pytest.MonkeyPatch) -> None:
    """Take the speed part off the policy of that *name*."""
    if hasattr(LLM.get(name), "decode_on"):
        patch.setattr(LLM[name], "decode_on", lambda *rule: Step(decode=ALL))
    elif name in LLM:
        patch.setattr(LLM[name], "DECODE", Step(decode=ALL))
        if name == "neustream-llm":
            patch.setattr(neustream_llm.NeuStreamLLM, "_wait", lambda self, *asked: neustream_llm.WAIT)
    elif name == "slack-or-neustream":  # with SLOs of three times the time alone
        patch.setattr(slack_batch.SlackBatch, "_repeat", lambda self, *asked: None)
    elif name != "neustream":
        patch.setattr(find_policy(name), "_repeat", lambda self, *asked: None)
    else:
        patch.setattr(neustream, "MARGIN", math.inf)  # the exact test at every round
        patch.setattr(neustream.NeuStream, "_repeat", lambda self: None)
        patch.setattr(neustream.NeuStream, "_short_round", lambda self, now, late: None)
        patch.setattr(neustream.NeuStream, "_catch_up", lambda self, count: None)


def served(name: str, folder: Path, rate: float, **more: Any) -> tuple[list[Any], dict[str, Any], int]:
    """The records of requests, the summary, and how often the policy was asked."""
    workload = "dit-s2-256-rtx4090" if name in DIFFUSION else "opt-13b-a6000"
    settings = {"policy": name, "rate": rate, "requests": 150, **more}
    if name in {"sjf", "srpt-llm"}:
        settings["workload.lengths.llm.predict"] = {"model": "noisy", "sigma": 0.5}
    if name in {"clockwork", "nexus", "symphony"}:
        settings["deployment"] = "whole"
    summary = build.run(load(workload, list(settings.items())), folder)
    lines = (folder / "requests.jsonl").read_text().splitlines()
    batches = (folder / "batches.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], summary.as_dict(), len(batches)


def test_these_are_all_policies_that_come_along() -> None:
    ours = {name for name in policy_names() if find_policy(name).__module__.startswith("servetwin.policies.")}
    assert ours == {*DIFFUSION, *LLM}


@pytest.mark.parametrize("name", sorted({*DIFFUSION, *LLM} - PLAIN))
@pytest.mark.parametrize("crowded", [False, True])
def test_a_policy_without_its_speed_part_is_merely_slower(
    name: str, crowded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = (6.0 if crowded else 2.0) if name in DIFFUSION else (4.0 if crowded else 1.0)
    fast = served(name, tmp_path / "fast", rate)
    slow(name, monkeypatch)
    plain = served(name, tmp_path / "plain", rate)
    assert plain[0] == fast[0]
    assert plain[1] == fast[1]
    assert plain[2] > fast[2]  # it was asked more often


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_who_runs_whole_requests_says_nothing_of_repeating(name: str) -> None:
    assert not hasattr(DIFFUSION[name], "Repeat")


@pytest.mark.parametrize("module", [*DIFFUSION.values(), *LLM.values()], ids=[*DIFFUSION, *LLM])
def test_a_policy_is_at_most_200_lines_and_tells_its_algorithm_first(module: Any) -> None:
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    if "Repeat(" in text:
        head, mark, tail = text.partition("# -- speed only")
        assert mark
        assert "Repeat(" not in head
        assert "Repeat(" in tail
