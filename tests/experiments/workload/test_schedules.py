"""Loads that change over time: what is expected against integrals, what is drawn against what is expected, and
classes that come each at times of their own."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.keys.schedule import Schedule
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload.draws import arrival_times
from servetwin.experiments.workload.requests import count_of, read_trace
from servetwin.experiments.workload.schedules import Load
from servetwin.experiments.workload.seed_effect import depends_on_seed

DAY = {"rate": 5.0, "wave": {"period": 40.0, "amplitude": 0.8, "phase": 0.25}}
STEPS = {"rate": 5.0, "points": [[0.0, 1.0], [30.0, 0.0], [60.0, 2.5]], "every": 100.0}
RAMPS = {"rate": 5.0, "points": [[0.0, 0.0], [30.0, 2.0], [60.0, 0.5]], "between": "ramps"}
SPIKES = {"rate": 5.0, "spikes": [{"at": 20.0, "seconds": 5.0, "factor": 6.0}], "every": 50.0}
ALL = {**RAMPS, **SPIKES, **DAY, "every": 90.0, "wave": {"period": 17.0, "amplitude": 1.0}}
KINDS = {"wave": DAY, "steps": STEPS, "ramps": RAMPS, "spikes": SPIKES, "all": ALL}


def schedule(**said: Any) -> Schedule:
    return Schedule(process="schedule", **said)


def rate_at(t: float, said: dict[str, Any]) -> float:
    """The rate as the guide tells it, written without the program's pieces."""
    inner = t % said["every"] if "every" in said else t
    points, factor = said.get("points", [[0.0, 1.0]]), 1.0
    for (at, value), following in zip(points, [*points[1:], None], strict=True):
        if at <= inner:
            factor = value
            if said.get("between") == "ramps" and following is not None and inner < following[0]:
                factor += (following[1] - value) * (inner - at) / (following[0] - at)
    for spike in said.get("spikes", []):
        factor *= spike["factor"] if spike["at"] <= inner < spike["at"] + spike["seconds"] else 1.0
    if "wave" in said:
        wave = said["wave"]
        factor *= 1 + wave["amplitude"] * math.sin(2 * math.pi * (t / wave["period"] + wave.get("phase", 0.0)))
    return said["rate"] * factor


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_expected_is_the_integral_of_the_rate(kind: str) -> None:
    said, cells = KINDS[kind], 40_000
    found = Load(schedule(**said))
    for begin, end in ((0.0, 12.5), (20.0, 25.0), (10.0, 210.0)):
        width = (end - begin) / cells
        area = width * math.fsum(rate_at(begin + (i + 0.5) * width, said) for i in range(cells))
        assert found.expected(begin, end) == pytest.approx(area, rel=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_chance_a_request_comes_whenever_one_more_is_expected(kind: str) -> None:
    spec = schedule(**KINDS[kind], cv=0.0)
    times, found = list(islice(arrival_times(spec, seed=0, published=False), 300)), Load(spec)
    assert all(a < b for a, b in pairwise(times))
    assert [found.expected(0.0, at) for at in times] == pytest.approx(list(range(1, 301)), abs=1e-8)


@settings(max_examples=60)
@given(st.data())
def test_times_are_those_by_which_so_many_are_expected(data: st.DataObject) -> None:
    """Of drawn schedules, at drawn numbers."""
    some = st.floats(0.0, 8.0).map(lambda x: round(x, 2))
    ats = sorted(data.draw(st.sets(st.integers(1, 50), max_size=4)))
    points = [[0.0, data.draw(some) + 0.01], *([float(at), data.draw(some)] for at in ats)]
    points[-1][1] += 0.01
    said: dict[str, Any] = {"rate": data.draw(st.sampled_from([0.2, 3.0, 700.0])), "points": points}
    said["between"] = data.draw(st.sampled_from(["steps", "ramps"]))
    if data.draw(st.booleans()):
        said["wave"] = {
            "period": data.draw(st.sampled_from([0.7, 13.0, 900.0])),
            "amplitude": data.draw(st.sampled_from([0.1, 1.0])),
        }
    if data.draw(st.booleans()):
        said["every"] = 51.0 + data.draw(st.integers(0, 9))
    found, wanted = Load(schedule(**said)), data.draw(st.floats(0.01, 2000.0))
    at = found.when(wanted)
    assert found.expected(0.0, at) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_by_window_are_those_of_a_poisson_process(kind: str) -> None:
    """Over 60 seeds, in ten windows: each sum is Poisson; chi-square over the windows stays below its 99.99 %."""
    spec, windows, seeds = schedule(**KINDS[kind], until=100.0), 10, range(60)
    found, counts = Load(spec), Counter[int]()
    squares = []
    for seed in seeds:
        times = [*arrival_times(spec, seed=seed, published=False)]
        counts.update(int(at // 10.0) for at in times)
        squares.append(len(times))
    chi = 0.0
    for window in range(windows):
        mean = len(seeds) * found.expected(10.0 * window, 10.0 * window + 10.0)
        if mean == 0.0:
            assert counts[window] == 0
        else:
            chi += (counts[window] - mean) ** 2 / mean
    assert chi < 35.6  # 10 degrees of freedom
    mean = found.expected(0.0, 100.0)
    assert sum((n - mean) ** 2 for n in squares) / mean < 103.0  # likewise 60: the sums scatter as Poisson's do
    assert sum((n - mean) ** 2 for n in squares) / mean > 29.0


@pytest.mark.parametrize(("cv", "process"), [(1.0, "gamma"), (2.5, "gamma"), (0.0, "constant")])
def test_where_nothing_changes_it_is_the_process_that_is_known(cv: float, process: str) -> None:
    plain = {"process": process, "rate": 3.0} | ({"cv": cv} if cv else {})
    old = sent({"requests": 500, "arrivals": plain})
    new = sent({"requests": 500, "arrivals": {"process": "schedule", "rate": 3.0, "cv": cv}})
    assert [r.arrival for r in new] == pytest.approx([r.arrival for r in old], rel=1e-12)


def test_a_rate_twice_as_high_sends_the_same_requests_sooner() -> None:
    """One gap is drawn for each: runs that differ in their rate have common random numbers."""
    slow, fast = (
        [*islice(arrival_times(schedule(**{**STEPS, "rate": rate}), seed=3, published=False), 200)]
        for rate in (5, 10)
    )
    one, other = Load(schedule(**STEPS)), Load(schedule(**{**STEPS, "rate": 10.0}))
    assert [one.expected(0, a) for a in slow] == pytest.approx([other.expected(0, a) for a in fast])


IMAGES = "dit-s2-256-rtx4090"


def images(workload: dict[str, Any], **more: Any) -> Experiment:
    system = {"client_delay": 0.0, "client_stretch": 0.0}
    return load({"extends": IMAGES, "workload": {"draws": "seeded", **workload}, "system": system, **more})


def sent(workload: dict[str, Any]) -> list[Any]:
    return [*build(images(workload)).source]


def test_a_load_that_ends_says_how_many_requests_there_are() -> None:
    experiment = images({"requests": None, "arrivals": {"process": "schedule", "until": 60.0, **DAY}})
    made = [*build(experiment).source]
    assert count_of(experiment, None) == len(made) > 200
    assert made[-1].arrival < 60.0
    assert run(experiment).requests == len(made)
    assert load(experiment.as_dict()).digest() == experiment.digest()


def test_a_trace_is_followed_by_window_whatever_the_rate(tmp_path: Path) -> None:
    chance = random.Random(5)
    gaps = [chance.expovariate(8.0 if 100.0 < i < 500.0 else 1.0) for i in range(700)]
    times = [sum(gaps[:i]) for i in range(700)]
    (tmp_path / "t.csv").write_text("arrival_s,steps\n" + "".join(f"{t!r},10\n" for t in times))
    window, last = 25.0, times[-1]
    held = Counter(int(t // window) for t in times)
    said = {"process": "schedule", "window": window, "cv": 0.0}
    trace = {"file": str(tmp_path / "t.csv")}
    end = min(last * 700 / 699, window * (max(held) + 1))
    for rate, scale in ((None, 1.0), (700 / end * 3.0, 3.0)):
        made = sent({"requests": None, "trace": trace, "arrivals": {**said, "rate": rate}})
        drawn = Counter(int(r.arrival // window) for r in made)
        assert all(abs(drawn[w] - scale * held[w]) <= 1 for w in range(max(held) + 1))
        assert made[-1].arrival <= end < last + window + 1e-9


def of_trace(path: Path, times: list[float], **more: Any) -> Load:
    path.write_text("arrival_s,steps\n" + "".join(f"{t!r},10\n" for t in times))
    arrivals = {"process": "schedule", "cv": 0.0, **more}
    made = images(
        {"requests": None if "every" not in more else 9, "trace": {"file": str(path)}, "arrivals": arrivals}
    )
    assert isinstance(made.workload.arrivals, Schedule)
    return Load(made.workload.arrivals, read_trace(made))


def test_the_last_window_of_a_trace_ends_with_it(tmp_path: Path) -> None:
    """10/s for 65 s in windows of 60 s: 600 requests in the first, 50 in 5 s."""
    times = [i / 10 for i in range(650)]
    found = of_trace(tmp_path / "t.csv", times, window=60.0)
    assert found.until == pytest.approx(65.0)
    assert found.expected(0.0, 60.0) == pytest.approx(600.0)
    assert found.expected(60.0, 62.0) == pytest.approx(20.0)
    assert found.expected(60.0, math.inf) == pytest.approx(50.0)
    twice = of_trace(tmp_path / "t.csv", times, window=60.0, rate=20.0)
    assert (twice.expected(0.0, 60.0), twice.expected(60.0, 65.0)) == pytest.approx((1200.0, 100.0))
    long = of_trace(tmp_path / "t.csv", times, window=3600.0)
    assert (long.until, long.expected(60.0, 65.0)) == pytest.approx((65.0, 50.0))
    sparse = of_trace(tmp_path / "t.csv", [0.0, 1.0, 2.0, 7.0], window=8.0)  # a mean gap more would be in the next
    assert (sparse.until, sparse.expected(0.0, 9.0)) == pytest.approx((8.0, 4.0))


def test_a_trace_begins_anew_after_its_end_and_nobody_comes_between(tmp_path: Path) -> None:
    """1/s for 40 s, all windows alike; then 2/s for 20 s and 1/s for 20 s."""
    alike, other = [float(i) for i in range(40)], [i / 2 for i in range(40)] + [20.0 + i for i in range(20)]
    for short in (10.0, 25.0, 39.0):
        what = rf"it begins anew after {short:g} s, and the trace goes on until 40 s \(right would be: 40, or"
        with pytest.raises(BadInput, match=what):
            of_trace(tmp_path / "t.csv", alike, window=10.0, every=short)
    for window in (10.0, 15.0):
        found = of_trace(tmp_path / "t.csv", alike, window=window, every=100.0)
        spans = ((0.0, 40.0), (40.1, 100.0), (100.0, 140.0), (140.1, 200.0))
        assert [found.expected(*span) for span in spans] == pytest.approx([40.0, 0.0, 40.0, 0.0])
    again = of_trace(tmp_path / "t.csv", other, window=10.0, every=40.0, rate=3.0)  # twice the trace's mean, 1.5
    spans = ((0.0, 20.0), (20.0, 40.0), (40.0, 60.0), (60.0, 80.0))
    assert [again.expected(*span) for span in spans] == pytest.approx([80.0, 40.0, 80.0, 40.0], rel=0.03)


def by_class(**more: Any) -> dict[str, Any]:
    chat = {"tenant": "a", "priority": -1, "arrivals": {"process": "poisson", "rate": 2.0}}
    batch = {"steps": {"dit": {"draw": "constant", "steps": 9}}, "arrivals": {"process": "schedule", **STEPS}}
    return {"requests": 400, "arrivals": {"process": "by_class"}, "classes": {"chat": chat, "batch": batch}, **more}


def test_ramps_that_end_where_they_begin_anew_have_no_jump() -> None:
    """Up for 50 s and down for 50 s, again and again: as much comes in each half, and at each time as it should."""
    closed = {"points": [[0.0, 1.0], [50.0, 3.0], [100.0, 1.0]], "between": "ramps", "every": 100.0}
    made = sent(
        {"arrivals": {"process": "schedule", "rate": 2.0, "cv": 0.0, **closed, "until": 400.0}, "requests": None}
    )
    assert Counter(int(r.arrival // 50.0) for r in made) == pytest.approx(dict.fromkeys(range(8), 200), abs=1)
    own = Load(schedule(rate=2.0, cv=0.0, **closed))
    for at, rate in ((25.0, 4.0), (75.0, 4.0), (99.9, 2.004), (100.1, 2.004), (150.0, 6.0)):
        assert own.expected(at - 0.05, at + 0.05) == pytest.approx(0.1 * rate, rel=1e-2)
    with pytest.raises(BadInput, match="it begins anew after 100 s"):
        images({"arrivals": {"process": "schedule", "rate": 2.0, **closed, "between": "steps"}, "requests": 10})


def test_classes_come_each_at_times_of_their_own() -> None:
    made = sent(by_class())
    assert all(a.arrival <= b.arrival for a, b in pairwise(made))
    assert [r.id for r in made] == list(range(400))
    assert {(r.class_name, r.tenant, r.priority) for r in made} == {("chat", "a", -1), ("batch", "", 0)}
    assert {r.work["dit"] for r in made if r.class_name == "batch"} == {9}
    last = made[-1].arrival
    batch = sum(r.class_name == "batch" for r in made)
    expected = Load(schedule(**STEPS)).expected(0.0, last)
    assert abs(batch - expected) < 4 * math.sqrt(expected)
    assert abs(400 - batch - 2.0 * last) < 4 * math.sqrt(2.0 * last)
    assert not any(30.0 < r.arrival % 100.0 < 60.0 for r in made if r.class_name == "batch")


def test_a_class_comes_at_the_same_times_whoever_else_does() -> None:
    both, said = sent(by_class()), by_class()
    alone = sent({**said, "classes": {"chat": said["classes"]["chat"]}})
    together = [r.arrival for r in both if r.class_name == "chat"]
    assert together == [r.arrival for r in alone][: len(together)]
    twice = sent({**by_class(), "arrivals": {"process": "by_class", "scale": 2.0}})
    again = [r.arrival for r in twice if r.class_name == "chat"]
    assert again == pytest.approx([t / 2 for t in together][: len(again)])


def test_classes_that_end_and_language_models() -> None:
    lengths = {"prompt": {"draw": "constant", "tokens": 64}, "output": {"draw": "constant", "tokens": 8}}
    long = {"prompt": {"draw": "constant", "tokens": 900}, "output": {"draw": "constant", "tokens": 2}}
    chat = {"arrivals": {"process": "schedule", "cv": 0.0, "rate": 4.0, "until": 10.1}}
    docs = {"arrivals": {"process": "schedule", "cv": 0.0, "rate": 1.0, "until": 10.1}, "lengths": {"llm": long}}
    workload = {
        "requests": None,
        "draws": "seeded",
        "arrivals": {"process": "by_class"},
        "lengths": {"llm": lengths},
        "classes": {"chat": chat, "docs": docs},
    }
    experiment = load({"extends": "opt-13b-a6000", "workload": workload, "time": {"noise": False}})
    assert not depends_on_seed(
        experiment.model_copy(update={"time": experiment.time.model_copy(update={"noise": False})})
    )
    made = [*build(experiment).source]
    assert Counter(r.class_name for r in made) == {"chat": 40, "docs": 10}
    # Of those that are due at once that of the class which stands first in the file.
    assert [(r.arrival, r.class_name) for r in made[3:6]] == [(1.0, "chat"), (1.0, "docs"), (1.25, "chat")]
    assert {r.tokens["llm"][0] for r in made if r.class_name == "docs"} == {900}
    assert run(experiment).requests == 50


REFUSED = {
    "no rate": ({"rate": None}, "workload.arrivals.rate: key 'rate' is missing"),
    "points that do not begin at 0": ({"points": [[1.0, 1.0]]}, "workload.arrivals.points: they begin at 1 s"),
    "points that fall": ({"points": [[0.0, 1.0], [9.0, 2.0], [8.0, 1.0]]}, "8 s comes after 9 s"),
    "three of a point": ({"points": [[0.0, 1.0, 2.0]]}, "workload.arrivals.points"),
    "below nothing": ({"points": [[0.0, -1.0]]}, "workload.arrivals.points"),
    "no number": ({"points": [[0.0, math.nan]]}, "workload.arrivals.points"),
    "nobody ever": ({"points": [[0.0, 0.0]]}, "its rate is 0 all the time"),
    "nobody any more": ({"points": [[0.0, 1.0], [9.0, 0.0]]}, "from 9 s on its rate is 0, and it has no end"),
    "nobody in between": (
        {"spikes": [{"at": 0.0, "seconds": 10.0, "factor": 0.0}], "every": 10.0},
        "its rate is 0 all the time",
    ),
    "ramps of nothing": ({"between": "ramps"}, "there are no points to ramp between"),
    "spikes at once": (
        {"spikes": [{"at": 5.0, "seconds": 9.0, "factor": 2.0}, {"at": 6.0, "seconds": 1.0, "factor": 2.0}]},
        "the one at 6 s begins before that at 5 s is over",
    ),
    "a spike past the end": (
        {"spikes": [{"at": 5.0, "seconds": 9.0, "factor": 2.0}], "every": 10.0},
        "it begins anew after 10 s, and points or spikes go on to 14 s",
    ),
    "nothing to repeat": ({"every": 10.0}, "there are no points and no spikes to repeat"),
    "a wave below 0": ({"wave": {"period": 10.0, "amplitude": 1.5}}, "workload.arrivals.wave.amplitude"),
    "an unknown key": ({"speed": 2.0}, "speed"),
    "both ends": ({"until": 9.0}, "workload.requests: 500 requests are wanted, and all until 9 s"),
    "a pattern that nobody sees": (
        {"points": [[0.0, 1.0]], "every": 0.0001},
        "workload.arrivals.every: 0.0003 requests are expected in each 0.0001 s",
    ),
    "a pattern that a wave hides": (
        {
            "rate": 1e6,
            "points": [[0.0, 1.0], [1e-6, 0.0]],
            "every": 10.0,
            "wave": {"period": 10.0, "amplitude": 1.0, "phase": 0.75},
        },
        "requests are expected in each 10 s, after which it begins anew",
    ),
    "no trace": ({"window": 9.0, "every": 99.0}, "workload.arrivals.window: there is no trace to follow"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_load_is_refused(case: str) -> None:
    changes, said = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        build(images({"requests": 500, "arrivals": {"process": "schedule", "rate": 3.0, **changes}}))
    assert said in str(caught.value)


def test_more_requests_than_anybody_counts_are_refused_before_they_are_counted(tmp_path: Path) -> None:
    for more in ({}, {"points": [[0.0, 1.0]], "every": 10.0}):
        arrivals = {"process": "schedule", "rate": 1e6, "until": 1e7, **more}
        with pytest.raises(BadInput, match=r"workload\.arrivals\.until: some 1e\+13 requests would come"):
            build(images({"requests": None, "arrivals": arrivals}))
    (tmp_path / "t.csv").write_text("arrival_s,steps\n" + "".join(f"{i},10\n" for i in range(30)))
    arrivals = {"process": "schedule", "window": 1e-6}
    with pytest.raises(BadInput, match=r"workload\.arrivals\.window: 1e-06 s makes 29\d* windows of 29 s"):
        build(images({"requests": None, "trace": {"file": str(tmp_path / "t.csv")}, "arrivals": arrivals}))


CLOSED = {"process": "closed", "clients": 2}
CLASSES = {
    "without arrivals": ({"classes": {"chat": {"tenant": "a"}}}, "classes.chat.arrivals: it does not say when"),
    "with shares": (
        {"classes": {"chat": {"share": 1.0, "arrivals": {"process": "poisson", "rate": 2.0}}}},
        "classes.chat.share: how many there are follows from its arrivals",
    ),
    "none": ({"classes": {}}, "workload.arrivals.process: there are no classes"),
    "a rate for all": ({"arrivals": {"process": "by_class", "rate": 2.0}}, "each class has its own"),
    "a closed class": (
        {"classes": {"chat": {"arrivals": {"process": "closed", "clients": 2}}}},
        "classes.chat.arrivals",
    ),
    "a class of another process": (
        {"arrivals": {"process": "poisson", "rate": 2.0}},
        "classes.chat.arrivals: the requests of all classes come by workload.arrivals",
    ),
    "sessions": ({"sessions": {"turns": {"draw": "constant", "turns": 2}}}, "sessions begin by one process"),
    "one that never comes": (
        {"classes": {"chat": {"arrivals": {"process": "schedule", "rate": 1.0, "points": [[0.0, 0.0]]}}}},
        "workload.classes.chat.arrivals: its rate is 0 all the time",
    ),
}


@pytest.mark.parametrize("case", CLASSES)
def test_what_makes_no_classes_is_refused(case: str) -> None:
    changes, said = CLASSES[case]
    with pytest.raises(BadInput) as caught:
        build(images({**by_class(), **changes}))
    assert said in str(caught.value)


def test_it_is_drawn_from_the_seed_unless_nothing_is_left_to_chance() -> None:
    arrivals = {"process": "schedule", **STEPS}
    steps = {"dit": {"draw": "constant", "steps": 9}}
    even = images({"arrivals": {**arrivals, "cv": 0.0}, "steps": steps}, time={"noise": False})
    assert not depends_on_seed(even)
    assert depends_on_seed(images({"arrivals": arrivals, "steps": steps}, time={"noise": False}))
