"""The decision at which a request was lost: by hand, by the rule written out plainly, and over whole workloads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.assembly.llm_workers import deadlines_of
from servetwin.experiments.explaining.causes import Cause
from servetwin.experiments.explaining.explanation import explain
from servetwin.experiments.spec.loading import load
from servetwin.profiles import load as load_profile


def lines(folder: Path, name: str = "requests.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def served(folder: Path, name, *keys) -> Path:
    build.run(load(name, list(keys)), folder)
    return folder


ONE_BY_ONE = (
    ("policy", "fcfs"),
    ("workload.arrivals", {"process": "constant", "rate": 10.0}),
    ("workload.steps.denoise", {"draw": "constant", "steps": 20}),
    ("requests", 8),
    (
        "deployment.workers",
        [
            {"modules": ["encode"], "device": "gpu0", "limit": 8},
            {"modules": ["denoise"], "device": "gpu0", "limit": 1},
        ],
    ),
)


def test_by_hand(tmp_path: Path, toy: Path) -> None:
    """One comes every 0.1 s, each takes 0.01 + 0.2 s alone and may take three times that, and they are served one
    after the other from 0.11 s on. The request that came at 0.6 s is due at 1.23 s: it must begin by 1.03 s, and
    the batch from 0.91 s to 1.11 s is another's."""
    (one,) = explain(served(tmp_path / "run", toy, *ONE_BY_ONE), requests=[5])
    assert (one.outcome, one.latency) == ("late", pytest.approx(0.71))
    assert one.slack.seconds == pytest.approx(-0.08)
    lost = one.lost
    assert (lost.part.ran.requests, lost.part.ran.start, lost.part.ran.end) == (
        (4,), pytest.approx(0.91), pytest.approx(1.11),
    )  # fmt: skip
    assert (lost.before.seconds, lost.after.seconds) == (pytest.approx(0.12), pytest.approx(-0.08))
    assert {cause: pytest.approx(s, abs=1e-9) for cause, s in one.seconds.items() if s > 1e-9} == {
        Cause.IN_FRONT: 0.1, Cause.QUEUE: 0.4, Cause.ALONE: 0.21,
    }  # fmt: skip
    assert one.stages[1].instead == {3: pytest.approx(0.2), 4: pytest.approx(0.2), 2: pytest.approx(0.1)}


def test_a_request_may_be_lost_before_it_comes(tmp_path: Path, toy: Path) -> None:
    (one,) = explain(served(tmp_path / "run", toy, *ONE_BY_ONE, ("slo.factor", 0.5)), requests=[0])
    assert one.lost.part is None
    assert one.lost.before.seconds == pytest.approx(-0.105)


def test_what_a_batch_takes_longer_for_others_is_told_apart(tmp_path: Path, toy: Path) -> None:
    """All come at once: eight in a batch take 0.017 s to encode and 0.02 s a step, instead of 0.01 s alone."""
    at_once = {"process": "constant", "rate": 1e6}
    workers = [{"modules": [m], "device": "gpu0", "limit": 8} for m in ("encode", "denoise")]
    keys = (*ONE_BY_ONE, ("workload.arrivals", at_once), ("deployment.workers", workers), ("requests", 9))
    one = explain(served(tmp_path / "run", toy, *keys), requests=[8])[0]
    denoise = one.stages[1]
    assert denoise.seconds[Cause.ALONE] == pytest.approx(0.2)
    assert denoise.seconds[Cause.SHARED] == pytest.approx(0.2)
    assert (denoise.own, denoise.mean_size) == (1, 8.0)


LIMITS = {"ttft_ms": 500, "tpot_ms": 70, "itl_ms": 300, "e2el_ms": 15_000}
BLOCKS = {"modules": ["llm"], "device": "gpu0", "limit": 256, "engine": {"blocks": 250, "preemption": "recompute"}}
DIES = {
    "detect_seconds": 1,
    "retry": {"attempts": 2, "backoff_seconds": 0.1},
    "script": [{"at": 3, "kind": "fail", "device": "gpu0", "for": 3}],
}
FAULTS = (
    "opt-13b-a6000", ("policy", "vllm-v1"), ("rate", 4.0), ("requests", 40), ("workload.draws", "seeded"),
    ("slo", {"limits": {"ttft_ms": 1000, "tpot_ms": 120}}), ("deployment.replicas", 2), ("deployment.faults", DIES),
)  # fmt: skip
CASES = {
    "edf": ("sd15-512-rtx4090", ("policy", "edf"), ("rate", 3.0), ("requests", 80)),
    "srpt": ("dit-s2-256-rtx4090", ("policy", "srpt"), ("rate", 9.0), ("requests", 100)),
    "clockwork": ("dit-s2-256-rtx4090", ("policy", "clockwork"), ("rate", 8.0), ("requests", 80)),
    "agents": ("matplotagent-h200", ("policy", "vllm-v1"), ("rate", 6.0), ("requests", 30)),
    "vllm": ("opt-13b-a6000", ("policy", "vllm"), ("rate", 4.0), ("requests", 60)),
    "little memory": ("opt-13b-a6000", ("policy", "vllm-v1"), ("rate", 4.0), ("requests", 80),
                      ("deployment.workers", [BLOCKS])),
    "the last token": ("opt-13b-a6000", ("policy", "vllm"), ("rate", 4.0), ("requests", 60), ("slo.meets", "last")),
    "limits": ("opt-13b-a6000", ("policy", "vllm-v1"), ("rate", 3.0), ("requests", 60),
               ("slo", {"limits": LIMITS})),
    "faults": FAULTS,
    "asynchronous": ("opt-13b-h100-async", ("policy", "fastserve"), ("rate", 40.0), ("requests", 80)),
}  # fmt: skip


def test_what_its_client_had_got_of_an_engine_that_failed_was_in_time(tmp_path: Path) -> None:
    """It decodes at one engine until that dies at 3 s, and goes on at the other from 4.1 s on: its first token is
    that of the first."""
    folder = served(tmp_path / "run", *FAULTS)
    for record in [r for r in lines(folder) if "attempts" in r and r["attempts"][0]["generated"]]:
        (attempt,), (stay,) = record["attempts"], record["stages"]
        (one,) = explain(folder, requests=[record["id"]])
        assert (one.outcome, one.lost, one.notes) == ("met", None, [])
        assert one.slack.seconds <= 1.0 - (stay["first_token"] - record["arrival"]) + 1e-9
        first, second = one.stages
        assert (first.worker, second.worker) == ("llm", "llm@gpu0.2")
        assert first.own == attempt["generated"]
        cut = first.seconds[Cause.FAILURE] - 1.1
        assert 0.0 <= cut < 0.06  # beside detection and backoff: the step that was cut off
        assert second.own == 300 - attempt["generated"]
        assert Cause.FAILURE not in second.seconds
        assert second.seconds[Cause.RECOMPUTED] > 0.0
        shown = min(part.start for part in one.spans if part.visit == 1)
        assert shown == attempt["again"] == pytest.approx(4.1)


@pytest.mark.parametrize("name", ["opt-13b-a6000", "dit-s2-256-rtx4090"])
def test_who_waited_for_a_worker_that_never_came_back_waited_for_a_failure(tmp_path: Path, name: str) -> None:
    script = [{"at": 3, "kind": "fail", "device": "gpu0"}]
    faults = ("deployment.faults", {**DIES, "script": script})
    folder = served(tmp_path / "run", name, ("rate", 4.0), ("requests", 30), ("workload.draws", "seeded"), faults)
    lost = {r["id"]: r["attempts"][-1] for r in lines(folder) if "attempts" in r}
    assert len(lost) > 3
    for one in explain(folder, requests=list(lost)):
        assert one.reason.startswith("no worker of")
        assert Cause.TRANSFER not in one.seconds or name.startswith("dit")
        assert one.seconds.get(Cause.TRANSFER, 0.0) < 0.005
        assert one.seconds[Cause.FAILURE] >= one.ended - lost[one.id]["lost"] - 1e-9
        assert one.spans[-1].end == one.ended
        assert one.slack is None or not one.slack.lost


def test_when_it_was_sent_again_is_not_guessed(tmp_path: Path) -> None:
    """Records of a run made before they held it."""
    folder = served(tmp_path / "run", *FAULTS)
    told = lines(folder)
    for record in told:
        for attempt in record.get("attempts", ()):
            del attempt["again"], attempt["admitted"], attempt["prompt"]
    (folder / "requests.jsonl").write_text("".join(json.dumps(record) + "\n" for record in told))
    record = next(r for r in told if "attempts" in r and r["attempts"][0]["generated"])
    (one,) = explain(folder, requests=[record["id"]])
    assert (one.slack, one.lost) == (None, None)
    assert one.seconds[Cause.UNTOLD] == pytest.approx(one.ended - 3.0)
    assert any("does not say when it was sent again after llm had lost it at 3.000 s" in note for note in one.notes)


@pytest.mark.parametrize("case", CASES)
def test_who_was_late_was_lost_and_who_was_met_was_not(tmp_path: Path, case: str) -> None:
    folder = served(tmp_path / "run", *CASES[case])
    found = explain(folder, requests=[r["id"] for r in lines(folder)])
    outcomes = {one.outcome for one in found}
    assert outcomes - {"met"}, "a case in which nobody misses tells nothing"
    for one in found:
        assert not one.notes
        if one.outcome in ("met", "late"):
            assert one.slack.lost == (one.outcome == "late") == (one.lost is not None)
        if one.lost is None:
            continue
        assert one.lost.after.lost
        part = one.lost.part
        if part is None:
            assert one.lost.before.lost
            continue
        assert not one.lost.before.lost
        assert one.lost.before.at <= part.end == one.lost.after.at
        if part.ran is not None:
            assert (one.id in part.ran.requests) or not part.own
    if case == "little memory":
        assert any(one.seconds.get(Cause.MEMORY, 0.0) > 0.0 for one in found)
        assert any(one.seconds.get(Cause.RECOMPUTED, 0.0) > 0.0 for one in found)


def test_the_rule_for_tokens_written_out_plainly(tmp_path: Path) -> None:
    """Before the step at which a request was lost its next tokens could all have been in time if it had been served
    alone, and after it not: each token by itself, from when the tokens before really came."""
    name = "opt-13b-a6000"
    keys = [("policy", "vllm"), ("rate", 4.0), ("requests", 60), ("records.tokens", True)]
    folder, experiment = served(tmp_path / "run", name, *keys), load(name, keys)
    profile = load_profile(experiment.deployment.devices["gpu0"])
    slo, table = deadlines_of(experiment, profile), profile.tokens("measured", "scheduler")
    records, compared = {r["id"]: r for r in lines(folder)}, 0
    for one in explain(folder, worst=12):
        stay, part = records[one.id]["stages"][0], one.lost.part
        if part is None or stay["preemptions"]:
            continue
        for at, slack in ((part.start, one.lost.before), (part.end, one.lost.after)):
            out = [t for t in stay["tokens"] if t <= at]
            room = [due(slo, stay, j + 1) - t for j, t in enumerate(out)]
            when = at
            for j in range(len(out) + 1, stay["generated"] + 1):
                alone = table.prefill(stay["prompt"]) if j == 1 else table.decode(1, stay["prompt"] + j - 2)
                when += alone
                room.append(due(slo, stay, j) - when)
            assert slack.seconds == pytest.approx(min(room), abs=1e-9)
        compared += 1
    assert compared > 5


def due(slo, stay: dict, token: int) -> float:
    steps = token - 1
    alone = sum(slo.d0 + slo.d1 * (stay["prompt"] + k) for k in range(1, steps + 1))
    return stay["arrival"] + slo.prefill_scale * slo.prefill_alone(stay["prompt"]) + slo.decode_scale * alone


# -- records of other days -----------------------------------------------------------------------------------------


def without(folder: Path, *keys: str) -> None:
    kept = []
    for record in lines(folder):
        for key in keys:
            record.pop(key, None)
            for stay in record["stages"]:
                stay.pop(key, None)
        kept.append(json.dumps(record) + "\n")
    (folder / "requests.jsonl").write_text("".join(kept))


def test_older_records_are_explained_as_far_as_they_go(tmp_path: Path) -> None:
    folder = served(tmp_path / "run", *CASES["vllm"])
    (before,) = explain(folder, worst=1)
    without(folder, "due", "meets", "ended")
    (after,) = explain(folder, requests=[before.id])
    assert after.seconds == before.seconds
    assert (after.lost, after.slack) == (None, None)
    assert "does not say what its tokens were promised" in after.notes[0]


def test_when_an_older_run_dropped_a_request_is_not_guessed(tmp_path: Path) -> None:
    keys = [("policy", "shepherd"), ("rate", 3.0), ("requests", 120)]
    folder = served(tmp_path / "run", "sd15-512-rtx4090", *keys)
    dropped = next(r["id"] for r in lines(folder) if r["outcome"] == "dropped")
    assert explain(folder, requests=[dropped])[0].outcome == "dropped"
    without(folder, "ended")
    with pytest.raises(BadInput, match="does not say when"):
        explain(folder, requests=[dropped])
    late = explain(folder, worst=1000)
    assert {one.outcome for one in late} == {"late"}
    many = sum(r["outcome"] == "dropped" for r in lines(folder))
    assert f"{many} requests were dropped or failed, and their records do not say when" in late[0].notes[0]


def test_a_profile_that_is_not_here_takes_the_decision_and_no_more(tmp_path: Path, toy: Path) -> None:
    folder = served(tmp_path / "run", toy, *ONE_BY_ONE)
    (before,) = explain(folder, requests=[5])
    shutil.move(tmp_path / "profile.yaml", tmp_path / "elsewhere.yaml")
    (after,) = explain(folder, requests=[5])
    assert sum(after.seconds.values()) == pytest.approx(before.latency)
    assert after.seconds[Cause.QUEUE] == pytest.approx(before.seconds[Cause.QUEUE])
    assert (after.lost, after.slack) == (None, None)
    assert "not known here" in after.notes[0]
