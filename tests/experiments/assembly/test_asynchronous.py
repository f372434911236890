"""Asynchronous scheduling in experiments: by the profile, by a key of the engine, in records and replays."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import servetwin.profiles
import yaml
from servetwin.core import BadInput
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.replay.llm import MEASURED, host_of, read, replay, slo_of
from servetwin.profiles import load as profile

DATA = Path(servetwin.profiles.__file__).parent / "data"
KEY = "deployment.workers.0.engine.asynchronous"


@pytest.fixture
def ahead(tmp_path):
    """The profile of OPT-13B on an H100 as if its engine had decided ahead (made up: only the words are)."""
    content = yaml.safe_load((DATA / "h100/opt-13b-tp1.yaml").read_text())
    content["tokens"]["engine"]["asynchronous"] = True
    content["costs"]["step.begins"] = {
        "meaning": "what a step takes longer that nothing runs before",
        "unit": "seconds",
        "modules": ["prefill", "decode"],
        "value": 0.0015,
        "statistic": "made up",
        "how": "not at all",
        "source": {"file": "test_asynchronous.py"},
    }
    path = tmp_path / "ahead.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def small(*overrides, **keys):
    given = [("requests", 60), ("workload.lengths.llm.output.high", 30), ("rate", 12.0), *overrides, *keys.items()]
    return load("opt-13b-h100", given)


def engine_of(experiment):
    (worker,) = build.build(experiment).loop.workers
    return worker


def test_the_profile_says_whether_an_engine_decides_ahead(ahead):
    assert engine_of(small()).host is None
    host = engine_of(small(("deployment.devices.gpu0", ahead))).host
    assert (host.ahead, host.begins) == (True, 0.0015)
    assert host.intake == profile(ahead).cost("engine.intake").scalar() > 0
    assert host.between(8) == profile(ahead).tokens("measured").between(8) > 0
    assert host_of(profile(ahead)).begins == 0.0015
    free = engine_of(small(("deployment.devices.gpu0", ahead), ("time.costs", False))).host
    assert (free.ahead, free.begins, free.intake, free.between(8)) == (True, 0.0, 0.0, 0.0)


def test_what_launching_takes_and_how_the_host_stalls_come_from_the_profile():
    given = [("requests", 300), ("deployment.devices.gpu0", "h100-knees/opt-13b-tp1")]
    costs = profile("h100-knees/opt-13b-tp1").costs
    host = engine_of(load("opt-13b-h100-async", given)).host
    assert (host.graph_tokens, host.launch) == (1024, costs["step.launch"].value)
    free = engine_of(load("opt-13b-h100-async", [*given, ("time.costs", False)])).host
    assert free.launch == 0.0

    def slowest(*more):
        """The longest of the times between two tokens of a request, in units of the median."""
        found = build.run(load("opt-13b-h100-async", [*given, ("policy", "vllm-v1"), ("rate", 4.0), *more])).as_dict()
        return found["p99_itl_ms"] / found["median_itl_ms"]

    # At this rate few tokens share their step with a prompt; without stalls the slowest hundredth are those.
    with_stalls, regular, without = slowest(), slowest(("time.noise", False)), slowest(("time.costs", False))
    assert with_stalls > without
    assert regular > without
    assert slowest() == with_stalls != slowest(("seed", 1))


def test_the_engine_can_be_told_otherwise(ahead):
    assert engine_of(small((KEY, True))).host.ahead
    assert engine_of(small(("deployment.devices.gpu0", ahead), (KEY, False))).host is None


def test_nothing_is_swapped():
    with pytest.raises(BadInput, match="nothing is swapped"):
        build.build(small((KEY, True), ("deployment.workers.0.engine.preemption", "swap"), ("time.costs", False)))


def test_it_is_a_yes_or_no():
    with pytest.raises(BadInput, match="asynchronous"):
        small((KEY, "perhaps"))


@pytest.mark.parametrize("policy", ["vllm", "vllm-v1", "sarathi", "edf-llm", "neustream-llm"])
def test_every_policy_runs_under_the_invariants_and_leaves_records(ahead, tmp_path, policy):
    experiment = small(("deployment.devices.gpu0", ahead), ("policy", policy))
    checker = InvariantChecker()
    run = build.build(experiment, checker)
    checker.watch(run.loop)
    run.play()
    checker.finish()
    build.run(experiment, tmp_path / "run")
    check_records(tmp_path / "run", {})
    lines = [json.loads(line) for line in (tmp_path / "run/batches.jsonl").read_text().splitlines()]
    # Most steps begin at the moment at which the one before is over.
    behind = sum(b["start"] == a["end"] for a, b in itertools.pairwise(lines))
    assert behind > 0.8 * len(lines)
    again = build.run(experiment)
    assert again.as_dict() == checker.summary.as_dict()


def test_an_engine_profiled_ahead_that_decides_step_by_step_begins_each_later(ahead):
    """One request alone: a step takes its period, the launch, and what passes between two steps."""
    alone = [("deployment.devices.gpu0", ahead), ("requests", 1), ("time.noise", False)]

    class Last(build.Recorder):
        def ended(self, request, now):
            super().ended(request, now)
            self.last = request

    def gap_of(*more):
        run = build.build(small(*alone, *more), Last())
        run.play()
        (stay,) = run.recorder.last.tasks
        return (stay.finished - stay.first_token) / (stay.generated - 1)

    table = profile(ahead).tokens("measured")
    apart, behind = gap_of((KEY, False)), gap_of()
    assert apart - behind == pytest.approx(0.0015 + table.between(1))


def test_replays_take_the_profile_at_its_word(ahead):
    campaign = read(MEASURED / "h100/llm-opt-13b.json.gz")
    run = next(run for run in campaign.runs if run.policy == "vllm-v1")
    run = replace(run, requests=run.requests[:40])
    for name in ("h100/opt-13b-tp1", ahead):
        known = profile(name)
        table, solo = known.tokens("measured", hold=True), known.token_data.solo
        due = slo_of(table, "3+1.5", (solo.d0, solo.d1))
        times, outcomes, steps = replay(run, campaign.limits, table, due, host=host_of(known))
        assert set(outcomes.values()) == {"finished"}
        assert {i: len(ends) for i, ends in times.items()} == {r.id: r.output for r in run.requests}
        assert steps > 40
