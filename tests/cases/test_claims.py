"""Kind 7, comparison and claims: case 21 (ties that counted as agreement), and what `score` takes for repeats, each
with variants of its own.

What is expected is counted here pair by pair, from the shares alone. More cells and noise floors are in
tests/experiments/validation/comparison/test_grids.py.
"""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servetwin.experiments.validation.comparison.compare_grids import grids_of, noise_of
from servetwin.experiments.validation.comparison.run_table import NEUSTREAM, read
from servetwin.experiments.validation.score import Scored, entries, of_tokens, score
from toy_systems import refused, rows, servetwin, write_one

import servetwin as st

FIRST = {"edf": 73, "neustream": 43, "clockwork": 42}
CASE_21 = (FIRST, {"edf": 98, "neustream": 98, "clockwork": 3})

#: Shares of three policies in the first and in the second collection.
TIES = {
    "21: as it was": CASE_21,
    "21: the other way round": CASE_21[::-1],
    "21: all met": (FIRST, dict.fromkeys(CASE_21[0], 100)),
    "21: none met in either": (dict.fromkeys(CASE_21[0], 0), dict.fromkeys(CASE_21[0], 0)),
    "21: the last two": (FIRST, {"edf": 90, "neustream": 5, "clockwork": 5}),
    "21: no tie": (FIRST, {"edf": 90, "neustream": 6, "clockwork": 5}),
    "21: another winner": (
        {"edf": 73, "neustream": 43, "clockwork": 42},
        {"edf": 5, "neustream": 90, "clockwork": 5},
    ),
}


def counted(first: dict[str, int], second: dict[str, int]) -> dict[str, object]:
    """Winners and pairs that agree, where a tie on either side agrees with nothing."""
    best = [p for p in first if first[p] == max(first.values())]
    said = [p for p in second if second[p] == max(second.values())]
    pairs = [(first[p] - first[q], second[p] - second[q]) for p, q in combinations(first, 2)]
    return {
        "winners": (int(len(best) == 1 and said == best), int(len(best) == 1)),
        "order": (sum(a * b > 0 for a, b in pairs), sum(a != 0 for a, _ in pairs)),
        "tied": [sum(a == 0 for a, _ in pairs), sum(b == 0 for _, b in pairs), sum(a == b == 0 for a, b in pairs)],
    }


def found_in(decisions: dict) -> dict[str, object]:
    winners, ranking = decisions["winners"], decisions["ranking"]
    return {
        "winners": (winners["same"], winners["decided"]),
        "order": (ranking["same"], ranking["pairs"]),
        "tied": [ranking["tied"][side] for side in ("first", "second", "both")],
    }


def table_of(shares: dict[str, int]) -> list[dict[str, object]]:
    same = {"workload": "w", "rate": 1.0, "cv": 1.0, "slo_factor": 2.0, "requests": 1000}
    return [{**same, "policy": p, "met": 10 * x, "finished": 1000} for p, x in shares.items()]


def write_csv(path: Path, lines: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def write_parquet(path: Path, lines: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(lines), path)
    return path


@pytest.mark.parametrize("case", TIES)
@pytest.mark.parametrize("way", ["command", "python", "parquet"])
def test_a_tie_on_either_side_is_no_agreement(here: Path, case: str, way: str):
    first, second = map(table_of, TIES[case])
    write = write_parquet if way == "parquet" else write_csv
    suffix = "parquet" if way == "parquet" else "csv"
    a, b = write(here / f"a.{suffix}", first), write(here / f"b.{suffix}", second)
    if way == "python":
        decisions = st.compare(a, b).details["decisions"]
    else:
        code, told, err = servetwin("compare", a, b, "--json")
        assert code == 0, err
        decisions = json.loads(told)["decisions"]
    assert found_in(decisions) == counted(*TIES[case])


def test_21_how_many_pairs_are_tied_is_said(here: Path):
    for name, shares in zip("ab", CASE_21, strict=True):
        write_csv(here / f"{name}.csv", table_of(shares))
    _, told, _ = servetwin("compare", "a.csv", "b.csv")
    assert "same winner in 0 of 1 settings" in told
    assert "same order of 2 of 3 pairs" in told
    assert "tied pairs, which agree with nothing: 0 in the first, 1 in the second, 0 in both" in told


def test_21_policies_that_do_the_same_are_tied_in_sweeps_and_folders(here: Path):
    """One at a time, with one SLO for all: edf serves as fcfs does. A last policy refuses every third request."""
    write_one(here)
    (here / "third.py").write_text(
        "from servetwin.policies.diffusion.fcfs import FCFS\n\n\nclass Third(FCFS):\n"
        "    def admit(self, task, view, now):\n        return task.request.id % 3 > 0\n"
    )
    policies = ["fcfs", "edf", "third.py"]
    asked = {"rate": [4.0, 6.0], "policy": policies, "slo": {"seconds": 99.0}, "jobs": 1}
    sweeps = [st.sweep("one.yaml", seed=s, **asked) for s in (0, 1)]
    by_rate = [
        [{r["policy"]: r["met"] for r in s.to_dicts() if r["rate"] == rate} for rate in (4.0, 6.0)] for s in sweeps
    ]
    expected = [counted(a, b) for a, b in zip(*by_rate, strict=True)]
    summed = {k: type(v)(map(sum, zip(*(e[k] for e in expected), strict=True))) for k, v in expected[0].items()}
    assert summed["tied"] == [2, 2, 2]
    assert found_in(st.compare(*sweeps).details["decisions"]) == summed
    for seed in (0, 1):
        for policy in policies:
            for rate in (4.0, 6.0):
                folder = here / f"runs{seed}" / f"{Path(policy).stem}-{rate:g}"
                options = ("--policy", policy, "--rate", rate, "--set", f"seed={seed}", "--out", folder)
                options += ("--set", "slo={seconds: 99.0}")
                assert servetwin("run", "one.yaml", *options)[0] == 0
    code, told, _ = servetwin("compare", "runs0", "runs1", "--json")
    assert code == 0
    assert found_in(json.loads(told)["decisions"]) == summed


def test_21_scores_count_ties_alike(here: Path):
    """`score` of a table in which both policies met all, at a rate that is easy for both."""
    head = "workload,policy,rate,cv,slo_factor,requests,met,finished\n"
    lines = [f"dit-s2-256-rtx4090,{p},0.2,1,20,40,40,40\n" for p in ("edf", "fcfs")]
    (here / "t.csv").write_text(head + "".join(lines))
    code, told, err = servetwin("score", "t.csv", "--out", "o.csv", "--seeds", 1, "-j", 1)
    assert code == 0, err
    assert "same winner in 0 of 0 settings" in told
    assert "tied pairs, which agree with nothing: 1 in the first, 1 in the second, 1 in both" in told


def test_21_the_same_shares_of_other_numbers_of_requests_are_tied(here: Path):
    """90 of 100 and 180 of 200 are the same share: settings of their own, and no winner in either."""
    lines = [
        {
            "workload": "w",
            "policy": p,
            "rate": 1.0,
            "cv": 1.0,
            "slo_factor": 2.0,
            "requests": n,
            "met": m,
            "finished": n,
        }
        for p in ("edf", "fcfs")
        for n, m in ((100, 90), (200, 180))
    ]
    write_csv(here / "a.csv", lines)
    _, told, _ = servetwin("compare", "a.csv", "a.csv", "--json")
    assert found_in(json.loads(told)["decisions"]) == {"winners": (0, 0), "order": (0, 0), "tied": [2, 2, 2]}


def test_21_what_is_no_share_is_refused(here: Path):
    lines = table_of({"edf": 73, "fcfs": 101})
    write_csv(here / "a.csv", lines)
    assert "1010 of 1000 requests cannot be" in refused("compare", "a.csv", "a.csv")


# -- repeats --------------------------------------------------------------------------------------------


def deviation_by_hand(runs: list[tuple[object, float]]) -> float:
    """The standard deviation of shares (percent) about the mean of those with the same key."""
    groups: dict[object, list[float]] = {}
    for key, share in runs:
        groups.setdefault(key, []).append(share)
    several = [g for g in groups.values() if len(g) > 1]
    squares = sum((x - sum(g) / len(g)) ** 2 for g in several for x in g)
    return (squares / sum(len(g) - 1 for g in several)) ** 0.5


def lines_of(path: Path, name: str) -> list[str]:
    lines = NEUSTREAM.read_text().splitlines()
    chosen = [line for line in lines[1:] if line.startswith(name)]
    path.write_text("\n".join([lines[0], *chosen]) + "\n")
    return chosen


@pytest.mark.parametrize("workload", ["dit-xl2-256-rtx4090", "dit-s2-256-rtx4090", "sd15-512-rtx4090"])
def test_runs_with_another_step_delta_are_no_repeats(workload: str):
    """The artifact ran DiT-XL/2 at 0.5/s with step_delta 1, 0.95, 1 and 0.9: the two with 1 are the repeats."""
    _, runs = read(NEUSTREAM)
    own = [run for run in runs if run.workload == workload]
    experiments = {0.95: "0.95", 1.0: "1", 0.9: "0.9"}
    scored = [
        Scored(
            run,
            {"met": float(run.met), "finished": float(run.finished)},
            others={"policy.params.step_delta": experiments[run.step_delta]} if run.step_delta else {},
        )
        for run in own
    ]
    noise = noise_of(grids_of(*entries(scored))[0])
    by_hand = deviation_by_hand(
        [((r.policy, r.rate, r.cv, r.slo_factor, r.step_delta, r.variant), 100 * r.met / r.requests) for r in own]
    )
    assert noise.deviations[workload] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        pytest.param("step_delta", ("0.95", "0.9"), id="21: step_delta"),
        pytest.param("requests", ("40", "60"), id="21: requests"),
        pytest.param("cv", ("1", "2"), id="21: cv, as ever"),
    ],
)
def test_what_runs_of_a_table_differ_in_parts_them(here: Path, column: str, values: tuple[str, str]):
    names = ["workload", "policy", "rate", "cv", "slo_factor", "requests", "met", "finished", "step_delta"]
    base = dict(zip(names, ("dit-s2-256-rtx4090", "neustream", "2", "2", "3", "40", "30", "40", "0.95"), strict=True))
    lines = [{**base, column: value, "met": met} for value in values for met in ("30", "34")]
    others = [{**base, "policy": "edf", "met": "9", "step_delta": "", column: value} for value in values[:1]]
    if column == "step_delta":
        others = [{**base, "policy": "edf", "met": "9", "step_delta": ""}]
    write_csv(here / "t.csv", [*lines, *others])
    _, told, _ = servetwin("score", "t.csv", "--out", "o.csv", "--seeds", 1, "-j", 1)
    assert "2 cells repeated with the same requests" in told
    shares = [((line[column],), 100 * int(line["met"]) / int(line["requests"])) for line in lines]
    assert f"noise: deviation {deviation_by_hand(shares):.2f} points" in told
    assert [row["met"] for row in rows(here / "o.csv")] == ["30", "34", "30", "34", "9"]


def test_21_a_default_that_is_written_out_is_no_other_policy(here: Path):
    """A line that leaves step_delta out, and one that says what it is anyway, are repeats."""
    head = "workload,policy,rate,cv,slo_factor,requests,met,finished,step_delta\n"
    line = "dit-s2-256-rtx4090,neustream,2,2,3,40,{},40,{}\n"
    (here / "t.csv").write_text(head + line.format(30, ""))
    (own,) = score(here / "t.csv", seeds=1, jobs=1)
    default = own.others.get("policy.params.step_delta")
    edf = line.replace("neustream", "edf").format(9, "")
    (here / "t.csv").write_text(head + line.format(30, "") + line.format(34, default) + edf)
    _, told, _ = servetwin("score", "t.csv", "--out", "o.csv", "--seeds", 1, "-j", 1)
    assert "1 cells repeated with the same requests" in told


def test_21_repeats_of_recordings_say_whether_their_requests_were_the_same():
    """The second session of `h200-long` drew its requests anew: 607 and 609 of them."""
    from servetwin.experiments.registry.catalog import MEASURED
    from servetwin.experiments.validation.replay import llm as replay_llm

    for path, same in (("h200-long/llm-opt-13b.json.gz", False), ("h100-long/llm-opt-13b.json.gz", True)):
        campaign = replay_llm.read(MEASURED / path)
        pairs = [(run, run.slo, _counts(run), _counts(run)) for run in campaign.runs]
        noise = noise_of(grids_of(*entries(of_tokens(campaign, pairs)))[0])
        assert ("the same requests" in noise.source) is same, path


def _counts(run) -> object:
    from types import SimpleNamespace

    done = sum(r.outcome == "finished" for r in run.requests)
    return SimpleNamespace(requests=len(run.requests), good=done, finished=done, by_draw=(done,))
