"""Scoring: measured runs in, the same runs with their simulated counts and gaps out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.validation.comparison import run_table
from servetwin.experiments.validation.score import gaps_of, score

HEADER = "workload,policy,rate,cv,slo_factor,requests,met,finished"
ROWS = [
    "palette-256-rtx4090,neustream,0.4,2,3,40,39,40",
    "palette-256-rtx4090,clockwork,0.4,2,3,40,30,31",
    "sd15-512-rtx4090,clockwork,0.3,2,3,40,,31",
]


def write(folder: Path, *lines: str) -> Path:
    path = folder / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# -- what comes out -------------------------------------------------------------------------------------


def test_the_same_rows_with_simulated_counts_and_gaps(tmp_path: Path):
    path = write(tmp_path, HEADER + ",who", *(f"{row},me" for row in ROWS))
    scored = score(path, tmp_path / "out.csv", seeds=2, jobs=1)
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == [*HEADER.split(","), "who", "sim_met", "sim_finished", "gap_met_pp", "gap_finished_pp"]
    assert [",".join(list(row.values())[:9]) for row in rows] == [f"{row},me" for row in ROWS]
    for row, s in zip(rows, scored, strict=True):
        assert float(row["sim_finished"]) >= float(row["sim_met"]) > 0
        gap = (float(row["sim_finished"]) - float(row["finished"])) / 40 * 100
        assert float(row["gap_finished_pp"]) == pytest.approx(gap)
        assert s.gap_finished == pytest.approx(gap)
    assert float(rows[0]["gap_met_pp"]) == pytest.approx((float(rows[0]["sim_met"]) - 39) / 40 * 100)
    assert rows[2]["gap_met_pp"] == ""


def test_gaps_per_workload_and_policy_and_in_all(tmp_path: Path):
    scored = score(write(tmp_path, HEADER, *ROWS), seeds=1, jobs=1)
    found = gaps_of(scored)
    assert [(p.workload, p.policy, p.runs) for p in found] == [
        ("palette-256-rtx4090", "neustream", 1),
        ("palette-256-rtx4090", "clockwork", 1),
        ("sd15-512-rtx4090", "clockwork", 1),
        ("all", "", 3),
    ]
    gaps = [abs(s.gap_finished) for s in scored]
    assert found[-1].finished == pytest.approx((sum(gaps) / 3, max(gaps)))
    assert found[2].met is None


def test_scoring_twice_gives_the_same_bytes_and_may_start_from_its_own_output(tmp_path: Path):
    path = write(tmp_path, HEADER, *ROWS[:2])
    score(path, tmp_path / "a.csv", seeds=2, jobs=1)
    score(tmp_path / "a.csv", tmp_path / "b.csv", seeds=2, jobs=1)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_start_and_step_delta_reach_the_experiment(tmp_path: Path):
    row = "sd15-256-rtx4090,neustream,1.25,2,3,40,39,40"
    lines = [f"{row},2024-04-29 05:06:40,0.9,neustream-ae", f"{row},,,", f"{row},2024-04-29 05:06:40,,"]
    path = write(tmp_path, HEADER + ",start,step_delta,variant", *lines)
    _, runs = run_table.read(path)
    first, second, third = run_table.experiments(runs, path)
    assert (third.deployment.workers[1].limit, third.system.stop_after) == (40, None)  # no run of that system
    assert first.system.stop_after == 0.0
    assert first.time.session == "2024-04-29 05:06:40"
    assert first.deployment.workers[1].limit == 15
    assert first.policy.params["step_delta"] == 0.9
    assert (second.time.session, second.deployment.workers[1].limit) == (None, 40)
    assert second.policy.params["step_delta"] == 0.95


# -- what is wrong --------------------------------------------------------------------------------------

WRONG = {
    "a column is missing": ([HEADER.replace("cv,", "")], ["runs.csv:1", "column 'cv' is missing"]),
    "no run": ([HEADER], ["runs.csv", "no run"]),
    "unknown workload": (
        [HEADER, ROWS[0], ROWS[0].replace("palette-256", "palete-256")],
        ["runs.csv:3: workload", "'palete-256-rtx4090'", "palette-256-rtx4090"],
    ),
    "unknown policy": ([HEADER, ROWS[0].replace("neu", "new")], ["runs.csv:2: policy", "'newstream'", "neustream"]),
    "no number": ([HEADER, ROWS[0].replace("0.4", "fast")], ["runs.csv:2: rate", "'fast'", "a number above 0"]),
    "no count": ([HEADER, ROWS[0].replace(",40,39", ",40.5,39")], ["runs.csv:2: requests", "'40.5'"]),
    "more met than sent": ([HEADER, ROWS[0].replace("39", "41")], ["runs.csv:2: met", "'41'", "from 0 to 40"]),
    "a value too few": ([HEADER, ROWS[0][: ROWS[0].rindex(",")]], ["runs.csv:2", "does not fit the header"]),
    "a value too many": ([HEADER, ROWS[0] + ",7"], ["runs.csv:2", "does not fit the header"]),
    "no date": ([HEADER + ",start", ROWS[0] + ",today"], ["runs.csv:2: start", "'today'", "2024-04-28 17:41:55"]),
    "a parameter the policy does not have": (
        [HEADER + ",step_delta", ROWS[1] + ",0.95"],
        ["runs.csv:2", "no key 'step_delta'"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_told_by_its_line_and_nothing_is_written(tmp_path: Path, case):
    lines, expected = WRONG[case]
    with pytest.raises(BadInput) as caught:
        score(write(tmp_path, *lines), tmp_path / "out.csv", jobs=1)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "out.csv").exists()


def test_a_table_says_which_deployment_a_run_had(tmp_path: Path):
    row = "sd15-256-rtx4090,fcfs,1.25,2,3,40,39,40"
    path = write(tmp_path, HEADER + ",deployment", f"{row},whole", f"{row},")
    first, second = run_table.experiments(run_table.read(path)[1], path)
    assert [len(e.deployment.workers) for e in (first, second)] == [1, 3]
    wrong = write(tmp_path, HEADER + ",variant", f"{row},neustream")
    with pytest.raises(BadInput, match=r"runs.csv:2: --set variant: unknown variant 'neustream'.*neustream-ae"):
        run_table.experiments(run_table.read(wrong)[1], wrong)


# -- the measured runs that come along ------------------------------------------------------------------

NAMES = {
    "DiT_S_2": "dit-s2-256-rtx4090",
    "DiT_XL_2": "dit-xl2-256-rtx4090",
    "Palette": "palette-256-rtx4090",
    "SD15_RTX4090_256": "sd15-256-rtx4090",
    "SD15_RTX4090_512": "sd15-512-rtx4090",
}


def test_the_measured_runs_of_neustream_are_there_and_can_be_set_up():
    header, runs = run_table.read(run_table.NEUSTREAM)
    assert header[:8] == HEADER.split(",")
    assert len(runs) == 167
    assert len(run_table.experiments(runs, run_table.NEUSTREAM)) == 167
    seed = [r for r in runs if (r.workload, r.rate, r.cv, r.slo_factor) == ("dit-s2-256-rtx4090", 4.0, 2.0, 3.0)]
    assert [(r.policy, r.met, r.finished) for r in seed] == [("neustream", 463, 463), ("clockwork", 86, 88)]


@pytest.mark.reference
def test_our_copy_of_the_measured_runs_is_faithful(reference: Path):
    def key(workload, policy, rate, cv, slo, requests, met, finished, start, step_delta):
        numbers = (float(rate), float(cv), float(slo), int(requests), int(met), int(finished))
        return (workload, policy, *numbers, start, float(step_delta or 0))

    columns = ["rate", "cv", "slo_factor", "requests", "goodput_count", "finished_count", "run_start", "step_delta"]
    with (reference / "diffusion" / "logged_runs.csv").open(newline="") as file:
        logged = sorted(
            key(NAMES[row["workload"]], row["system"], *(row[c] for c in columns))
            for row in csv.DictReader(file)
            if row["status"] == "primary"
        )
    ours = ["workload", "policy", "rate", "cv", "slo_factor", "requests", "met", "finished", "start", "step_delta"]
    assert sorted(key(*(row[c] for c in ours)) for row in table(run_table.NEUSTREAM)) == logged
