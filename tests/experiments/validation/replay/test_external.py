"""Runs that somebody else measured: how far the simulation by a profile of their tables is off. Nothing is fitted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.registry.catalog import MEASURED
from servetwin.experiments.validation import score
from servetwin.experiments.validation.replay import external as replay_external
from servetwin.profiles import load

RTX4090 = MEASURED / "rtx4090" / "external-llama-3.1-8b.json.gz"
PRO6000 = MEASURED / "rtxpro6000" / "external-llama-3.1-8b.json.gz"
#: Points of goodput that LLMServingSim's own simulator is off, on average and at most, by its authors' latencies.
AUTHORS = (3.8, 10.7)


@pytest.fixture(scope="module")
def run() -> replay_external.External:
    return replay_external.read(RTX4090)


def test_the_external_scoreboard(run):
    simulated = replay_external.simulate(run)
    for m in replay_external.means(run, simulated):
        if m.what.startswith("mean"):
            assert abs(m.off) < 2.0, m
    gaps = [100.0 * abs(g.simulated - g.measured) / 300 for g in replay_external.goodput(run, simulated)]
    assert len(gaps) == 25
    assert np.mean(gaps) <= AUTHORS[0]
    assert max(gaps) <= AUTHORS[1]


def test_what_was_measured_is_as_its_authors_tell_it(run):
    """Their summary counts from when the engine took a request in, some hundredths of a second later."""
    assert run.measured.ttft.mean() == pytest.approx(65.4566, rel=1e-3)
    assert 1000 * run.measured.tpot.mean() == pytest.approx(32.4, abs=0.05)
    assert run.measured.e2el.mean() == pytest.approx(86.5783, rel=1e-3)


def test_where_memory_is_short_it_matters_what_the_preempted_find_again(run):
    """Without that the same profile is off by 5 % in ttft, and by more points than the authors' simulator."""
    without = {**run.engine, "enable_prefix_caching": False}
    other = replay_external.External(**{**vars(run), "engine": without})
    assert replay_external.simulate(other).ttft.mean() > 1.04 * run.measured.ttft.mean()


def test_score_takes_it_and_says_what_it_stands_on(servetwin, tmp_path: Path):
    code, out, err = servetwin("score", RTX4090, "--out", tmp_path / "out.csv")
    assert (code, err) == (0, "")
    assert "mean ttft" in out
    assert "authors' own" in out
    assert "is imported from LLMServingSim's tables" in out
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 26


def test_what_is_held_out_cannot_be_scored_but_was_predicted():
    run = replay_external.read(PRO6000)
    assert run.measured is None
    with pytest.raises(BadInput, match="held out"):
        score.score(PRO6000)
    said = json.loads((PRO6000.parent / "prediction.json").read_text())
    assert (said["run"], said["profile"]) == (run.name, run.profile)
    for name in replay_external.METRICS:
        assert len(said[name]) == len(run.requests) == 300
        assert np.mean(said[name]) == pytest.approx(said["seconds"][f"mean {name}"], abs=1e-5)
    outputs = np.array([output for _, _, output in run.requests])
    last = np.array(said["ttft"]) + np.array(said["tpot"]) * (outputs - 1)
    assert last == pytest.approx(said["e2el"], abs=1e-3)


def test_blocks_that_are_not_given_follow_the_engine():
    run = replay_external.read(PRO6000)
    data = load(run.profile).token_data
    assert run.blocks is None
    assert run.limits.blocks == data.kv.blocks
    smaller = replay_external.External(**{**vars(run), "engine": {**run.engine, "max_num_batched_tokens": 1024}})
    assert smaller.limits.blocks > run.limits.blocks


def test_a_file_that_is_none(tmp_path: Path):
    path = tmp_path / "external-x.json.gz"
    path.write_bytes(gzip.compress(b'{"name": "x"}'))
    with pytest.raises(BadInput, match="it has no key source"):
        replay_external.read(path)


def test_a_run_is_packed_with_both_clocks_put_together(tmp_path: Path):
    lines = [
        {"arrival_time": 1000.0, "queued_ts": 50.001, "first_token_ts": 51.001, "last_token_ts": 53.001,
         "input_toks": 10, "output_toks": 3},
        {"arrival_time": 1002.0, "queued_ts": 52.101, "first_token_ts": 52.501, "last_token_ts": 52.501,
         "input_toks": 20, "output_toks": 1},
    ]  # fmt: skip
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    engine = replay_external.read(RTX4090).engine
    facts = {"name": "a run", "source": "here", "engine": engine, "profile": "none"}
    replay_external.pack(tmp_path, facts, tmp_path / "external-a.json.gz")
    found = replay_external.read(tmp_path / "external-a.json.gz")
    assert found.requests == ((0.0, 10, 3), (2.0, 20, 1))
    assert found.measured.ttft == pytest.approx([1.0, 0.5])  # the second was taken in 0.1 s after it came
    assert found.measured.tpot == pytest.approx([1.0, 0.0])


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "no list of requests": lambda data: data.update(requests=1.5),
    "no requests": lambda data: data.update(requests=[]),
    "a request of two numbers": lambda data: data["requests"].append([1.0, 3]),
    "a prompt in words": lambda data: data["requests"].append([200.0, "many", 1, 201.0, 202.0]),
    "some without tokens": lambda data: data["requests"].append([200.0, 5, 1]),
    "no options of the engine": lambda data: data.pop("engine"),
    "an option that is none": lambda data: data["engine"].update(max_num_seqs="all"),
    "a missing option": lambda data: data["engine"].pop("async_scheduling"),
    "a key that nobody reads": lambda data: data.update(request=[]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_none_is_told_in_a_line(servetwin, what: str, tmp_path: Path) -> None:
    with gzip.open(RTX4090) as file:
        data = json.load(file)
    WRONG[what](data)
    path = tmp_path / "external-x.json.gz"
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    code, out, err = servetwin("score", path, "--out", tmp_path / "out.csv")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "external-x.json.gz: " in err


@pytest.mark.parametrize("content", [b"", b"[1, 2]", gzip.compress(b"[" * 100_000), gzip.compress(b"[1, 2]")[:-9]])
def test_so_is_what_is_no_file_of_runs_at_all(servetwin, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "external-x.json.gz").write_bytes(content)
    code, out, err = servetwin("score", tmp_path / "external-x.json.gz", "--out", tmp_path / "out.csv")
    assert (code, out, err.count("\n")) == (2, "", 1)
