"""Nine runs of Llama-3.1-8B on an H200, replayed without a GPU: by the profile as it was taken, and as it is."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.registry.catalog import MEASURED
from servetwin.experiments.validation import score
from servetwin.experiments.validation.replay import chat as replay_chat
from servetwin.experiments.validation.replay.external import Means

FILE = MEASURED / "h200-chat" / "runs-llama-3.1-8b.json.gz"
TAKEN = MEASURED / "h200-chat" / "llama-3.1-8b-as-taken.yaml"
#: The report has ten.
SEEDS = 3
PROFILE, RUNS = replay_chat.read(FILE)


def _judged(profile: str) -> tuple[np.ndarray, list[list[Means]]]:
    simulated = [replay_chat.simulate(run, profile, SEEDS) for run in RUNS]
    gaps = [replay_chat.gap(run, said) for run, said in zip(RUNS, simulated, strict=True)]
    return np.abs(gaps), [replay_chat.means(run, said) for run, said in zip(RUNS, simulated, strict=True)]


def _off(told: list[list[Means]], what: str) -> float:
    return float(np.mean([abs(m.off or 0.0) for run in told for m in run if m.what == what]))


def test_they_are_there():
    assert [run.policy for run in RUNS] == [
        "vllm-v1", "sarathi", "edf-llm", "neustream-llm", "vllm-v1", "sarathi", "vllm-v1", "edf-llm", "neustream-llm",
    ]  # fmt: skip
    assert all(len(run.requests) >= 600 for run in RUNS)
    assert min(run.met for run in RUNS) < 100 < max(run.met for run in RUNS)


def test_what_was_predicted_is_far_off_and_better_since():
    """As docs/reports/2026-11-h200-chat.md says it, with little on top: the aim of 1 and 3 points is missed."""
    gaps, told = _judged(PROFILE)
    assert gaps.mean() <= 14.0
    assert gaps.max() <= 28.0
    assert _off(told, "mean ttft") <= 21.0
    assert _off(told, "mean tpot") <= 13.3
    assert _off(told, "mean e2el") <= 13.3
    blind, then = _judged(str(TAKEN))
    for what in ("mean ttft", "mean tpot", "mean e2el"):
        assert _off(told, what) < _off(then, what)
    assert gaps.mean() < blind.mean()


def test_whoever_simulates_must_beat_what_does_not():
    gaps, _ = _judged(PROFILE)
    for others in replay_chat.trivial(RUNS).values():
        assert gaps.mean() < 0.55 * np.abs(others).mean()


def test_score_takes_them(tmp_path: Path):
    scored = score.score(FILE, tmp_path / "out.csv", seeds=1)
    assert len(scored) == len(RUNS)
    assert [s.run.met for s in scored] == [run.met for run in RUNS]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + len(RUNS)


def test_they_cannot_be_replayed_with_other_terms_of_time():
    with pytest.raises(BadInput, match="repeated as they are"):
        score.score(FILE, overrides=[("time.noise", False)])


def test_what_is_no_such_file_is_refused(tmp_path: Path):
    file = tmp_path / "runs-x.json.gz"
    with gzip.open(file, "wt") as out:
        out.write('{"profile": "x"}')
    with pytest.raises(BadInput, match="no runs as they should be"):
        replay_chat.read(file)


def test_what_is_printed_says_all():
    out = "\n".join(replay_chat.lines(FILE, seeds=1))
    assert all(run.name in out for run in RUNS)
    assert "all in time" in out
    assert "p99 e2el" in out
