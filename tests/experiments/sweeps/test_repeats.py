"""Repeated seeds in sweeps, the cache, and clusters."""

from __future__ import annotations

import csv
import sqlite3
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps import point as engine
from servetwin.experiments.sweeps import sweep
from servetwin.experiments.sweeps.cache import Cache
from servetwin.experiments.sweeps.cluster import running_on
from servetwin.experiments.sweeps.repeat import Repeated, repeat, seeded, told_apart, versus

GRID = "extends: toy.yaml\ngrid:\n  policy: [edf, fcfs]\n  rate: [3.0, 5.0]\n"


@pytest.fixture
def grid(toy: Path) -> Path:
    (toy.parent / "grid.yaml").write_text(GRID)
    return toy.parent / "grid.yaml"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_give_intervals_and_policies_are_compared_seed_by_seed(grid: Path, servetwin):
    out = grid.parent / "out.csv"
    code, said, _ = servetwin("sweep", grid, "--out", out, "--seeds", 4, "--versus", "fcfs", "--jobs", 1)
    assert code == 0
    others = [row for row in rows(out) if row["policy"] != "fcfs"]
    more = sum(float(row["attainment_minus_fcfs_low"]) > 0.0 for row in others)
    assert f"all: clearly more in {more} of {len(others)}, clearly fewer in 0; mean +" in said
    for row in rows(out):
        assert row["seeds"] == "4"
        assert float(row["attainment_low"]) <= float(row["attainment"]) <= float(row["attainment_high"])
        for name in ("mean_e2el_ms", "p99_e2el_ms"):
            low, mean, high = (float(row[f"{name}{end}"]) for end in ("_low", "", "_high"))
            assert low < mean < high
        gap = [float(row[f"attainment_minus_fcfs{end}"]) for end in ("_low", "", "_high")]
        assert gap == sorted(gap)
        if row["policy"] == "fcfs":
            assert gap == [0.0, 0.0, 0.0]
        else:
            assert gap[1] > 0.0


def test_where_a_seed_sends_no_request_the_share_is_left_empty(toy: Path, servetwin):
    """Of some three seeds that follow one sends nothing, at a mean of 0.9 requests."""
    arrivals = "{process: schedule, rate: 3.0, until: 0.3}"
    short = f"extends: toy.yaml\nset: {{workload.requests: null, workload.arrivals: {arrivals}}}\n"
    (toy.parent / "short.yaml").write_text(short + "grid: {policy: [edf, fcfs]}\n")
    out = toy.parent / "out.csv"
    code, _, err = servetwin(
        "sweep", toy.parent / "short.yaml", "--out", out, "--seeds", 8, "--versus", "fcfs", "--jobs", 1
    )
    assert code == 0, err
    assert "no request is sent under some seed" in err
    for row in rows(out):
        assert 0.0 < float(row["requests"]) < 3.0
        assert {row[name] for name in ("attainment", "attainment_low", "attainment_minus_fcfs")} == {""}
    empty = Repeated(load(toy), [{"requests": 1, "met": 1}, {"requests": 0, "met": 0}])
    with pytest.raises(BadInput, match="workload: no request is sent under seed 1"):
        empty.attainment(0.95)


def test_differences_are_counted_by_workload_and_policy():
    name = "attainment_minus_fcfs"
    cells = [("one", 0.02, 0.01, 0.03), ("one", 0.01, -0.01, 0.03), ("two", -0.05, -0.06, -0.04)]
    found = [
        {"policy": "edf", "workload": place, name: mean, f"{name}_low": low, f"{name}_high": high}
        for place, mean, low, high in cells
    ]
    found += [{"policy": "fcfs", "workload": "one", name: 0.0, f"{name}_low": 0.0, f"{name}_high": 0.0}]
    assert told_apart(found, "fcfs") == [
        "edf beside fcfs, points of attainment:",
        "  one: clearly more in 1 of 2, clearly fewer in 0; mean +1.50, from +1.0 to +2.0",
        "  two: clearly more in 0 of 1, clearly fewer in 1; mean -5.00, from -5.0 to -5.0",
        "  all: clearly more in 1 of 3, clearly fewer in 1; mean -0.67, from -5.0 to +2.0",
    ]


def test_until_stops_each_point_when_it_is_known_well_enough(toy: Path):
    easy, knee = load(toy, [("rate", 1.0)]), load(toy, [("rate", 25.0)])
    found = repeat([easy, knee], lambda es: engine.run_all(es, jobs=1), until=0.03, most=60)
    assert len(found[0].rows) < len(found[1].rows) <= 60
    assert found[1].attainment(0.95).half <= 0.03 or len(found[1].rows) == 60


def test_policies_see_the_same_requests():
    one, two = (seeded(load("dit-s2-256-rtx4090", [("policy", p)]), 3) for p in ("neustream", "clockwork"))
    assert one.seed == two.seed == 3
    assert one.workload.draws == two.workload.draws == "seeded"


def test_versus_needs_a_partner(grid: Path, servetwin):
    code, _, err = servetwin("sweep", grid, "--out", grid.parent / "out.csv", "--versus", "clockwork", "--jobs", 1)
    assert code == 2
    assert err.startswith("servetwin: --versus: no point of policy 'clockwork'")


def test_versus_needs_another_policy(toy: Path):
    point = Repeated(load(toy, [("policy", "edf")]))
    with pytest.raises(BadInput, match="all points are of policy 'edf'"):
        versus([point, point], [{"router": "jsq"}, {"router": "random"}], "edf")


# -- cache ----------------------------------------------------------------------------------------------


def test_what_is_known_is_not_run_again(grid: Path, servetwin, monkeypatch: pytest.MonkeyPatch):
    out = grid.parent / "out.parquet"
    assert servetwin("sweep", grid, "--out", out, "--jobs", 1)[0] == 0
    before = out.read_bytes()
    ran = []
    monkeypatch.setattr(engine, "run_point", lambda e: ran.append(e) or {})
    assert servetwin("sweep", grid, "--out", out, "--jobs", 1)[0] == 0
    assert not ran
    assert out.read_bytes() == before


def test_a_changed_profile_runs_anew_what_it_touches(grid: Path, toy: Path, monkeypatch: pytest.MonkeyPatch):
    other = toy.with_name("other.yaml")
    other.write_text(toy.read_text().replace("name: toy", "name: other").replace("profile.yaml", "second.yaml"))
    profile = toy.with_name("profile.yaml").read_text()
    toy.with_name("second.yaml").write_text(profile)
    grid.write_text("grid: {workload: [toy.yaml, other.yaml]}\n")
    ran = []
    run_point = engine.run_point
    monkeypatch.setattr(engine, "run_point", lambda e: ran.append(e.name) or run_point(e))
    with Cache() as cache:
        sweep.sweep(grid, toy.with_name("a.csv"), jobs=1, cache=cache)
        assert ran == ["toy", "other"]
        toy.with_name("second.yaml").write_text(profile.replace("0.020]", "0.025]"))
        sweep.sweep(grid, toy.with_name("b.csv"), jobs=1, cache=cache)
    assert ran == ["toy", "other", "other"]


def test_a_cache_is_a_mapping_that_lasts(tmp_path: Path):
    with Cache(tmp_path) as cache:
        cache.add("k", {"met": 3})
        assert dict(cache) == {"k": {"met": 3}}
    with Cache(tmp_path) as again:
        assert again["k"] == {"met": 3}
        assert "other" not in again
        assert len(again) == 1


def test_without_a_place_for_it_everything_works(tmp_path: Path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    cache.add("k", {})
    assert not cache
    assert "k" not in cache


def test_a_broken_cache_is_no_cache(tmp_path: Path):
    (tmp_path / "points.sqlite").write_bytes(b"not a database" * 100)
    with Cache(tmp_path) as cache:
        cache.add("k", {})
        assert "k" not in cache
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(tmp_path / "points.sqlite").execute("SELECT 1 FROM rows")


# -- clusters -------------------------------------------------------------------------------------------


def test_no_cluster_of_that_kind():
    with pytest.raises(BadInput, match="is no cluster"), running_on("http://x"):
        pass


@pytest.mark.parametrize("address", ["tcp://", "tcp://a:b", "ray://127.0.0.1:1"])
def test_an_address_of_no_cluster(address: str):
    pytest.importorskip("ray" if address.startswith("ray") else "distributed")
    with pytest.raises(BadInput, match="--cluster: ") as caught, running_on(address):
        pass
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("default")
def test_a_dask_cluster_gives_the_same_rows(grid: Path):
    distributed = pytest.importorskip("distributed")
    here = sweep.sweep(grid, grid.parent / "here.csv", jobs=1)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        there = sweep.sweep(grid, grid.parent / "there.csv", cluster=cluster.scheduler_address)
    assert there == here


@pytest.mark.filterwarnings("default")
def test_a_local_ray_gives_the_same_rows(grid: Path):
    pytest.importorskip("ray")
    here = sweep.sweep(grid, grid.parent / "here.csv", jobs=1)
    there = sweep.sweep(grid, grid.parent / "there.csv", cluster="ray")
    assert there == here


def test_quality_has_intervals_and_is_said_beside_attainment(tmp_path: Path, servetwin):
    spec = tmp_path / "acts.yaml"
    policies = "grid: {policy: [edf, fewer-steps, reuse-steps]}"
    spec.write_text(f"extends: sdxl-actions-synthetic\nset: {{rate: 0.9, requests: 80}}\n{policies}\n")
    code, said, _ = servetwin("sweep", spec, "--out", tmp_path / "out.csv", "--seeds", 3, "--jobs", 1)
    assert code == 0
    found = {row["policy"]: row for row in rows(tmp_path / "out.csv")}
    for name in ("quality_goodput", "attainment_at_full_steps", "mean_quality"):
        low, mean, high = (float(found["fewer-steps"][f"{name}{end}"]) for end in ("_low", "", "_high"))
        assert low < mean < high
    best = max(found.values(), key=lambda row: float(row["quality_goodput"]))
    value = float(best["quality_goodput"])
    assert f"quality in time is highest with {best['policy']}, {value:.3f}/s (" in said
    code, said, _ = servetwin(
        "sweep", spec, "--out", tmp_path / "out.csv", "--seeds", 3, "--jobs", 1, "--versus", "edf"
    )
    assert code == 0
    assert "quality in time is highest with " in said
