"""`servetwin.sweep`, `search` and `compare`: the tables of the command line, also of policies that are objects."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import Decision, Policy
from servetwin.experiments.capacity import search
from servetwin.experiments.sweeps import point as points
from servetwin.experiments.sweeps import sweep
from servetwin.experiments.sweeps.cache import Cache

import servetwin


class Where(Policy):
    """First come, first served; says in which process it was."""

    seen: set[int] = set()  # noqa: RUF012 - what all of them saw

    def __init__(self, most: int = 20) -> None:
        self.most = most
        Where.seen.add(os.getpid())

    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: min(self.most, view.limit)])


CLOCK = (
    "import time\nfrom servetwin.core import Decision, Policy\n\n\nclass Clock(Policy):\n"
    "    def decide(self, view, now):\n"
    "        time.time()\n        return Decision([*view.running, *view.waiting][: view.limit])\n"
)


def test_a_sweep_is_the_table_of_the_command_line(workload, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(f"extends: {workload}\nset: {{requests: 40}}\ngrid: {{rate: [3, 5], policy: [edf, fcfs]}}\n")
    wanted = sweep.sweep(file, tmp_path / "grid.csv", jobs=1)
    found = servetwin.sweep(workload, rate=[3, 5], policy=["edf", "fcfs"], requests=40, jobs=1)
    assert found.to_dicts() == wanted
    assert found.save(tmp_path / "mine.csv").read_bytes() == (tmp_path / "grid.csv").read_bytes()
    assert servetwin.sweep(workload, rate=[3, 5], policy=["edf", "fcfs"], requests=40, jobs=2).to_dicts() == wanted


def test_an_axis_is_anything_with_several_values(workload):
    rates = (np.array([3.0, 5.0]), (3, 5), iter([3, 5]), range(3, 6, 2), {3: "a", 5: "b"}.keys())
    tables = [servetwin.sweep(workload, rate=rate, requests=20).to_dicts() for rate in rates]
    assert all(table == tables[0] for table in tables)
    assert [row["rate"] for row in tables[0]] == [3, 5]
    several = {"policy.params.step_delta": [0.9, 1.1], "slo": 4.0, "workload.draws": "seeded"}
    table = servetwin.sweep(workload, requests=20, settings=several, seed=range(2))
    assert [(row["seed"], row["policy.params.step_delta"]) for row in table] == [
        (0, 0.9),
        (0, 1.1),
        (1, 0.9),
        (1, 1.1),
    ]
    assert set(table["slo_factor"]) == {4.0}


def test_several_experiments_and_dicts(workload, tmp_path):
    names = [workload, "dit-xl2-256-rtx4090"]
    table = servetwin.sweep(names, rate=0.5, requests=10)
    assert table["workload"] == names
    content = {"extends": workload, "policy": (Where, {"most": 3})}
    table = servetwin.sweep(content, rate=[3, 5], requests=10)
    assert table["policy"] == ["Where", "Where"]
    assert max(table["max_batch_size"]) <= 3


def test_points_of_objects_run_here_and_the_others_in_all_processes(workload):
    Where.seen.clear()
    policies = ["edf", Where, (Where, {"most": 2}), lambda: Where(2)]
    table = servetwin.sweep(workload, rate=[4, 5], policy=policies, requests=40, jobs=2)
    assert Where.seen == {os.getpid()}
    assert list(dict.fromkeys(table["policy"])) == ["edf", "Where", "Where#2"]
    assert set(table["policy.params"]) == {None, '{"most": 2}'}
    two = [
        [row["met"] for row in table if row["policy.params"]],
        [r["met"] for r in table if r["policy"] == "Where#2"],
    ]
    assert two[0] == two[1]
    for row in table:
        params = {"most": 2} if row["policy.params"] else {}
        policy = {"edf": "edf", "Where": (Where, params), "Where#2": (Where, {"most": 2})}[row["policy"]]
        run = servetwin.run(workload, rate=row["rate"], policy=policy, requests=40, records=False)
        assert (run.met, run.summary["dropped"]) == (row["met"], row["dropped"])


def test_rows_of_named_policies_are_kept_and_those_of_objects_are_not(workload, monkeypatch):
    ran: list[str] = []
    real = points.run_numbered

    def counted(number, experiment, point=None):
        ran.append(experiment.policy.name)
        return real(number, experiment, point)

    monkeypatch.setattr(points, "run_numbered", counted)
    ask = {"rate": [4, 5], "policy": ["edf", Where], "requests": 20, "jobs": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = servetwin.sweep(workload, **ask)
        assert ran == ["edf", "Where"] * 2
        ran.clear()
        assert servetwin.sweep(workload, **ask).to_dicts() == first.to_dicts()
        assert ran == ["Where", "Where"]
        ran.clear()
        servetwin.sweep(workload, **ask, cache=False)
        assert ran == ["edf", "Where"] * 2
    with Cache() as cache:
        assert {row["requests"] for row in map(cache.__getitem__, cache)} == {20}
        assert len(cache) == 2


def test_a_class_that_was_defined_anew_under_its_name_is_what_runs(workload):
    def of(most: int) -> type[Policy]:
        class Same(Where):
            def decide(self, view, now):
                return Decision([*view.running, *view.waiting][: min(most, view.limit)])

        return Same

    met = [servetwin.sweep(workload, rate=[4, 5], policy=[of(n)], requests=40)["max_batch_size"] for n in (2, 3)]
    assert met == [[2, 2], [3, 3]]
    both = servetwin.sweep(workload, rate=4, policy=[of(2), of(3)], requests=40)
    assert both["max_batch_size"] == [2, 3]
    assert len(set(both["policy"])) == 2


def test_doubts_about_a_file_are_a_warning(workload, tmp_path):
    (tmp_path / "clock.py").write_text(CLOCK)
    with pytest.warns(UserWarning, match="rows are not kept.*reads the clock") as told:
        servetwin.sweep(workload, rate=[4], policy=tmp_path / "clock.py", requests=10, jobs=1)
    assert told[0].filename == __file__


def test_seeds_intervals_and_differences(workload):
    done: list[tuple[int, int]] = []
    table = servetwin.sweep(
        workload,
        rate=[4.0],
        policy=["edf", Where],
        requests=40,
        seeds=3,
        versus=Where,
        progress=lambda *a: done.append(a),
    )
    assert done[-1] == (6, 6)
    edf, where = table
    assert edf["seeds"] == 3
    assert edf["attainment_low"] <= edf["attainment"] <= edf["attainment_high"]
    assert where["attainment_minus_Where"] == 0.0
    assert edf["attainment_minus_Where"] == pytest.approx(edf["attainment"] - where["attainment"])
    until = servetwin.sweep(workload, rate=1.0, requests=40, until=0.05, most=7)
    assert 5 <= until["seeds"][0] <= 7


def test_nothing_is_written_where_a_sweep_runs(workload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    servetwin.sweep(workload, rate=[3, 5], requests=10)
    assert list(tmp_path.iterdir()) == []


def test_files_are_found_from_where_one_is(workload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/mine.yaml").write_text(f"extends: {workload}\npolicy: {{name: plain.py}}\n")
    Path("sub/plain.py").write_text(CLOCK.replace("        time.time()\n", "").replace("import time\n", ""))
    by_name = servetwin.sweep("sub/mine.yaml", rate=[3, 5], requests=10)
    assert by_name["met"] == servetwin.sweep(Path("sub/mine.yaml"), rate=[3, 5], requests=10)["met"]
    assert by_name["met"] == servetwin.sweep(workload, policy="sub/plain.py", rate=[3, 5], requests=10)["met"]


def test_a_figure_of_a_sweep_has_a_line_for_each_policy(workload):
    table = servetwin.sweep(workload, rate=[3, 5], policy=["edf", Where, (Where, {"most": 2})], requests=20, seeds=2)
    (panel,) = table.plot().axes
    assert [line.get_label() for line in panel.lines] == ["edf", "Where", "Where, most=2"]
    assert [list(line.get_xdata()) for line in panel.lines] == [[3, 5]] * 3
    assert list(panel.lines[0].get_ydata()) == [row["attainment"] for row in table if row["policy"] == "edf"]
    (other,) = servetwin.sweep(workload, rate=[3, 5], requests=20).plot(y="p99_e2el_ms").axes
    assert other.get_ylabel() == "latency, p99 (ms)"


# -- search -----------------------------------------------------------------------------------------------


def test_a_search_is_that_of_the_engine(workload):
    ask = {"seeds": 2, "requests": 40, "longest": 80, "jobs": 1}
    found = servetwin.search(workload, target=0.9, policy=["edf", Where], **ask)
    assert len(found) == len(found.answers) == 2
    wanted = search.answers([workload], ["edf"], search.Asked("rate", [0.9], 2, 0, 40, 80), jobs=1)
    first = found.answers[0]
    assert (first.value, first.low, first.high) == (wanted[0].found.value, wanted[0].found.low, wanted[0].found.high)
    assert first.notes == wanted[0].found.notes
    assert [row["verdict"] for row in found] == [answer.verdict for answer in found.answers]
    assert {row["policy"] for row in found} == {"edf", "Where"}
    tried = {row["place"]: row for row in first.tried}
    assert tried[first.value]["margin"] >= 0.0
    assert any(row["margin"] < 0.0 for row in tried.values())
    with pytest.raises(servetwin.Error, match="there are 2 answers"):
        _ = found.value
    (panel,) = found.plot().axes
    assert len([line for line in panel.lines if len(line.get_xdata()) > 2]) == 2


def test_a_search_with_one_answer_is_that_answer(workload):
    found = servetwin.search(
        workload, "replicas", rate=6, target="p90_e2el_ms<=6000", seeds=2, requests=100, longest=200
    )
    assert (found.value, found.verdict, found.notes) == (found[0]["value"], found[0]["verdict"], found.answer.notes)
    assert (found.low, found.high) == (found.answer.low, found.answer.high)
    assert found.value == int(found.value)
    assert found.answer.verdict in ("confirmed", "unchecked", "not stable", "not shown to be stable", "not confirmed")


@pytest.mark.parametrize(
    ("twice", "backlog", "verdict"),
    [(True, "flat", "confirmed"), (True, "growing", "not stable"), (False, "flat", "not confirmed"),
     (False, "unclear", "not shown to be stable"), (None, "flat", "unchecked")],
)  # fmt: skip
def test_the_verdict_of_an_answer(workload, monkeypatch, twice, backlog, verdict):
    from dataclasses import replace

    real = search.Finder._answer

    def answer(self, found, length, checked, notes):
        made = real(self, found, length, checked, notes)
        return replace(made, twice=twice, stable=replace(made.stable, backlog=backlog))

    monkeypatch.setattr(search.Finder, "_answer", answer)
    assert servetwin.search(workload, seeds=1, requests=60, longest=60).verdict == verdict


# -- compare ----------------------------------------------------------------------------------------------


def test_two_runs_compared(workload, tmp_path):
    a = servetwin.run(workload, rate=4, policy="edf", requests=60)
    b = servetwin.run(workload, rate=4, policy="fcfs", requests=60)
    found = servetwin.compare(a, b)
    gap = {row["metric"]: row for row in found}
    assert gap["attainment"]["first"] == pytest.approx(100 * a.attainment)
    assert gap["attainment"]["gap"] == pytest.approx(100 * (b.attainment - a.attainment))
    assert gap["goodput"]["second"] == pytest.approx(b.goodput)
    assert (gap["p99_latency"]["unit"], gap["p99_latency"]["first"]) == (
        "s",
        pytest.approx(a.summary["p99_e2el_ms"] / 1e3),
    )
    assert set(found.details) >= {"attainment", "workers", "iterations"}
    saved = a.save(tmp_path / "a")
    assert servetwin.compare(saved, str(saved)).to_dicts() == servetwin.compare(a, a).to_dicts()
    assert all(row["gap"] == 0 for row in servetwin.compare(saved, a))


def test_two_collections_compared(workload, tmp_path):
    sweeps = [
        servetwin.sweep(workload, rate=[3, 5], policy=["edf", "fcfs"], requests=40, seed=seed) for seed in (0, 1)
    ]
    found = servetwin.compare(*sweeps, target=0.8)
    assert len(found) == 4
    for row in found:
        same = [s for s in sweeps[0] if (s["rate"], s["policy"]) == (row["rate"], row["policy"])]
        assert row["attainment_first"] == pytest.approx(100 * same[0]["attainment"])
    assert found.details["decisions"]["capacity"]["target_percent"] == 80
    saved = [s.save(tmp_path / f"{i}.csv") for i, s in enumerate(sweeps)]
    assert servetwin.compare(saved[0], sweeps[1]).to_dicts() == found.to_dicts()
    with pytest.raises(servetwin.Error, match="first: this is one run, the other are many"):
        servetwin.compare(servetwin.run(workload, requests=5), sweeps[0])
    with pytest.raises(servetwin.Error, match="this is one run, the other are many"):
        servetwin.compare(saved[0], servetwin.run(workload, requests=5))


def test_seeds_are_said_one_way(workload):
    with pytest.raises(servetwin.Error, match=r"^seeds: the axis seed \(1, 2\) says the seeds of each point already"):
        servetwin.sweep(workload, seed=[1, 2], seeds=2)
