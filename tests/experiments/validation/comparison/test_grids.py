"""Two grids side by side: gaps, and whether they name the same winner, order and largest rate."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.registry.catalog import MEASURED
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison import compare_llm_runs
from servetwin.experiments.validation.comparison.compare_grids import (
    Entry,
    Setting,
    cells,
    compare_grids,
    decide,
    grid_of,
    noise_of,
)
from servetwin.experiments.validation.comparison.compare_runs import find_runs, periods
from servetwin.experiments.validation.replay.diffusion import Recording, recorded_run, write_recording
from servetwin.experiments.validation.replay.folder import replay, requests_of
from servetwin.profiles import load as load_profile


def runs(rates: dict[float, dict[str, float | list[float]]], *, workload: str = "toy") -> list[Entry]:
    """Runs by rate and policy: attainment in percent, several for repeats with seeds 0, 1, ..."""
    found = []
    for rate, policies in rates.items():
        for policy, values in policies.items():
            for seed, x in enumerate(values if isinstance(values, list) else [values]):
                found.append(Entry(Setting(workload, rate, 2.0, 3.0), policy, seed, x, x))
    return found


def decided(first, second, **more):
    return decide(grid_of(first), grid_of(second), **more)


def test_gaps_are_second_minus_first_of_the_cells_that_both_have():
    rows = cells(
        grid_of(runs({1.0: {"edf": [90.0, 94.0], "fcfs": 50.0}})),
        grid_of(runs({1.0: {"edf": 95.0}, 2.0: {"edf": 10.0}})),
    )
    (row,) = rows
    assert (row["policy"], row["runs_first"], row["runs_second"]) == ("edf", 2, 1)
    assert (row["attainment_first"], row["attainment_second"], row["attainment_gap"]) == (92.0, 95.0, 3.0)


def test_the_winner_counts_only_beyond_the_noise():
    real = runs({1.0: {"edf": [90.0, 92.0], "fcfs": [89.0, 91.0]}, 2.0: {"edf": [80.0, 82.0], "fcfs": [40.0, 42.0]}})
    # deviation sqrt(2) points; means of two differ by chance by up to 2 * sqrt(2) * sqrt(1/2 + 1/2) = 2.83 points
    noise = noise_of(grid_of(real))
    assert noise.deviations["toy"] == pytest.approx(2**0.5)
    assert "other seeds" in noise.source
    swapped = runs({1.0: {"edf": 89.0, "fcfs": 91.0}, 2.0: {"edf": 81.0, "fcfs": 41.0}})
    found = decided(real, swapped)
    assert (found.settings, found.decided, found.same, found.others) == (2, 1, 1, [])
    assert (found.pairs, found.swaps) == (1, [])
    wrong = decided(real, runs({1.0: {"edf": 91.0, "fcfs": 90.0}, 2.0: {"edf": 41.0, "fcfs": 81.0}}))
    assert (wrong.decided, wrong.same) == (1, 0)
    assert wrong.others == ["toy, rate 2, cv 2, SLO 3: edf, not fcfs (+40.0 points)"]
    assert wrong.swaps == ["toy, rate 2, cv 2, SLO 3: edf above fcfs by 40.0 points, below it by 40.0 in the second"]


def test_repeats_with_the_same_requests_tell_the_noise_of_measuring_alone():
    setting = Setting("toy", 1.0, None, None)
    entries = [Entry(setting, "edf", 0, x, x) for x in (90.0, 91.0)] + [Entry(setting, "edf", 1, 60.0, 60.0)]
    noise = noise_of(grid_of(entries))
    assert noise.deviations["toy"] == pytest.approx(0.5**0.5)
    assert "the same requests" in noise.source


def test_a_floor_may_be_given():
    real, said = runs({1.0: {"edf": 90.0, "fcfs": 88.0}}), runs({1.0: {"edf": 88.0, "fcfs": 90.0}})
    assert decided(real, said).others != []  # nothing is repeated: every difference counts
    assert decided(real, said, floor=2.5).decided == 0
    assert decided(real, said, floor=1.5).same == 0


def test_kendalls_tau():
    real = runs({1.0: {"a": 90.0, "b": 80.0, "c": 70.0}, 2.0: {"a": 50.0, "b": 50.0, "c": 50.0}})
    said = runs({1.0: {"a": 90.0, "b": 60.0, "c": 70.0}, 2.0: {"a": 9.0, "b": 8.0, "c": 7.0}})
    found = decided(real, said)
    assert found.tau == pytest.approx(1 / 3)  # one of three pairs is swapped; where all are equal there is none
    assert (found.pairs, len(found.swaps)) == (3, 1)


TIES = {
    # first, second, (same winners, decided), (same order, pairs), tied in the first, in the second, in both
    "case 21": ({"edf": 73.3, "neustream": 43.3, "clockwork": 41.7},
                {"edf": 98.3, "neustream": 98.3, "clockwork": 3.3}, (0, 1), (2, 3), [0, 1, 0]),
    "all equal in the second": ({"a": 90.0, "b": 50.0, "c": 10.0}, {"a": 7.0, "b": 7.0, "c": 7.0},
                                (0, 1), (0, 3), [0, 3, 0]),
    "the winner tied in the first": ({"a": 90.0, "b": 90.0, "c": 10.0}, {"a": 90.0, "b": 80.0, "c": 10.0},
                                     (0, 0), (2, 2), [1, 0, 0]),
    "the others tied in both": ({"a": 90.0, "b": 10.0, "c": 10.0}, {"a": 80.0, "b": 9.0, "c": 9.0},
                                (1, 1), (2, 2), [1, 1, 1]),
    "a tie of two that are not the winner": ({"a": 90.0, "b": 50.0, "c": 10.0}, {"a": 5.0, "b": 7.0, "c": 7.0},
                                             (0, 1), (0, 3), [0, 1, 0]),
    "equal but for adding up": ({"a": 0.1 + 0.2, "b": 0.0}, {"a": 0.1 + 0.2, "b": 0.3}, (0, 1), (0, 1), [0, 1, 0]),
    "no tie": ({"a": 90.0, "b": 50.0}, {"a": 60.0, "b": 50.0}, (1, 1), (1, 1), [0, 0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("case", TIES)
def test_a_tie_agrees_with_nothing(case):
    first, second, winners, order, tied = TIES[case]
    found = decided(runs({1.0: first}), runs({1.0: second}))
    assert (found.same, found.decided) == winners
    assert (found.same_order, found.pairs) == order
    assert found.tied == tied
    assert len(found.others) == winners[1] - winners[0]
    assert len(found.swaps) + len(found.ties) == order[1] - order[0]
    ranking = found.as_dict()["ranking"]
    assert (ranking["same"], ranking["tied"]) == (order[0], dict(zip(("first", "second", "both"), tied, strict=True)))


def test_ties_are_said(servetwin, tmp_path: Path):
    first, second = TIES["case 21"][:2]
    for name, values in (("a.csv", first), ("b.csv", second)):
        lines = [f"w,{policy},1,1,2,1000,{10 * x:.0f},{10 * x:.0f}" for policy, x in values.items()]
        header = "workload,policy,rate,cv,slo_factor,requests,met,finished"
        (tmp_path / name).write_text("\n".join([header, *lines]) + "\n")
    code, out, _ = servetwin("compare", tmp_path / "a.csv", tmp_path / "b.csv")
    assert code == 0
    assert "same winner in 0 of 1 settings" in out
    assert "same order of 2 of 3 pairs" in out
    assert "tied pairs, which agree with nothing: 0 in the first, 1 in the second, 0 in both" in out
    assert "winner: w, rate 1, cv 1, SLO 2: edf, not a tie of edf, neustream" in out
    assert "order: w, rate 1, cv 1, SLO 2: edf above neustream by 30.0 points, equal in the second" in out


@pytest.mark.parametrize(
    ("said", "within"),
    [
        ([99.0, 95.0, 91.0, 50.0], True),  # one step later
        ([99.0, 95.0, 80.0, 50.0], True),  # the same
        ([99.0, 85.0, 80.0, 50.0], True),  # one step earlier
        ([89.0, 85.0, 80.0, 50.0], False),  # none holds
        ([99.0, 95.0, 91.0, 90.0], False),  # two steps later
        ([89.0, 95.0, 80.0, 50.0], False),  # the first that fails ends it
    ],
)
def test_the_largest_rate_within_a_step(said, within):
    real = runs({float(r): {"edf": x} for r, x in zip((1, 2, 3, 4), (99.0, 92.0, 80.0, 60.0), strict=True)})
    other = runs({float(r): {"edf": x} for r, x in zip((1, 2, 3, 4), said, strict=True)})
    found = decided(real, other, target=90.0)
    assert (found.curves, found.within) == (1, int(within))
    assert len(found.off) == int(not within)
    if not within:
        assert found.off[0].startswith("toy, cv 2, SLO 3, edf: 2, not ")


def test_nothing_in_common():
    with pytest.raises(BadInput, match="no cell in common"):
        compare_grids(runs({1.0: {"edf": 1.0}}), runs({2.0: {"edf": 1.0}}))


def test_a_grid_of_run_folders_against_a_sweep(servetwin, toy: Path, tmp_path: Path):
    """The same runs, once as folders and once as rows of a table: no gap, and the same decisions."""
    for policy in ("edf", "fcfs"):
        for rate in (4, 12, 20):
            servetwin("run", toy, "--policy", policy, "--rate", rate, "--out", tmp_path / "runs" / f"{policy}-{rate}")
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "unfinished" / "meta.json").write_text("{}")
    spec = "extends: toy.yaml\ngrid: {rate: [4.0, 12.0, 20.0, 40.0], policy: [edf, fcfs]}\n"
    (tmp_path / "sweep.yaml").write_text(spec)
    assert len(find_runs(tmp_path / "runs")) == 6
    for ending in ("csv", "parquet"):
        table = tmp_path / f"sweep.{ending}"
        servetwin("sweep", tmp_path / "sweep.yaml", "--out", table, "--jobs", 1)
        code, out, err = servetwin("compare", tmp_path / "runs", table, "--out", tmp_path / "cells.csv")
        assert (code, err) == (0, "")
        assert "6 cells: |B - A| mean 0.00, max 0.00 points" in out
        assert "largest rate at 90 % within one step on 2 of 2 curves" in out
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 7
    found = json.loads(servetwin("compare", tmp_path / "runs", table, "--json")[1])
    assert found["max_gap_points"] == pytest.approx(0.0, abs=1e-9)
    winners = found["decisions"]["winners"]
    assert winners["same"] == winners["decided"] >= 1
    assert {row["batch_gap"] for row in found["cells"]} == {0.0}


def test_runs_that_differ_in_more_than_their_seed_are_no_repeats(servetwin, toy: Path, tmp_path: Path):
    """Replicas, requests and a policy's parameters are told apart, in tables and folders; seeds are averaged."""
    axes = "rate: [20.0], policy: [edf], replicas: [1, 2], requests: [40, 80], policy.params.max_batch: [1, 4]"
    (tmp_path / "sweep.yaml").write_text(f"extends: toy.yaml\ngrid: {{{axes}, seed: [0, 1]}}\n")
    csv_file, out = tmp_path / "t.csv", tmp_path / "cells.csv"
    assert servetwin("sweep", tmp_path / "sweep.yaml", "--out", csv_file, "--jobs", 1)[0] == 0
    servetwin("sweep", tmp_path / "sweep.yaml", "--out", csv_file.with_suffix(".parquet"), "--jobs", 1)
    code, text, err = servetwin("compare", csv_file, csv_file.with_suffix(".parquet"), "--out", out)
    assert (code, err) == (0, "")
    assert "8 cells: |B - A| mean 0.00" in text
    assert "8 cells repeated with other seeds" in text
    with out.open(newline="") as file:
        found = {
            (r["policy"], r["deployment.replicas"], r["requests"], r["runs_first"]) for r in csv.DictReader(file)
        }
    policies = ("edf (max_batch 1)", "edf (max_batch 4)")
    assert found == {(p, r, n, "2") for p in policies for r in "12" for n in ("40", "80")}
    for replicas in (1, 2):
        options = ("--rate", 20, "--requests", 40, "--set", f"replicas={replicas}")
        options += ("--set", "policy.params.max_batch=4", "--out", tmp_path / "runs" / str(replicas))
        assert servetwin("run", toy, "--policy", "edf", *options)[0] == 0
    code, text, _ = servetwin("compare", tmp_path / "runs", tmp_path / "runs")
    assert code == 0
    assert "2 cells: |B - A| mean 0.00" in text
    one = [Entry(Setting("toy", 1.0, 2.0, 3.0), "edf", 0, 1.0, 1.0)]
    two = [replace(one[0], others={"deployment.replicas": n}) for n in "12"]
    with pytest.raises(BadInput, match=r"no cell in common.*cv, deployment\.replicas and SLO factor"):
        compare_grids(one, two)


IMPOSSIBLE = {
    "nan,5": "row 1: met: 'nan' is no number",
    "120,5": "row 1: met: 120 of 100 requests cannot be (right would be: 0 to 100)",
    "-5,5": "row 1: met: -5 of 100 requests cannot be",
    "5,120": "row 1: finished: 120 of 100 requests cannot be",
    "5": "row 1: there is no 'finished'",
}


@pytest.mark.parametrize("counts", IMPOSSIBLE)
def test_counts_that_cannot_be_are_refused(servetwin, tmp_path: Path, counts: str):
    table = tmp_path / "t.csv"
    table.write_text(f"workload,policy,seed,requests,met,finished\ntoy,edf,0,100,{counts}\n")
    code, out, err = servetwin("compare", table, table)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert IMPOSSIBLE[counts] in err
    table.write_text("workload,policy,seed,requests,met,finished\ntoy,edf,0,0,0,0\n")
    assert "0 is no number of requests" in servetwin("compare", table, table)[2]
    table.write_text("workload,policy,seed,requests,met,finished\ntoy,edf,0.5,10,1,1\n")
    assert "0.5 is no seed" in servetwin("compare", table, table)[2]


@pytest.mark.parametrize(
    "option", [("--target", 0), ("--target", 101), ("--target", "nan"), ("--floor", -1), ("--floor", "nan")]
)
def test_targets_and_floors_that_are_none_are_refused(servetwin, tmp_path: Path, option):
    table, out = tmp_path / "t.csv", tmp_path / "out.csv"
    table.write_text("workload,policy,rate,cv,slo_factor,requests,met,finished\ntoy,edf,1,2,3,10,5,5\n")
    for command in (("compare", table, table), ("score", table)):
        code, text, err = servetwin(*command, "--out", out, *option)
        assert (code, text, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"servetwin: {option[0]}: ")
        assert not out.exists()


def test_options_for_grids_are_refused_for_two_runs(servetwin, toy: Path, tmp_path: Path):
    servetwin("run", toy, "--out", tmp_path / "a")
    for option in (("--target", 50), ("--floor", 1), ("--out", tmp_path / "t.csv")):
        code, text, err = servetwin("compare", tmp_path / "a", tmp_path / "a", *option)
        assert (code, text) == (2, "")
        assert err.startswith(f"servetwin: {option[0]}: this is for grids, and these are two runs")


WRONG = {
    "one run and many": (["toy", "."], "this is one run, the other are many"),
    "no runs in it": (["empty", "empty"], "no run in it that came to its end"),
    "no collection": (["toy.yaml", "toy.yaml"], "this is no collection of runs"),
    "no sweep's table": (["other.csv", "other.csv"], "there is no 'workload'"),
    "no number": (["words.csv", "words.csv"], "'many' is no number"),
    "a run of another kind": (["other", "other"], "its meta.json holds no experiment of this version"),
    "no parquet": (["bad.parquet", "bad.parquet"], "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_compared(servetwin, toy: Path, tmp_path: Path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    servetwin("run", toy, "--out", "toy")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "a").mkdir(parents=True)
    counts = dict.fromkeys(("requests", "met", "late", "dropped", "failed", "finished"), 0)
    summary = json.dumps({**counts, "attainment": 0.0, "request_goodput": 0.0, "workers": {}})
    for name, text in (("meta.json", "{}"), ("summary.json", summary), ("requests.jsonl", "")):
        (tmp_path / "other" / "a" / name).write_text(text)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "words.csv").write_text("workload,policy,requests,met,finished\ntoy,edf,many,1,2\n")
    (tmp_path / "bad.parquet").write_text("no")
    arguments, message = WRONG[case]
    code, out, err = servetwin("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_periods_are_those_of_iterations_that_nobody_joins_or_leaves(servetwin, toy: Path, tmp_path: Path):
    """In simulation they are the table's, to the digit of the sums."""
    servetwin("run", toy, "--out", tmp_path / "a", "--rate", 12)
    found = periods(tmp_path / "a")["denoise", None, 1]
    table = {1: 0.010, 2: 0.011, 4: 0.014, 8: 0.020}
    assert {1, 2, 8} <= found.keys()
    for n in table.keys() & found.keys():
        assert found[n] == pytest.approx([table[n]] * len(found[n]))
    code, out, _ = servetwin("compare", tmp_path / "a", tmp_path / "a")
    assert code == 0
    assert "A / table" in out
    shown = json.loads(servetwin("compare", tmp_path / "a", tmp_path / "a", "--json")[1])["iterations"]
    assert shown["denoise"]["1"]["table"] == pytest.approx(10.0)
    assert shown["denoise"]["1"]["first"] == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("statistic", "of"), [("mean", "mean"), ("median of 9", "median"), ("least squares", "mean")]
)
def test_means_are_held_against_means_and_medians_against_medians(
    servetwin, toy: Path, tmp_path: Path, statistic, of
):
    """A host that stumbles moves the mean and not the median; a table is either."""
    profile = toy.with_name("profile.yaml")
    table = "batch: [1, 2, 4, 8], seconds: [0.010, 0.011, 0.014, 0.020]"
    measured = f"      measured: {{{table}, statistic: {statistic}, source: {{file: runs}}}}\n"
    before, costs, after = profile.read_text().partition("costs:\n")
    profile.write_text(before + measured + costs + after)
    for name in "ab":
        servetwin("run", toy, "--rate", 2, "--seed", 3, "--out", tmp_path / name)
    lines = [json.loads(x) for x in (tmp_path / "a" / "batches.jsonl").read_text().splitlines()]
    late = 0.0
    for i, line in enumerate(lines):  # every fifth batch ends 20 ms late, and all after it
        for key in ("start", "end"):
            line[key] += late
        line["ends"] = [t + late for t in line.get("ends", [line["end"] - late])]
        late += 0.02 if i % 5 == 4 else 0.0
        line["end"] = line["ends"][-1]
    (tmp_path / "a" / "batches.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = periods(tmp_path / "a")["denoise", None, 1][1]
    shown = json.loads(servetwin("compare", tmp_path / "a", tmp_path / "b", "--json")[1])["iterations"]["denoise"][
        "1"
    ]
    mean, median = (f(seconds) for f in (statistics.fmean, statistics.median))
    assert mean > 1.02 * median
    assert shown["statistic"] == of
    assert shown["first_over_table"] == pytest.approx((mean if of == "mean" else median) / 0.010)
    assert shown["first_mean"] == pytest.approx(1e3 * mean)
    assert shown["second_over_table"] == pytest.approx(1.0)
    assert f"{of}s" in servetwin("compare", tmp_path / "a", tmp_path / "b")[1]


def test_steps_of_engines_are_held_against_what_their_table_holds():
    steps = [1.0, 1.0, 1.0, 5.0]
    assert compare_llm_runs._over(steps, [1.0] * 4, "median") == 1.0
    assert compare_llm_runs._over(steps, [1.0] * 4, "mean") == 2.0
    codellama = load_profile("rtx4090/codellama-7b").tokens("measured", "scheduler")
    assert compare_llm_runs._statistic(codellama, "prefill") == "mean"
    opt = load_profile("h100-long/opt-13b-tp1-0").tokens("measured", "scheduler")
    assert compare_llm_runs._statistic(opt, "decode") == "median"
    assert compare_llm_runs._statistic(None, "decode") == "mean"


# -- runs repeated with their own requests ------------------------------------------------------------------


def test_a_run_repeated_with_its_own_requests_has_no_gap(servetwin, toy: Path, tmp_path: Path):
    """Simulated runs, repeated: the very same, whatever the arrivals were drawn from."""
    for policy in ("edf", "fcfs"):
        for rate in (8, 16):
            servetwin("run", toy, "--policy", policy, "--rate", rate, "--out", tmp_path / "runs" / f"{policy}-{rate}")
    out = tmp_path / "scored.csv"
    arguments = ("score", tmp_path / "runs", "--out", out, "--seeds", 1, "--keep", tmp_path / "again", "-j", 1)
    code, shown, err = servetwin(*arguments)
    assert (code, err) == (0, "")
    assert "same order of" in shown
    assert "4 rows in" in shown
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {float(row["gap_met_pp"]) for row in rows} == {0.0}
    assert {row["folder"] for row in rows} == {"edf-8", "edf-16", "fcfs-8", "fcfs-16"}
    for folder in find_runs(tmp_path / "runs"):
        again = tmp_path / "again" / folder.name
        assert (again / "summary.json").read_text() == (folder / "summary.json").read_text()


def test_the_requests_are_those_that_were_sent(servetwin, toy: Path, tmp_path: Path):
    """A run whose requests came late and had other deadlines is repeated with just those."""
    servetwin("run", toy, "--rate", 6, "--out", tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a" / "requests.jsonl").read_text().splitlines()]
    for line in lines:
        line["arrival"] += 0.001 * line["id"]
        line["deadline"] = line["arrival"] + 1e-3  # which nobody can meet
    (tmp_path / "a" / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = requests_of(tmp_path / "a")
    assert [r.id for r in found] == list(range(60))
    assert found[10].arrival == next(line["arrival"] for line in lines if line["id"] == 10)
    row = replay(tmp_path / "a", load(toy, [("rate", 6.0)]))
    assert (row["requests"], row["met"]) == (60, 0)


def test_a_profile_that_has_changed_is_told(servetwin, toy: Path, tmp_path: Path):
    servetwin("run", toy, "--out", tmp_path / "runs" / "a")
    arguments = ("score", tmp_path / "runs", "--out", tmp_path / "out.csv", "--seeds", 1)
    assert "is not what it was" not in servetwin(*arguments)[1]
    profile = tmp_path / "profile.yaml"
    profile.write_text(profile.read_text().replace("0.020", "0.025"))
    code, out, err = servetwin(*arguments)
    assert (code, out) == (2, "")
    assert "not what it was when the run was made: the profile mine/toy (right would be" in err
    assert err.count("\n") == 1
    code, out, _ = servetwin(*arguments, "--as-they-are")
    assert code == 0
    assert "the profile mine/toy is not what it was when the runs were made" in out


def test_what_cannot_be_repeated(servetwin, toy: Path, tmp_path: Path):
    servetwin("run", toy, "--out", tmp_path / "runs" / "a")
    (tmp_path / "profile.yaml").unlink()
    code, _, err = servetwin("score", tmp_path / "runs", "--out", tmp_path / "out.csv")
    assert code == 2
    assert "runs/a: deployment.devices.gpu0" in err
    assert not (tmp_path / "out.csv").exists()
    (tmp_path / "empty").mkdir()
    assert "no run in it" in servetwin("score", tmp_path / "empty", "--out", tmp_path / "out.csv")[2]
    (tmp_path / "runs.csv").write_text("")
    code, _, err = servetwin("score", tmp_path / "runs.csv", "--out", tmp_path / "out.csv", "--keep", tmp_path / "k")
    assert "only repetitions of run folders are kept" in err


def test_recordings_are_scored_as_run_folders_are(servetwin, toy: Path, tmp_path: Path):
    """Simulated runs as compact recordings: repeated they are the same, and repeats of a cell tell the noise."""
    found = []
    for policy in ("edf", "fcfs"):
        for repeat, rate in enumerate((16, 16, 24)):
            folder = tmp_path / f"{policy}{repeat}"
            servetwin(
                "run", toy, "--policy", policy, "--rate", rate, "--out", folder, "--set", "system.stop_after=5.0"
            )
            lines = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
            known = {"policy": policy, "load": rate / 16, "rate": float(rate), "cv": 2.0, "slo_factor": 3.0}
            found.append(recorded_run(lines, loop="denoise", decimals=12, repeat=repeat % 2, whole=False, **known))
    modules, placement = [("encode", False), ("denoise", True)], [["encode"], ["denoise"]]
    profile = str(tmp_path / "profile.yaml")
    recording = Recording("toy", profile, modules, placement, 8, 8, 5.0, {}, found)
    write_recording(recording, tmp_path / "measured" / "toy.json.gz")
    for where in (tmp_path / "measured", tmp_path / "measured" / "toy.json.gz"):
        code, out, err = servetwin("score", where, "--out", tmp_path / "out.csv", "--seeds", 1, "-j", 1)
        assert (code, err) == (0, "")
        assert "2 cells repeated with the same requests" in out
        assert "on 2 of 2 curves" in out
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["gap_met_pp"] for row in rows] == ["0.0"] * 6
    assert {row["met"] for row in rows} != {"60"}
    code, _, err = servetwin("score", tmp_path / "measured", "--out", tmp_path / "o.csv", "--set", "seed=1")
    assert (code, err.count("\n")) == (2, 1)
    assert "recordings are repeated as they are" in err


TERMS = {
    "another policy": ("policy=edf", ["--set policy", "repeated as they are", "time.whole"]),
    "a day": ("time.session=2024-04-28", ["--set time.session", "repeated as they are"]),
    "no such term": ("time.wholes=false", ["--set time.wholes", "time.whole"]),
    "no such value": ("time.whole=maybe", ["--set time.whole: 'maybe' does not fit", "a valid boolean"]),
    "no such table": ("time.table=guessed", ["--set time.table: 'guessed' does not fit", "scheduler"]),
}


@pytest.mark.parametrize("case", TERMS)
def test_recordings_take_terms_of_time_and_nothing_else(servetwin, tmp_path: Path, case):
    given, expected = TERMS[case]
    recording = MEASURED / "h100-quiet" / "diffusion" / "sd15-512.json.gz"
    code, out, err = servetwin("score", recording, "--out", tmp_path / "o.csv", "--set", given, "-j", 1)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(part in err for part in expected), err


def test_a_term_of_recordings_can_be_switched_off(servetwin, tmp_path: Path):
    """SD 512 without noise, with and without `whole.*`: as in docs/reports/2026-11-h100-diffusion.md."""
    recording = MEASURED / "h100-quiet" / "diffusion" / "sd15-512.json.gz"
    means = []
    for more in ((), ("--set", "time.whole=false")):
        arguments = (
            "score",
            recording,
            "--out",
            tmp_path / "o.csv",
            "--seeds",
            1,
            "--set",
            "time.noise=false",
            *more,
        )
        assert servetwin(*arguments, "-j", 1)[0] == 0
        with (tmp_path / "o.csv").open(newline="") as file:
            gaps = [abs(float(row["gap_met_pp"])) for row in csv.DictReader(file)]
        means.append(round(sum(gaps) / len(gaps), 2))
    assert means == [0.11, 0.37]
    arguments = ("score", MEASURED / "h200" / "llm-opt-30b.json.gz", "--out", tmp_path / "o.csv")
    code, _, err = servetwin(*arguments, "--set", "time.noise=false")
    assert (code, err.count("\n")) == (2, 1)
    assert "recordings of language models are repeated as they are" in err
