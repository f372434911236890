"""The answers on docs/guides/worked-questions.md, against formulas and a queue of a few lines."""

from __future__ import annotations

import heapq
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import Recorder
from servetwin.experiments.assembly.build import build
from servetwin.experiments.capacity.plan import plan
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import run_point
from setup_chain import chain

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


def mean_by_chain(servers: int, rate: float, service: float, mtbf: float, mttr: float, most: int = 120) -> float:
    """Mean seconds that a request is in M/M/c with servers that fail and go on where they were: the balance of the
    Markov chain of how many are up and how many requests are there, *most* at the most."""
    states = [(up, jobs) for up in range(servers + 1) for jobs in range(most + 1)]
    place = {state: i for i, state in enumerate(states)}
    rates = np.zeros((len(states), len(states)))
    for up, jobs in states:
        to = {(up, jobs + 1): rate, (up, jobs - 1): min(up, jobs) / service}
        to |= {(up - 1, jobs): up / mtbf, (up + 1, jobs): (servers - up) / mttr}
        for state, speed in to.items():
            if speed and state in place:
                rates[place[up, jobs], place[state]] += speed
    rates -= np.diag(rates.sum(axis=1))
    balance = np.vstack([rates.T[1:], np.ones(len(states))])
    shares = np.linalg.solve(balance, np.eye(len(states))[-1])
    return float(shares @ [jobs for _, jobs in states]) / rate


def mean_by_hand(
    sent: list[tuple[float, float]], down: list[list[tuple[float, float]]], *, anew: bool = True
) -> float:
    """The same of requests that are *sent* (when, and how long they take) to a queue that servers take from, each of
    which is *down* from one time to another; what they were at is put at the end, *anew* or less what was done."""
    events: list[tuple[float, int, str, int]] = [(at, 0, "comes", i) for i, (at, _) in enumerate(sent)]
    for server, spans in enumerate(down):
        events += [
            (at, 0, what, server) for span in spans for at, what in zip(span, ("fails", "is back"), strict=True)
        ]
    heapq.heapify(events)
    left, queue, total = [takes for _, takes in sent], list[int](), 0.0
    at_work: dict[int, tuple[int, float, int]] = {}  # server -> request, since when, and the number of this attempt
    up, attempts = set(range(len(down))), 0
    while events:
        now, attempt, what, number = heapq.heappop(events)
        if what == "comes":
            queue.append(number)
        elif what == "is back":
            up.add(number)
        elif what == "fails":
            up.discard(number)
            if number in at_work:
                request, since, _ = at_work.pop(number)
                left[request] -= 0.0 if anew else now - since
                queue.append(request)
        elif number in at_work and at_work[number][2] == attempt:
            total += now - sent[at_work.pop(number)[0]][0]
        for server in sorted(up - at_work.keys())[: len(queue)]:
            attempts += 1
            at_work[server] = queue.pop(0), now, attempts
            heapq.heappush(events, (now + left[at_work[server][0]], attempts, "ends", server))
    assert not queue
    return total / len(sent)


def test_the_queue_by_hand_is_erlang_c_with_breakdowns() -> None:
    assert mean_by_chain(2, 1.0, 1.0, 1e9, 1e-3) == pytest.approx(4 / 3, rel=1e-4)  # Erlang C
    draw, many = np.random.default_rng(0), 100_000
    arrivals, services = np.cumsum(draw.exponential(1.0, many)), draw.exponential(1.0, many)
    down = []
    for _ in range(2):
        repairs = draw.exponential(4.0, many // 40)
        back = np.cumsum(draw.exponential(40.0, many // 40) + repairs)
        down.append([*zip((back - repairs).tolist(), back.tolist(), strict=True)])
    sent = [*zip(arrivals.tolist(), services.tolist(), strict=True)]
    assert mean_by_hand(sent, down, anew=False) == pytest.approx(mean_by_chain(2, 1.0, 1.0, 40.0, 4.0), rel=0.02)


def varying(folder: Path) -> list[tuple[str, object]]:
    """Services of 10 ms times a geometric number, a second on average, which are as good as exponential."""
    steps = {"draw": "choice", "values": list(range(1, 1001)), "weights": [0.99**k for k in range(1000)]}
    text = (folder / "one-second.yaml").read_text().replace("[0.1, 0.2]", "[0.01, 0.02]")
    (folder / "fine.yaml").write_text(text.replace("mine/one-second", "mine/fine"))
    return [("workload.steps.denoise", steps), ("deployment.devices.gpu0", str(folder / "fine.yaml"))]


def test_two_that_share_a_queue_and_fail(folder: Path) -> None:
    for given, service, goes_on in (([], 0.1, 1.0), (varying(folder), 0.01, 1.05)):
        experiment = load(folder / "two.yaml", given)
        run = build(experiment)
        mean = run.play().as_dict()["mean_e2el_ms"] / 1000
        sent = [(request.arrival, service * request.work["denoise"]) for request in build(experiment).source]
        assert run.loop.fleet is not None
        down = [[(one.at, one.until) for one in outages] for outages in run.loop.fleet.outages.values()]
        assert mean == pytest.approx(mean_by_hand(sent, down), rel=0.01)
        assert mean > goes_on * mean_by_hand(sent, down, anew=False)


def test_four_that_are_turned_off_are_the_chain_of_servers_with_setup(folder: Path) -> None:
    """Within three standard errors of the mean of twelve seeds, each under 3 %; what is held within 1 %."""
    given = [*varying(folder), ("workload.requests", 5000)]
    rows = [run_point(load(folder / "four-off.yaml", [*given, ("seed", seed)])) for seed in range(12)]
    means = np.array([row["mean_e2el_ms"] for row in rows]) / 1000
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    mean, held = chain(4, 2.0, 10.0, 120)
    assert error < 0.03 * mean
    assert float(means.mean()) == pytest.approx(mean, abs=3 * error)
    assert sum(row["mean_replicas"] for row in rows) / 12 == pytest.approx(held, rel=0.01)
    always = run_point(load(folder / "four-off.yaml", [*varying(folder), ("deployment.autoscaler", None)]))
    assert always["mean_e2el_ms"] / 1000 == pytest.approx(chain(4, 2.0, 1e-3, 120)[0], rel=0.02)
