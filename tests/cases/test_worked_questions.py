"""The answers on docs/guides/worked-questions.md, against formulas and a queue of a few lines."""

from __future__ import annotations

import heapq
import math
import os
import sys
from pathlib import Path

import pytest
from servetwin.core import Recorder
from servetwin.experiments.assembly.build import build
from servetwin.experiments.capacity.plan import plan
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import run_point

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "docs"))

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of the page."""
    import pages

    for block in pages.blocks((ROOT / "docs" / "guides" / "worked-questions.md").read_text()):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    return tmp_path


class Times(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.times: dict[int, tuple[float, float, str]] = {}

    def ended(self, request, now):
        super().ended(request, now)
        self.times[request.id] = request.arrival, now, request.outcome.value


def test_turning_a_gpu_off_is_a_queue_with_setup(folder: Path) -> None:
    rate, start = 0.2, 10.0
    row = run_point(load(folder / "off.yaml"))
    waits = rate / (2 * (1 - rate))
    more = (2 * start + rate * start**2) / (2 * (1 + rate * start))
    assert row["mean_e2el_ms"] / 1000 == pytest.approx(1 + waits + more, rel=0.03)
    off = (1 - rate) * (1 / rate) / (1 / rate + start)
    assert row["mean_replicas"] == pytest.approx(1 - off, rel=0.03)
    always = run_point(load(folder / "off.yaml", [("deployment.autoscaler", None)]))
    assert always["mean_e2el_ms"] / 1000 == pytest.approx(1 + waits, rel=0.03)
    assert row["dollars"] / always["dollars"] == pytest.approx(1 - off, rel=0.03)


@pytest.mark.parametrize(("ahead", "free"), [(0, [0.0, 80.0, 80.0, 80.0]), (20, [0.0, 60.0, 60.0, 60.0])])
def test_a_jump_is_a_queue_whose_servers_come_later(folder: Path, ahead: int, free: list[float]) -> None:
    experiment = load(folder / "jump.yaml", [("deployment.autoscaler.params.ahead", ahead)])
    log = Times()
    build(experiment, log).play()
    late = 0
    for arrival, end, outcome in (log.times[number] for number in sorted(log.times)):
        if arrival >= 100.0:
            break  # by then some stop
        begun = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begun + 1.0)
        assert end == pytest.approx(begun + 1.0)
        late += begun + 1.0 > arrival + 5.0
        assert outcome == ("late" if begun + 1.0 > arrival + 5.0 else "met")
    assert (late > 0) == (ahead == 0)


def test_following_the_load_costs_what_is_held(folder: Path) -> None:
    found = plan(folder / "follow.yaml", lambda experiments: [run_point(each) for each in experiments])
    chosen, by_name = found.chosen, {(fleet.kind, fleet.count): fleet for fleet in found.fleets}
    assert chosen is not None
    row = chosen.point.rows[0]
    lasted = row["duration"]
    assert chosen.label.startswith("1 to 4 x following")
    assert row["device_hours"] * 3600 == pytest.approx(lasted + 3 * 70.0)
    four = by_name["always", 4].point.rows[0]
    assert four["device_hours"] * 3600 == pytest.approx(4 * four["duration"])
    assert row["attainment"] == four["attainment"] == 1.0


def sojourn_with_breakdowns(rate: float, service: float, mtbf: float, mttr: float) -> float:
    """Mean seconds that a request is in a queue with one server that fails, also when nobody is there, and begins
    anew what it was doing: M/G/1 by completion times (Avi-Itzhak and Naor 1963), the first of each busy period with
    the rest of a repair before it (Welch 1964)."""
    f, p = 1 / mtbf, math.exp(-service / mtbf)
    lost = 1 / f - service * p / (1 - p)  # what a failed attempt took
    lost_squared = 2 / f**2 - (service**2 + 2 * service / f) * p / (1 - p)
    cycle, cycle_squared = lost + mttr, lost_squared + 2 * lost * mttr + 2 * mttr**2
    fails, fails_twice = (1 - p) / p, 2 * ((1 - p) / p) ** 2
    mean = service + fails * cycle
    square = service**2 + 2 * service * fails * cycle + fails * cycle_squared + fails_twice * cycle**2
    down = f / (rate + f + 1 / mttr)
    first, first_squared = mean + down * mttr, square + 2 * mean * down * mttr + 2 * down * mttr**2
    begins = (1 - rate * mean) / (1 - rate * mean + rate * first)
    wait = rate * square / (2 * (1 - rate * mean))
    wait += rate * (first_squared - square) / (2 * (1 - rate * mean + rate * first))
    return wait + begins * first + (1 - begins) * mean


def test_one_that_dies_is_a_queue_with_breakdowns(folder: Path) -> None:
    rows = [run_point(load(folder / "dies.yaml", [("seed", seed)])) for seed in range(3)]
    found = [row["mean_e2el_ms"] / 1000 for row in rows]
    assert sojourn_with_breakdowns(0.5, 1.0, 1e5, 1e-3) == pytest.approx(1.5, rel=1e-4)  # M/D/1
    assert sum(found) / 3 == pytest.approx(sojourn_with_breakdowns(0.5, 1.0, 40.0, 4.0), rel=0.03)
    assert sum(row["mean_availability"] for row in rows) / 3 == pytest.approx(40 / 44, rel=0.01)
    assert all(row["gave_up"] == 0 and row["finished"] == 20000 for row in rows)
