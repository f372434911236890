"""Nine runs of Llama-3.1-8B on an H200, replayed without a GPU: by the profile as it was taken, and as it is."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from held_points import hold
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
    if profile == PROFILE:
        met = {run.name: said.met for run, said in zip(RUNS, simulated, strict=True)}
        hold("h200-chat/runs-llama-3.1-8b.json.gz", met, SEEDS)
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


ROUTED = MEASURED / "h200-servers" / "runs-llama-3.1-8b.json.gz"


def routed() -> dict:
    """A file of one run behind a router of a user, of few requests."""
    with gzip.open(ROUTED, "rt", encoding="utf-8") as file:
        data = json.load(file)
    (run, *_) = [run for run in data["runs"] if replay_chat.routers(run["experiment"])]
    run["requests"] = run["requests"][:15]
    return {**data, "runs": [run]}


def written(data: object, folder: Path) -> Path:
    file = folder / "runs-x.json.gz"
    file.write_bytes(gzip.compress(json.dumps(data).encode()))
    return file


GOOD = routed()
ROUTER = "fewest_before.py"


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ((), [], "it is .*a mapping"),
        (("profile",), 3, "profile is 3"),
        (("runs",), [], "runs is"),
        (("files",), None, "files is None"),
        (("files",), {}, "router 'fewest_before.py' .* is not among its files"),
        (("files", ROUTER), 3, "files.fewest_before.py is 3"),
        (("files", ROUTER), "\ud800", "surrogates"),
        (("files", "../evil.py"), "", "evil.py"),
        (("files", "a" * 300 + ".py"), "", "aaa"),
        (("runs", 0, "name"), None, "runs.0.name is None"),
        (("runs", 0, "experiment"), {}, "no key runs.0.experiment.policy"),
        (("runs", 0, "experiment", "deployment"), 3, "deployment is 3"),
        (("runs", 0, "experiment", "deployment", "workers"), [{}], "no key .*workers.0.device"),
        (("runs", 0, "requests"), [], "runs.0.requests is"),
        (("runs", 0, "requests", 3), [], "no key runs.0.requests.3.0"),
        (("runs", 0, "requests", 3, 0), float("nan"), "requests.3.0 is nan"),
        (("runs", 0, "requests", 3, 1), 1.5, "requests.3.1 is 1.5"),
        (("runs", 0, "requests", 3, 2), 0, "requests.3.2 is 0"),
        (("runs", 0, "requests", 3, 3), True, "requests.3.3 is True"),
        (("runs", 0, "requests", 3, 4), "gone", "requests.3.4 is 'gone'"),
        (("runs", 0, "requests", 3, 5), None, "and not a first and a last token after the arrival"),
        (("runs", 0, "requests", 3, 6), 0.0, "and not a first and a last token after the arrival"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused(place, value, says, tmp_path: Path):
    data = copy.deepcopy(GOOD)
    if place:
        of = data
        for key in place[:-1]:
            of = of[key]
        of[place[-1]] = value
    with pytest.raises(BadInput, match=says) as refused:
        replay_chat.read(written(data if place else value, tmp_path))
    assert "runs that ServeTwin packed" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"abc", gzip.compress(b"\xff"), gzip.compress(b"[" * 100_000)])
def test_what_is_no_such_file_is_refused(content: bytes, tmp_path: Path):
    file = tmp_path / "runs-x.json.gz"
    file.write_bytes(content)
    with pytest.raises(BadInput, match="no runs as they should be"):
        replay_chat.read(file)


def test_where_there_is_nothing_to_compare_it_says_so(tmp_path: Path):
    data = copy.deepcopy(GOOD)
    for row in data["runs"][0]["requests"]:
        row[4:] = ["dropped", None, None]
    out = [*replay_chat.lines(written(data, tmp_path), seeds=1)]
    assert any(line.startswith("    ttft: mean nobody, simulated ") for line in out)
    assert "  mean ttft: nothing to compare" in out
    for row in data["runs"][0]["requests"]:
        row[3:] = [1, "met", row[0] + 0.1, row[0] + 0.1]
    out = [*replay_chat.lines(written(data, tmp_path), seeds=1)]
    assert "    tpot: mean 0.0 ms, simulated 0.0 ms" in "\n".join(out)  # of one token each: no time between tokens
    assert "  mean tpot: nothing to compare" in out
    assert "  mean ttft: nothing to compare" not in out


def test_a_run_of_two_language_models_is_refused(tmp_path: Path):
    data = copy.deepcopy(GOOD)
    experiment = data["runs"][0]["experiment"]
    experiment["pipeline"]["modules"]["second"] = experiment["pipeline"]["modules"]["llm"]
    experiment["pipeline"]["edges"] = [["llm", "second"]]
    experiment["workload"]["lengths"]["second"] = experiment["workload"]["lengths"]["llm"]
    experiment["deployment"]["workers"][1]["modules"] = ["second"]
    experiment["deployment"]["router"] = "round_robin"
    profile, (run,) = replay_chat.read(written(data, tmp_path))
    with pytest.raises(BadInput, match="2 language models"):
        replay_chat.simulate(run, profile)


def test_what_is_printed_says_all():
    out = "\n".join(replay_chat.lines(FILE, seeds=1))
    assert all(run.name in out for run in RUNS)
    assert "all in time" in out
    assert "p99 e2el" in out
