"""The parts of a request's time leave nothing out and overlap nowhere, whatever happens in a run."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import faulty_worlds
import graphs
import pytest
import worlds
from engines import Anything, requests, serve
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from servetwin.core import RunFolder
from servetwin.core.llm.serving.worker import Host
from servetwin.experiments.explaining.causes import SERVED, Cause
from servetwin.experiments.explaining.explanation import explain
from servetwin.policies.llm.fastserve import FastServe
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1


def records(folder: Path) -> dict[int, dict]:
    return {r["id"]: r for r in map(json.loads, (folder / "requests.jsonl").read_text().splitlines())}


def whole(folder: Path) -> list:
    """All requests of the run, explained; each from its arrival to its end, without a gap."""
    lines = records(folder)
    found = explain(folder, requests=list(lines))
    for one in found:
        marks = [p.start for p in one.spans] + [one.ended]
        assert marks[0] == one.arrival
        for (a, b), after in zip(itertools.pairwise(one.spans), marks[1:], strict=False):
            assert a.end == b.start == after
        if one.spans:
            assert one.spans[-1].end == one.ended
        assert all(p.seconds >= 0 for p in one.spans)
        assert sum(one.seconds.values()) == pytest.approx(one.latency, abs=1e-9 * max(1.0, one.ended))
        told = sum(s for stage in one.stages for s in stage.seconds.values())
        if one.stages or not one.spans:  # else it was never sent to a worker
            assert told == pytest.approx(one.latency, abs=1e-9 * max(1.0, one.ended))
        end = lines[one.id]["finished"]
        assert one.ended == (end if end is not None else lines[one.id]["ended"])
    return found


@given(worlds.worlds())
@settings(max_examples=80)
def test_of_diffusion(tmp_path_factory, world) -> None:
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder, {"kind": "simulated"})
    simulation = world.run(recorder)
    recorder.close()
    sent = {r.id: r for r in simulation.requests}
    for one in whole(folder):
        visits = {}
        for task in sent[one.id].tasks:
            visits[task.stage.name, task.queued] = task
        for index, stage in enumerate(one.stages):
            parts = [p for p in one.spans if p.visit == index and p.cause is not Cause.TRANSFER]
            task = next(t for (name, _), t in visits.items() if name == stage.stage)
            own = [p for p in parts if p.own]
            assert all(one.id in p.ran.requests for p in own)
            assert all(one.id not in p.ran.requests for p in parts if p.cause is Cause.QUEUE and p.ran)
            if task.finished is not None:
                assert own[0].start == task.started
                assert own[-1].end == task.finished


@given(faulty_worlds.faulty_worlds())
@settings(max_examples=60)
def test_of_workers_that_fail(tmp_path_factory, world) -> None:
    """From when it was first sent to a worker that lost it until it was sent for the last time is that failure's."""
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder, {"kind": "simulated"})
    world.run(recorder)
    recorder.close()
    lines = records(folder)
    for one in whole(folder):
        attempts = lines[one.id].get("attempts", ())
        failures = [p for p in one.spans if p.cause is Cause.FAILURE]
        assert attempts or not failures
        stays = {stay["stage"]: stay for stay in lines[one.id]["stages"]}
        for index, stage in enumerate(one.stages):
            lost = [attempt for attempt in attempts if attempt["stage"] == stage.stage]
            queued = stays[stage.stage]["queued"] if stage.stage in stays else lost[-1]["queued"]
            again = [attempt["lost"] for attempt in lost if attempt["lost"] < queued]
            own = [p for p in failures if p.visit == index]
            if again:
                assert any(p.start <= again[0] <= p.end for p in own)
            if lost and lost[-1]["lost"] < one.ended and _gave_up(one, lost[-1]["worker"], stage.stage):
                assert own[-1].start == pytest.approx(lost[-1]["lost"])
                assert own[-1].end == one.ended


@given(faulty_worlds.faulty_engines().map(lambda world: replace(world, drafts=0)))
@settings(max_examples=100, phases=[Phase.reuse, Phase.generate])
def test_of_engines_that_fail(tmp_path_factory, world) -> None:
    """Each visit that was lost is one of its own, and after it a failure lasts until the request was at an engine
    again. The parts tell when each token came out, at whichever engine."""
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder, {"kind": "simulated"})
    recorder.wants_token_times = recorder.writes_tokens = True
    world.run(recorder)
    recorder.close()
    lines = records(folder)
    for one in whole(folder):
        lost = lines[one.id].get("attempts", ())
        assert [stage.worker for stage in one.stages[: len(lost)]] == [attempt["worker"] for attempt in lost]
        after = lost[-1]["again"] is not None if lost else bool(lines[one.id]["stages"])
        assert len(one.stages) == len(lost) + after
        assert not any("hold" in note and "of its" in note for note in one.notes)
        for index, attempt in enumerate(lost):
            again = one.ended if attempt["again"] is None else attempt["again"]
            if index + 1 < len(lost) and attempt["again"] is None:
                again = lost[index + 1]["lost"]
            there = [p for p in one.spans if p.visit == index and p.end > attempt["lost"]]
            assert {p.cause for p in there} <= {Cause.FAILURE}
            if again > attempt["lost"]:
                assert (there[0].start, there[-1].end) == (attempt["lost"], again)
        if one.outcome in ("met", "late") and not any("for sure who decoded" in note for note in one.notes):
            came = [p.end for a, p in itertools.pairwise([None, *one.spans]) if p.tokens and p.tokens[0] > _before(a)]
            assert came == lines[one.id]["stages"][0]["tokens"]


@given(graphs.worlds())
@settings(max_examples=60)
def test_of_graphs_with_tools(tmp_path_factory, world) -> None:
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder, {"kind": "simulated"})
    world.run(recorder)
    recorder.close()
    whole(folder)


POLICIES = {
    "anything": None,
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "sarathi": lambda: Sarathi(32),
    "fastserve": lambda: FastServe(starve=0.3, every=3),
}
ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3, 2.0]), st.integers(1, 60), st.integers(1, 40)),
    min_size=1,
    max_size=16,
)
ENGINES = st.fixed_dictionaries(
    {
        "blocks": st.integers(8, 40),
        "block_size": st.just(8),
        "max_sequences": st.sampled_from([1, 3, 8, 64]),
        "max_batched_tokens": st.sampled_from([64, 200]),
    }
)


@given(
    ROWS,
    ENGINES,
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from(["plain", "swap", "host", "ahead"]),
    st.none() | st.floats(0.1, 3.0),
    st.integers(0, 99),
)
@settings(max_examples=120, phases=[Phase.reuse, Phase.generate])
def test_of_engines(tmp_path_factory, rows, limits, name, how, stop_at, seed) -> None:
    """Beside that the parts tell when each token came out, which the records of steps do not say by request."""
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder, {"kind": "simulated"})
    recorder.wants_token_times = recorder.writes_tokens = True
    ahead = how == "ahead"
    make = POLICIES[name] or (lambda: Anything(seed, repeats=not ahead))
    times = list(itertools.accumulate(gap for gap, _, _ in rows))
    sent = requests(*[(at, prompt, output) for at, (_, prompt, output) in zip(times, rows, strict=True)], limit=50)
    host = Host(lambda n: 0.004, 0.001, ahead=ahead) if how in ("host", "ahead") else None
    swapping = {"preemption": "swap", "swap": lambda n: 0.001 * n} if how == "swap" else {}
    serve(make(), sent, host=host, log=recorder, stop_at=stop_at, **swapping, **limits)
    recorder.close()
    lines = records(folder)
    for one in whole(folder):
        stay = (lines[one.id]["stages"] or [{}])[0]
        if one.outcome not in ("met", "late"):
            continue
        if all(line["outcome"] in ("met", "late") for line in lines.values()):  # else some leave unseen, in a step
            assert not any("for sure who decoded" in note for note in one.notes)
        came = [p.end for a, p in itertools.pairwise([None, *one.spans]) if p.tokens and p.tokens[0] > _before(a)]
        assert came == stay["tokens"]
        assert all(p.cause in SERVED for p in one.spans if p.own)
        lost = sum(p.cause is Cause.PREEMPTED for p in one.spans)
        assert not lost or stay["preemptions"]


def _before(part) -> int:
    return part.tokens[0] if part is not None and part.tokens else 0


def _gave_up(one, worker: str, stage: str) -> bool:
    """Whether a request was given up when it was known that *worker*, or all of *stage*, had failed."""
    return bool(one.reason) and (
        one.reason.startswith(f"{worker} failed") or one.reason == f"no worker of {stage} is left"
    )
