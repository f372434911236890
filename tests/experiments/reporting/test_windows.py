"""Runs by windows: against a count by hand of the same records, and what is said of runs that never recover."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.reporting.windows import Windows, check, neat, of_run
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.run_files import request_lines
from servetwin.experiments.workload.requests import half_sent

BUSY = {"process": "schedule", "rate": 3.0, "points": [[0.0, 1.0], [40.0, 4.0], [60.0, 1.0]], "until": 150.0}


def images(folder: Path, arrivals: dict[str, Any], policy: str = "edf", **more: Any) -> Path:
    workload = {"requests": None, "draws": "seeded", "arrivals": arrivals}
    said = {"extends": "dit-s2-256-rtx4090", "workload": workload, "policy": {"name": policy}, **more}
    build.run(load(said), folder)
    return folder


def by_hand(folder: Path, seconds: float, windows: int) -> list[tuple[int, int, int, int, str]]:
    """(requests, met, lost, waiting, verdict) of each window, by looking at every request for each."""
    records = [*request_lines(folder)]
    gone = {r["id"]: r["finished"] if r["finished"] is not None else r["ended"] for r in records}

    def waiting(at: float) -> int:
        count = 0
        for record in records:
            for stay in record["stages"]:
                began = stay["started"] if stay["started"] is not None else gone[record["id"]]
                count += stay["queued"] <= at < began
        return count

    stays = [(r, stay) for r in records for stay in r["stages"]]
    changes = sorted({t for r, s in stays for t in (s["queued"], s["started"], gone[r["id"]]) if t is not None})
    few = max(1.0, 0.05 * len(records) / math.ceil(max(r["arrival"] for r in records) / seconds))
    found = []
    for i in range(windows):
        low, high = i * seconds, (i + 1) * seconds
        came = [r for r in records if low <= r["arrival"] < high]
        lost = sum(r["outcome"] in ("dropped", "failed") and low <= gone[r["id"]] < high for r in records)
        growth = waiting(high) - waiting(low) + lost
        verdict = "stable"
        if came and growth > max(0.05 * len(came), 2 * math.sqrt(len(came))):
            verdict = "overloaded"
        elif min(waiting(t) for t in [low, *(t for t in changes if low < t < high)]) > few:
            verdict = "backlogged"
        found.append((len(came), sum(r["outcome"] == "met" for r in came), lost, waiting(high), verdict))
    return found


@pytest.mark.parametrize("policy", ["edf", "neustream", "fcfs"])
def test_windows_are_what_a_count_by_hand_gives(tmp_path: Path, policy: str) -> None:
    folder = images(tmp_path / "r", BUSY, policy)
    found = of_run(folder, 10.0, 0.95)
    told = [(w.requests, w.met, w.lost, w.waiting, w.verdict) for w in found.windows]
    assert told == by_hand(folder, 10.0, len(told))
    assert {w.verdict for w in found.windows} >= {"stable", "overloaded"}
    for window in found.windows:
        if window.attainment is not None:
            assert window.burn == pytest.approx((1 - window.attainment) / 0.05)
    missed = sum(w.requests - w.met for w in found.windows)
    total = sum(w.requests for w in found.windows)
    assert found.budget == pytest.approx(missed / total / 0.05)


def test_who_waits_for_a_replica_waits(tmp_path: Path) -> None:
    """Nobody serves before 10 s: all who came until then wait, though they are in no worker's queue."""
    start = {"machine": 10.0, "source": "an example"}
    scaler = {"name": "by_queue", "least": 0, "every": 1.0, "start": start}
    arrivals = {"process": "schedule", "cv": 0.0, "rate": 2.0, "until": 40.0}
    folder = images(tmp_path / "r", arrivals, "fcfs", deployment={"replicas": 2, "autoscaler": scaler})
    (first, *_) = found = of_run(folder, 5.0).windows
    assert (first.waiting, first.verdict) == (first.requests, "overloaded")
    assert found[1].waiting == first.requests + found[1].requests
    assert (found[-1].waiting, found[-1].verdict) == (0, "stable")


@pytest.mark.parametrize("router", ["central", "by_batch"])
def test_who_waits_in_a_central_queue_waits(tmp_path: Path, router: str) -> None:
    """Two devices at far more than they serve: by any router as many wait as came and have not begun."""
    arrivals = {"process": "schedule", "rate": 30.0, "until": 8.0}
    folder = images(tmp_path / "r", arrivals, "fcfs", deployment={"replicas": 2, "router": router})
    first = of_run(folder, 4.0).windows[0]
    began = [min(stay["started"] for stay in r["stages"]) for r in request_lines(folder)]
    assert first.verdict == "overloaded"
    assert 10 < first.waiting == first.requests - sum(at <= 4.0 for at in began)


def test_a_policy_that_drops_is_overloaded_all_the_same(tmp_path: Path) -> None:
    """Its queue stays short, for those that cannot be served in time leave it: more comes than is served."""
    found = of_run(images(tmp_path / "r", BUSY, "neustream"), 10.0)
    assert [w.verdict for w in found.windows[4:6]] == ["overloaded"] * 2
    assert found.windows[5].lost > 20
    assert found.budget is None
    assert all(w.burn is None for w in found.windows)


def test_who_never_recovers_is_told_so(tmp_path: Path) -> None:
    arrivals, system = {"process": "schedule", "rate": 14.0, "until": 60.0}, {"stop_after": 0.0}
    found = of_run(images(tmp_path / "r", arrivals, "fcfs", system=system), 10.0)
    assert [w.verdict for w in found.windows] == ["overloaded"] * len(found.windows)
    assert [(o.end, o.recovery) for o in found.overloads] == [(None, None)]
    assert found.overloads[0].begin < 10.0
    assert "it did not recover" in found.lines()[1]


def stretches(folder: Path, few: float) -> list[tuple[float, float]]:
    """From when to when more than *few* wait, by looking at every request for each time."""
    gone = {r["id"]: r["finished"] if r["finished"] is not None else r["ended"] for r in request_lines(folder)}
    stays = [(s["queued"], s["started"] or gone[r["id"]]) for r in request_lines(folder) for s in r["stages"]]
    found, began = [], None
    for at in sorted({t for stay in stays for t in stay}):
        long = sum(queued <= at < start for queued, start in stays) > few
        if long and began is None:
            began = at
        elif not long and began is not None:
            found.append((began, at))
            began = None
    return found


@pytest.mark.parametrize("policy", ["fcfs", "edf", "neustream", "clockwork"])
def test_no_overloaded_window_is_without_its_overload(tmp_path: Path, policy: str) -> None:
    """Two spikes, after each of which the queue is empty again within a window that begins or ends overloaded."""
    spikes = [{"at": at, "seconds": 3.0, "factor": 12.0} for at in (20.0, 37.0, 55.0, 61.0, 90.0)]
    arrivals = {"process": "schedule", "rate": 2.0, "spikes": spikes, "until": 120.0}
    folder = images(tmp_path / "r", arrivals, policy)
    for seconds in (5.0, 20.0, 40.0):
        found = of_run(folder, seconds)
        ends = [(o.begin, o.end) for o in found.overloads]
        assert len({begin for begin, _ in ends}) == len(ends)
        assert all(end is not None and begin < end for begin, end in ends)
        waited = stretches(folder, found.few)
        for window in found.windows:
            if window.verdict == "overloaded":
                assert any(o.begin <= window.end and (o.end or math.inf) > window.begin for o in found.overloads)
        for one in found.overloads:
            if one.waiting > found.few:
                assert (one.begin, one.end) in waited
                assert one.begin <= one.peak < (one.end or math.inf)
        assert all(b1 < (e1 or math.inf) <= b2 for (b1, e1), (b2, _) in itertools.pairwise(ends))
    missed = sum(w.requests - w.met for w in found.windows)
    others = missed - sum(o.missed for o in found.overloads)
    told = f"{others} of {missed} requests that missed their SLO came outside of overloads"
    assert (told in found.lines()) == (others > 0)


def test_a_system_that_keeps_up_is_stable(tmp_path: Path) -> None:
    """At a third of what it serves hardly a window of forty is told otherwise by chance."""
    found: Windows = of_run(images(tmp_path / "r", {"process": "schedule", "rate": 1.5, "until": 400.0}), 10.0)
    assert sum(w.verdict != "stable" for w in found.windows) <= 1


def test_lengths_are_round() -> None:
    given = [0.03, 1.0, 1.1, 4.9, 51.0, 3000.0]
    assert [neat(x) for x in given] == pytest.approx([0.05, 1.0, 2.0, 5.0, 100.0, 5000.0])


@pytest.mark.parametrize(
    ("seconds", "objective", "said"),
    [
        (0.0, None, "--windows: 0 s is no length of a window"),
        (math.nan, None, "--windows: nan s is no length"),
        (math.inf, None, "--windows: inf s is no length"),
        (1e-9, None, "--windows: 1e-09 s makes more than 100000 windows of 0.1 s"),
        (1.0, 1.0, "--objective: 1 leaves no error budget"),
        (1.0, 99.0, "--objective: 99 is no share to hold"),
    ],
)
def test_what_makes_no_windows_is_refused(seconds: float, objective: float | None, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(seconds, objective)
    assert said in str(caught.value)


POISSON = {"process": "poisson", "rate": 2.0}


@pytest.mark.parametrize(
    ("workload", "half"),
    [
        ({"requests": 400, "arrivals": POISSON}, 100.0),
        ({"requests": 40, "arrivals": POISSON}, 0.0),  # left to chance
        ({"requests": 400, "arrivals": {"process": "gamma", "rate": 2.0, "cv": 9.0}}, 0.0),
        ({"requests": 400, "arrivals": {"process": "closed", "clients": 2}}, 0.0),
        # 80 requests by 10 s, then none: until when it might go on says nothing.
        (
            {
                "requests": None,
                "arrivals": {
                    "process": "schedule",
                    "cv": 0.0,
                    "rate": 8.0,
                    "points": [[0.0, 1.0], [10.05, 0.0]],
                    "until": 9e5,
                },
            },
            5.0,
        ),
    ],
)
def test_too_many_windows_are_refused_before_anything_runs(
    servetwin: Any, workload: dict[str, Any], half: float, tmp_path: Path
) -> None:
    said = {
        "extends": "dit-s2-256-rtx4090",
        "workload": {"draws": "seeded", **workload},
        "policy": {"name": "fcfs"},
        "system": {"client_delay": 0.0, "client_stretch": 0.0},
    }
    assert half_sent(load(said)) == pytest.approx(half, rel=1e-6)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(said))
    short = half / 200_000 or 1e-7
    code, _, err = servetwin("run", tmp_path / "e.yaml", "--out", tmp_path / "r", "--windows", short)
    assert (code, err.count("\n"), (tmp_path / "r").exists()) == (2, 1, False)
    assert f"--windows: {short:g} s makes more than 100000 windows of {half or 0.1:g} s" in err


def test_time_to_recover_after_each_fault_is_that_of_the_queue(tmp_path: Path) -> None:
    script = [
        {"at": 10.0, "kind": "fail", "device": "gpu0", "for": 6.0},
        {"at": 30.0, "kind": "slow", "device": "gpu0", "factor": 4.0, "for": 5.0},
        {"at": 50.0, "kind": "pause", "device": "gpu0", "for": 4.0},
        {"at": 80.0, "kind": "fail", "device": "gpu0.2"},
        {"at": 95.0, "kind": "late", "device": "gpu0", "seconds": 0.1, "for": 1e6},
    ]
    faults = {"detect_seconds": 1.5, "retry": {"attempts": 5}, "script": script}
    arrivals = {"process": "schedule", "rate": 8.0, "points": [[0.0, 1.0]], "until": 100.0}
    folder = images(tmp_path / "r", arrivals, deployment={"replicas": 2, "faults": faults})
    found = of_run(folder, 5.0)
    records = [*request_lines(folder)]
    # Of who was lost *queued* is the last attempt's, and until then it belongs to no worker.
    stays = [
        (stay["queued"] if number else r["arrival"], stay["started"] or r["finished"] or r["ended"])
        for r in records
        for number, stay in enumerate(r["stages"])
    ]
    changes = sorted({time for stay in stays for time in stay})

    def waiting(at: float) -> int:
        return sum(queued <= at < began for queued, began in stays)

    over = [16.0, 35.0, 54.0, 81.5, None]  # that of the one for ever when it is noticed
    assert found.faults is not None
    assert [(fault.at, fault.kind) for fault in found.faults] == [(said["at"], said["kind"]) for said in script]
    assert found.faults[3].until is None
    assert [fault.noticed for fault in found.faults] == [11.5, None, 51.5, 81.5, None]
    for fault, since in zip(found.faults, over, strict=True):
        if since is None:
            assert fault.recovered is fault.recovery is None
            continue
        empty = next(at for at in [since, *(c for c in changes if c > since)] if waiting(at) <= found.few)
        assert fault.recovered == empty
        assert fault.recovery == empty - fault.at
        between = [fault.at, *(c for c in changes if fault.at <= c <= empty)]
        assert fault.waiting == max(waiting(at) for at in between)
        came = [r for r in records if fault.at <= r["arrival"] < empty]
        assert (fault.requests, fault.missed) == (len(came), sum(r["outcome"] != "met" for r in came))
    assert max(fault.recovery for fault in found.faults if fault.recovery is not None) > 6.0  # a queue had to go
    assert len(found.as_dict()["faults"]) == 5
    told = "\n".join(found.lines())
    assert "5 faults: the run recovered from 4" in told
    assert "the run ended before it had recovered" in told


def test_of_a_run_in_which_nothing_can_fail_no_faults_are_told(tmp_path: Path) -> None:
    assert "faults" not in of_run(images(tmp_path / "r", BUSY), 5.0).as_dict()
