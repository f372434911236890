"""What a run costs, worked out by hand; how long devices compute, against the records of the same run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as hs
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.assembly.costs import Meter
from servetwin.experiments.reporting.timeline import read
from servetwin.experiments.spec.loading import load
from toy_systems import refused, rows, servetwin, write_one

import servetwin as st

PRICE = {"per_hour": 3.6, "source": "made up", "power": {"busy": 400.0, "idle": 100.0}}
#: 40 requests, every 0.2 s from 0.2 s on, each of which takes 0.1 s: 7.9 s from the first arrival to the last end.
STEADY = [
    ("workload.arrivals", {"process": "constant", "rate": 5.0}),
    ("workload.requests", 40),
    ("deployment.prices", {"gpu0": PRICE}),
]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write_one(tmp_path)


def cost(file: Path, *more: tuple[str, Any]) -> dict[str, Any]:
    return run(load(file, [*STEADY, *more])).as_dict()["cost"]


def test_costs_are_what_a_calculation_by_hand_gives(one: Path) -> None:
    """A tenth of a cent per second; 4 of 7.9 s at 400 W, the rest at 100 W."""
    found = cost(one)
    assert found["dollars"] == pytest.approx(0.0079)
    assert found["device_hours"] == pytest.approx(7.9 / 3600)
    assert found["dollars_per_1000_requests"] == pytest.approx(0.0079 / 40 * 1000)
    assert found["met_per_dollar"] == pytest.approx(40 / 0.0079)
    assert found["utilisation"] == pytest.approx(4.0 / 7.9)
    assert found["energy_kwh"] == pytest.approx((4.0 * 400 + 3.9 * 100) / 3.6e6)
    assert "dollars_per_million_output_tokens" not in found


def test_each_replica_is_paid_for(one: Path) -> None:
    alone, two = cost(one), cost(one, ("deployment.replicas", 2))
    assert two["dollars"] == pytest.approx(2 * alone["dollars"])
    assert two["device_hours"] == pytest.approx(2 * alone["device_hours"])
    assert two["utilisation"] == pytest.approx(alone["utilisation"] / 2)
    assert two["energy_kwh"] == pytest.approx((4.0 * 400 + (2 * 7.9 - 4.0) * 100) / 3.6e6)


def test_without_power_there_is_no_energy_and_without_met_requests_no_ratio(one: Path) -> None:
    prices = {"gpu0": {"per_hour": 3.6, "source": "made up"}}
    found = cost(one, ("deployment.prices", prices), ("slo.seconds", 0.05))
    assert found["energy_kwh"] is None
    assert found["met_per_dollar"] == 0.0
    free = cost(one, ("deployment.prices", {"gpu0": {**PRICE, "per_hour": 0.0}}))
    assert (free["dollars"], free["met_per_dollar"]) == (0.0, None)


CHAT = [("policy", "vllm-v1"), ("requests", 80), ("rate", 4.0), ("deployment.prices", {"gpu0": PRICE})]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("opt-13b-a6000", CHAT),
        ("opt-13b-h100-async", CHAT),
        ("opt-13b-a6000", [*CHAT, ("deployment.replicas", 3)]),
        ("sd15-512-rtx4090", [("requests", 60), ("deployment.prices", {"gpu0": PRICE})]),
    ],
    ids=["engine", "asynchronous", "replicas", "three workers of a device"],
)
def test_devices_compute_as_long_as_the_records_say(tmp_path: Path, name: str, settings: list[Any]) -> None:
    experiment = load(name, settings)
    summary = run(experiment, tmp_path / "r")
    line = read(tmp_path / "r")
    busy = sum(float(level.means(line.edges(1))[0]) for level in line.busy.values()) * line.end
    held = summary.as_dict()["duration"] * len(line.busy)
    told = summary.as_dict()["cost"]
    assert told["utilisation"] == pytest.approx(busy / held, rel=1e-9)
    without = [pair for pair in settings if pair[0] != "deployment.prices"]
    plain = run(load(name, without)).as_dict()
    assert {key: value for key, value in summary.as_dict().items() if key != "cost"} == plain
    if "llm" in plain:
        tokens = plain["llm"]["llm"]["total_output_tokens"]
        assert told["dollars_per_million_output_tokens"] == pytest.approx(1e6 * told["dollars"] / tokens)


@given(hs.lists(hs.tuples(hs.integers(0, 20), hs.integers(1, 6)), min_size=1, max_size=25))
def test_what_overlaps_counts_once(batches: list[tuple[int, int]]) -> None:
    """Batches of several workers of a device, against the whole seconds that lie in any of them."""
    meter = Meter([])
    meter._spans, meter._sums, meter._alone = {"gpu0": []}, {"gpu0": 0.0}, {"gpu0": False}
    spans = sorted(((start, start + length) for start, length in batches), key=lambda span: span[1])
    for start, end in spans:
        meter.add("gpu0", float(start), float(end))
    assert meter.busy() == {"gpu0": len({second for start, end in spans for second in range(start, end)})}


REFUSED = {
    "another device": ({"gpu1": PRICE}, "deployment.prices.gpu1: unknown device 'gpu1'"),
    "no price": ({}, "deployment.prices.gpu0: gpu0 has no price"),
    "no source": ({"gpu0": {"per_hour": 1.0}}, "source"),
    "below nothing": ({"gpu0": {**PRICE, "per_hour": -1.0}}, "per_hour"),
    "half a power": ({"gpu0": {**PRICE, "power": {"busy": 300.0}}}, "idle"),
    "warmer when idle": (
        {"gpu0": {**PRICE, "power": {"busy": 100.0, "idle": 200.0}}},
        "deployment.prices.gpu0.power: an idle device draws 200 W, and a busy one 100 W",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_price_is_refused(one: Path, case: str) -> None:
    prices, said = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        build(load(one, [*STEADY[:2], ("deployment.prices", prices)]))
    assert said in str(caught.value)


def test_run_sweep_and_compare_tell_it(one: Path, tmp_path: Path) -> None:
    sets = [part for key, value in STEADY for part in ("--set", f"{key}={json.dumps(value)}")]
    hours = {"a": "0.002194 hours at $3.6 an hour", "b": "0.002194 hours of 2 devices, at $7.2 an hour together"}
    for name, more in (("a", []), ("b", ["--set", "deployment.replicas=2"])):
        code, out, err = servetwin("run", one, *sets, *more, "--out", tmp_path / name)
        assert code == 0, err
        assert "cost $0.0" in out
        assert hours[name] in out  # 7.9 s
        (share,) = re.findall("devices busy ([0-9.]+) % of the time", out)
        each = [float(x) for x in re.findall("^gpu[0-9.]+ busy ([0-9.]+) % of the time$", out, re.MULTILINE)]
        assert float(share) == pytest.approx(sum(each) / len(each), abs=0.11)  # of the same time, from 0.2 s on
        assert sum(each) == pytest.approx(100 * 4.0 / 7.9, abs=0.11)
    code, out, err = servetwin("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert code == 0, err
    assert json.loads(out)["cost"]["dollars"]["second"] == pytest.approx(2 * 0.0079)
    code, out, err = servetwin("compare", tmp_path / "a", tmp_path / "b")
    assert "met per dollar" in out
    given = {"extends": "one.yaml", "set": dict(STEADY), "grid": {"deployment.replicas": [1, 2]}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(given))
    code, _, err = servetwin("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "t.csv", "--jobs", 1)
    assert code == 0, err
    assert [float(row["dollars"]) for row in rows(tmp_path / "t.csv")] == pytest.approx([0.0079, 0.0158])
    error = refused("run", one, *sets[:-1], "deployment.prices={gpu0: {per_hour: 1.0}}")
    assert "source" in error


def test_old_experiments_say_nothing_of_prices(one: Path) -> None:
    assert "prices" not in load(one).as_dict()["deployment"]
    assert "cost" not in st.run(one, requests=5).summary
