"""What a capacity stands on: runs that are long enough, a backlog that does not grow, seeds that are no copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.capacity import search as capacity
from servetwin.experiments.capacity import targets
from servetwin.experiments.capacity.observed_run import Watched
from servetwin.experiments.capacity.root_search import QUANTITIES, search
from servetwin.experiments.capacity.search import Asked, answers
from servetwin.experiments.capacity.stability import SEGMENTS, settling, verdict
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload.seed_effect import depends_on_seed
from small_trace import EXPERIMENT, PROFILE, plain
from test_capacity import MD1, MD1_PROFILE, falling, md1_capacity, noisy

GAMMA = {"process": "gamma", "rate": 2.0, "cv": 1.0}
RATE, SLO = QUANTITIES["rate"], QUANTITIES["slo"]


@pytest.fixture
def md1(tmp_path: Path) -> Path:
    (tmp_path / "profile.yaml").write_text(MD1_PROFILE)
    (tmp_path / "md1.yaml").write_text(MD1)
    return tmp_path / "md1.yaml"


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    (tmp_path / "profile.yaml").write_text(PROFILE)
    (tmp_path / "llm.yaml").write_text(EXPERIMENT)
    plain(tmp_path / "t.csv", poisson(0, 240))
    return tmp_path / "llm.yaml"


def poisson(seed: int, count: int) -> list[float]:
    return np.random.default_rng(seed).exponential(1.0, count).cumsum().round(6).tolist()


# -- the first stretch that holds -------------------------------------------------------------------------


def dented(low: float, high: float) -> Callable[[float], float]:
    return lambda x: 0.7 if low < x < high else falling(x / 5)


@pytest.mark.parametrize("start", [0.05, 1.0, 2.0, 6.0, 8.0, 19.0, 300.0])
@pytest.mark.parametrize(("low", "high"), [(3.1, 5.0), (1.1, 1.6), (0.6, 17.0), (30.0, 40.0)])
def test_the_end_of_the_first_stretch_from_any_start(start: float, low: float, high: float):
    """Case 09: the answer is a matter of the curve, not of where one happened to begin."""
    (found,) = search(noisy(dented(low, high), spread=0.001), RATE, [0.9], start=start)
    truth = min(low, 20.0)
    assert found.value == pytest.approx(truth, rel=0.012)
    (other,) = search(noisy(dented(low, high), spread=0.001), RATE, [0.9], start=1.0)
    assert found.value == other.value
    if high == 5.0 and start > high:
        assert "not monotone" in found.notes[0]


def test_the_first_stretch_of_what_gets_easier_with_more():
    def share(x: float) -> float:
        return 0.7 if 8.0 < x < 14.0 else falling(10 - x)

    values = {search(noisy(share, spread=0.001), SLO, [0.9], start=s)[0].value for s in (1.0, 6.0, 10.0, 40.0)}
    assert len(values) == 1
    assert values.pop() == pytest.approx(14.0, rel=0.012)


NM = """
from servetwin.core import Decision, Policy
class NM(Policy):
    def __init__(self):
        self.last, self.bad = None, False
    def admit(self, task, view, now):
        if self.last is not None:
            self.bad = 0.20 < task.arrival - self.last < 0.32
        self.last = task.arrival
        return not self.bad
    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: view.limit])
"""


def test_a_policy_that_fails_at_some_rates_only(toy: Path, servetwin):
    (toy.parent / "nm.py").write_text(NM)
    toy.with_name("nm.yaml").write_text(
        "extends: toy.yaml\nworkload: {requests: 300, arrivals: {process: constant, rate: 1.0}, "
        "steps: {denoise: {draw: constant, steps: 5}}}\nslo: {seconds: 3.0}\npolicy: {name: nm.py}\n"
    )
    for rate in (1, 2, 6, 8):
        options = ("--seeds", 2, "--requests", 300, "--jobs", 1, "--set", f"rate={rate}.0")
        code, out, _ = servetwin("search", toy.with_name("nm.yaml"), *options)
        assert code == 0
        assert "3.118" in out or "3.125" in out
        assert "nothing is drawn: there is one run at each place" in out


# -- stable or not --------------------------------------------------------------------------------------


def runs(growth: float, seeds: int = 6, noise: float = 3.0, requests: int = 10_000) -> list[list[float]]:
    """Backlogs that grow by a share of what arrives, with a steady scatter."""
    per_segment = requests / SEGMENTS
    made = []
    for seed in range(seeds):
        scatter = np.random.default_rng(seed).normal(0.0, noise, SEGMENTS)
        made.append((10.0 + growth * per_segment * np.arange(1, SEGMENTS + 1) + scatter).tolist())
    return made


@pytest.mark.parametrize(
    ("growth", "word"), [(0.0, "flat"), (0.002, "flat"), (0.03, "growing"), (0.1, "overloaded"), (-0.02, "flat")]
)
@pytest.mark.parametrize("seeds", [1, 2, 6])
def test_the_backlog_is_judged(growth: float, word: str, seeds: int):
    found = verdict(runs(growth, seeds), [[1.0] * SEGMENTS] * seeds, 10_000)
    assert found.backlog == word
    assert found.growth.mean == pytest.approx(growth, abs=0.003)


def test_runs_that_disagree_say_nothing():
    assert verdict([runs(0.0)[0], runs(0.3)[1]], [[1.0] * SEGMENTS] * 2, 10_000).backlog == "unclear"


def test_how_long_it_takes_to_settle():
    rng = np.random.default_rng(0)
    late = [1.0 - math.exp(-k / 5) + rng.normal(0, 0.01) for k in range(SEGMENTS)]
    assert settling([late]) == pytest.approx(0.2, abs=0.12)
    assert settling([[1.0 + rng.normal(0, 0.01) for _ in range(SEGMENTS)]]) < 0.3
    assert settling([[float(k) for k in range(SEGMENTS)]]) is None


@pytest.mark.parametrize(
    ("rate", "word"), [(5.0, "flat"), (9.0, "flat"), (10.5, "growing"), (12.0, "overloaded"), (30.0, "overloaded")]
)
def test_the_backlog_of_md1(md1: Path, rate: float, word: str):
    """It takes 10 requests/s; of what comes above that, a share of 1 - 10 / rate piles up."""
    rows = [Watched((), 0.2)(load(md1, [("rate", rate), ("requests", 6000), ("seed", s)])) for s in range(8)]
    found = verdict([r["backlog"] for r in rows], [r["latency"] for r in rows], 6000)
    assert found.backlog == word
    assert found.growth.mean == pytest.approx(max(0.0, 1 - 10 / rate), abs=0.012)


# -- runs twice as long ---------------------------------------------------------------------------------


def test_short_runs_are_lengthened_until_longer_ones_agree(md1: Path):
    """Case 19: with 4 s to wait, 30 requests end in time at any rate; no queue holds more than 10 requests/s."""
    patient = [("slo", {"seconds": 4.0})]
    found = [
        answers([md1], None, Asked("rate", [0.9], 3, requests=n, longest=4800), patient, jobs=1)[0] for n in (40, 300)
    ]
    for answer in found:
        assert answer.requests >= 300
        assert answer.twice is True
        assert 9.5 < answer.found.value < 10.6
    (short,) = answers([md1], None, Asked("rate", [0.9], 3, requests=80, longest=80), patient, jobs=1)
    assert short.requests == 80
    assert short.found.value > 11.0
    assert short.found.low is None
    with pytest.raises(BadInput, match="is met everywhere"):
        answers([md1], None, Asked("rate", [0.9], 3, requests=30, longest=30), patient, jobs=1)
    assert any("changes with the length of the runs" in note for note in short.found.notes)
    assert short.stable.backlog == "overloaded"
    assert any("not stable there" in note for note in short.found.notes)


def test_what_an_answer_stands_on_is_printed_and_written(md1: Path, servetwin):
    out = md1.parent / "a.csv"
    code, text, _ = servetwin("search", md1, "--seeds", 3, "--requests", 1000, "--jobs", 1, "--out", out)
    assert code == 0
    assert "runs of 1000 requests, the first 200 not counted" in text
    assert "longer runs agree" in text
    head, line = out.read_text().splitlines()
    row = dict(zip(head.split(","), line.split(","), strict=True))
    assert (row["backlog"], row["requests"], row["warm_up"]) == ("flat", "1000", "200")
    assert row["twice_as_long_agrees"] == "True"


FEW = ("--requests", 200, "--longest", 200, "--jobs", 1, "--no-cache")


def test_what_was_cut_is_said_of_an_answer(llm: Path, servetwin):
    cut = ("--set", "workload.lengths.llm.limit=15", "--set", "workload.lengths.llm.truncate=true")
    code, text, err = servetwin("search", llm, *FEW, "--seeds", 1, "--set", "rate=20.0", *cut)
    assert (code, err) == (0, "")
    assert "cut at the answer: 0 prompts, 200 outputs" in text


def test_what_was_cut_off_or_held_is_said_of_an_answer(toy: Path, servetwin):
    for option in ("system.stop_after=0.0", "system.stop_after=null"):
        code, text, _ = servetwin("search", toy, *FEW, "--seeds", 2, "--set", option)
        assert code == 0
        assert ("runs are cut off 0 s after the last request was sent" in text) is (option[-3:] == "0.0")
    hold = ("--set", "time.hold=true", "--set", "deployment.workers.1.limit=40", "--set", "slo=20.0")
    options = ("--policy", "fcfs", *FEW, "--seeds", 2, "--target", 5, *hold)
    code, text, _ = servetwin("search", "sd15-512-rtx4090", *options)
    assert code == 0
    assert "beyond what was measured: " in text


# -- copies ---------------------------------------------------------------------------------------------


def test_copies_of_a_trace_are_no_seeds(llm: Path, servetwin):
    """Case 08."""
    code, _, err = servetwin("search", llm, "--seeds", 20, "--set", "rate=20.0")
    assert (code, err.count("\n")) == (2, 1)
    assert "20 seeds would replay the same requests 20 times" in err
    assert "workload.arrivals.windows: 20" in err
    sweep = llm.with_name("sweep.yaml")
    sweep.write_text("extends: llm.yaml\ngrid: {workload.arrivals.rate: [2.0]}\n")
    for options in (("--seeds", 2), ("--until", "0.5pp")):
        code, _, err = servetwin("sweep", sweep, "--out", llm.parent / "t.csv.out.csv", "--jobs", 1, *options)
        assert (code, err.count("\n")) == (2, 1)
        assert "would replay the same requests" in err
    sweep.write_text("extends: llm.yaml\nset: {workload.arrivals.rate: 2.0}\ngrid: {seed: [1, 2, 3]}\n")
    code, _, err = servetwin("sweep", sweep, "--out", llm.parent / "out.csv", "--jobs", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "3 seeds would replay" in err


def test_windows_are_seeds(llm: Path, servetwin):
    sweep = llm.with_name("sweep.yaml")
    sweep.write_text(
        "extends: llm.yaml\nset: {workload.arrivals.windows: 4}\ngrid: {workload.arrivals.rate: [30.0]}\n"
    )
    out = llm.parent / "out.csv"
    assert servetwin("sweep", sweep, "--out", out, "--seeds", 4, "--jobs", 1)[0] == 0
    head, line = out.read_text().splitlines()
    row = dict(zip(head.split(","), line.split(","), strict=True))
    assert float(row["attainment_low"]) < float(row["attainment_high"])
    code, _, err = servetwin("sweep", sweep, "--out", out, "--seeds", 5, "--jobs", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "5 seeds, but the trace is cut into 4 windows" in err


def trace_search(llm: Path, name: str, *, seeds: int = 1, longest: int = 120, **more):
    arrivals = {"process": "trace", "file": str(llm.parent / name), "rate": 20.0, **more}
    asked = Asked("rate", [0.9], seeds, longest=longest)
    (found,) = answers([llm], None, asked, [("workload.arrivals", arrivals)], jobs=1)
    return found


def test_a_capacity_does_not_depend_on_when_the_trace_was_taken(llm: Path):
    times = poisson(1, 240)
    values = []
    for shift in (0.0, 3600.0, 604800.0):
        plain(llm.parent / "z.csv", [round(t + shift, 6) for t in times])
        values.append(trace_search(llm, "z.csv").found.value)
    assert len(set(values)) == 1


def test_the_requests_of_a_search_are_those_asked_for_also_of_a_trace(llm: Path):
    overrides = [("rate", 20.0)]
    (found,) = answers([llm], None, Asked("rate", [0.9], 1, requests=120, longest=120), overrides, jobs=1)
    assert found.requests == 120
    with pytest.raises(BadInput, match="500 requests are wanted, but the trace holds 240"):
        answers([llm], None, Asked("rate", [0.9], 1, requests=500), overrides, jobs=1)


def test_a_single_run_has_no_interval_and_windows_have_one(llm: Path):
    whole = trace_search(llm, "t.csv")
    assert (whole.found.low, whole.warm_up) == (None, 0)
    why = "not checked by runs twice as long, so there is no interval: the trace holds too few requests"
    assert f"{why} (right would be: --requests 120, or fewer)" in whole.found.notes
    plain(llm.parent / "long.csv", poisson(5, 2000))
    windows = trace_search(llm, "long.csv", seeds=4, windows=50, longest=240)
    assert (windows.seeds, windows.requests) == (4, 80)
    whole = trace_search(llm, "long.csv")
    assert windows.found.low is None or windows.found.low <= whole.found.value <= windows.found.high


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ([], True),
        ([("workload.arrivals", {"process": "constant", "rate": 2.0})], False),
        ([("workload.arrivals", {"process": "bursty", "rate": 2.0})], True),
        (
            [("workload.arrivals", {"process": "gamma", "rate": 2.0, "cv": 1.0}), ("workload.draws", "published")],
            False,
        ),
    ],
)
def test_whether_a_seed_matters(md1: Path, change, expected: bool):
    assert depends_on_seed(load(md1, change)) is expected


def test_whether_drawn_steps_matter(toy: Path):
    constant = ("workload.arrivals", {"process": "constant", "rate": 2.0})
    for steps, expected in (
        ({"draw": "uniform", "low": 5, "high": 6}, True),
        ({"draw": "uniform", "low": 5, "high": 5}, False),
        ({"draw": "choice", "values": [5, 6], "weights": [1.0, 0.0]}, False),
        ({"draw": "choice", "values": [5, 6]}, True),
    ):
        experiment = load(toy, [constant, ("workload.steps", {"denoise": steps})])
        assert depends_on_seed(experiment) is expected, steps
    noisy_ = load("sd15-512-rtx4090")
    assert depends_on_seed(noisy_)
    assert not depends_on_seed(load("sd15-512-rtx4090", [("time.noise", False)]))


@pytest.mark.parametrize(
    ("router", "replicas", "expected"),
    [("power_of_two", 2, True), ("random", 3, True), ("random", 1, False), ("jsq", 2, False)],
)
def test_whether_a_router_draws_matters_where_it_has_a_choice(toy: Path, router, replicas, expected):
    constant = ("workload.arrivals", {"process": "constant", "rate": 2.0})
    steps = ("workload.steps", {"denoise": {"draw": "uniform", "low": 5, "high": 5}})
    change = [constant, steps, ("deployment.router", router), ("deployment.replicas", replicas)]
    assert depends_on_seed(load(toy, change)) is expected


# -- limits on latencies --------------------------------------------------------------------------------


def pollaczek(mean: float, service: float) -> float:
    """The rate at which the mean time in the M/D/1 queue is *mean* (Pollaczek and Khinchine)."""
    wait = 2 * (mean - service) / service
    return wait / (1 + wait) / service


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("p50_e2el_ms <= 300", md1_capacity(0.5, 0.3, 0.1)),
        ("mean_e2el_ms<=200", pollaczek(0.2, 0.1)),
        ("p99_e2el_ms<=500,mean_e2el_ms<=900", md1_capacity(0.99, 0.5, 0.1)),
    ],
)
def test_limits_on_latencies_against_queueing_theory(md1: Path, text: str, truth: float):
    asked = Asked("rate", [targets.parse(text)], 4, requests=1200, longest=4800)
    (found,) = answers([md1], None, asked, [("slo", {"seconds": 0.1})], jobs=1)
    assert found.found.value == pytest.approx(truth, rel=0.08)
    assert truth in found.found


def test_limits_on_tokens(llm: Path, servetwin):
    drawn = "{process: poisson, rate: 5.0}"
    lengths = "{prompt: {draw: constant, tokens: 100}, output: {draw: constant, tokens: 20}}"
    options = ("--set", f"workload.arrivals={drawn}", "--set", f"workload.lengths.llm={lengths}", "--seeds", 3)
    limits = ("--target-metric", "p99_ttft_ms<=200", "--target-metric", "mean_ttft_ms<=100,p90_tpot_ms<=60")
    code, out, _ = servetwin(
        "search",
        llm,
        *options,
        "--set",
        "workload.requests=300",
        "--requests",
        300,
        "--longest",
        600,
        "--jobs",
        1,
        *limits,
    )
    assert code == 0
    assert "p99_ttft_ms<=200" in out
    assert "mean_ttft_ms<=100,p90_tpot_ms<=60" in out


@pytest.mark.parametrize(
    "text",
    ["p99_ttft<=5", "p0_ttft_ms<=5", "p99_xx_ms<=5", "p99_ttft_ms>=5", "p99_ttft_ms<=-1", "p99_ttft_ms<=nan", ""],
)
def test_what_is_no_limit(text: str):
    with pytest.raises(BadInput, match="--target-metric") as error:
        targets.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [0.9, 0, 100, 120])
def test_a_target_is_in_percent(toy: Path, servetwin, given: float):
    code, _, err = servetwin("search", toy, "--target", given)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{given:g} is no attainment in percent" in err


def test_limits_on_tokens_of_what_has_none(toy: Path, servetwin):
    code, _, err = servetwin("search", toy, "--target-metric", "p99_ttft_ms<=200", "--jobs", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "ttft is known of pipelines that are one language model (right would be: e2el)" in err


def test_a_request_that_never_ends_is_within_no_limit(toy: Path):
    """A policy that drops what it cannot serve has short latencies, and holds nothing by that."""
    asked = Asked("rate", [targets.parse("mean_e2el_ms<=900")], 2, requests=200)
    with pytest.raises(BadInput, match="mean_e2el_ms<=900 is met nowhere"):
        answers([toy], ["clockwork"], asked, [("slo", {"factor": 0.9})], jobs=1)
    rows = Watched(tuple(asked.targets[0].criteria), 0.0)(
        load(toy, [("policy", "clockwork"), ("slo", {"factor": 1.2}), ("rate", 40.0)])
    )
    assert rows["mean_e2el_ms<=900"][0] is None


def samples(rows: Sequence[tuple[int, int]]):
    return [{"attainment": row} for row in rows]


@pytest.mark.parametrize("text", ["p99_e2el_ms<=100", "mean_e2el_ms<=100"])
def test_a_target_exactly_on_the_limit(md1: Path, text: str):
    # one request at a time, 100 ms each: up to 10/s nobody waits, whatever the last bit of an arrival
    alone = [("workload.arrivals", {"process": "constant", "rate": 5.0})]
    asked = capacity.Asked("rate", [targets.parse(text)], seeds=1, requests=500, longest=2000)
    (answer,) = capacity.answers([md1], None, asked, alone, jobs=1)
    assert answer.found.value == pytest.approx(10.0, rel=0.006)


def test_a_target_of_several_limits_is_the_worst_of_them():
    target = targets.Target("both", (targets.Criterion("attainment", 0.9), targets.Criterion("attainment", 0.5)))
    found = target.interval(samples([(95, 100), (93, 100)]), 0.95)
    assert found.mean == pytest.approx(0.04)
    assert capacity.LEVEL == 0.95


@pytest.mark.slow
def test_answers_from_short_and_long_runs_agree_where_stalls_are_rare():
    """Case 19: runs of 500 requests gave 93.4 requests/s, of 2000 91.1, of 10000 83.3."""
    settings = [("slo", {"limits": {"ttft_ms": 500, "tpot_ms": 50}}), ("rate", 60.0)]
    found = []
    for length in (500, 2000):
        asked = Asked("rate", [0.99], 3, requests=length)
        (answer,) = answers(["opt-13b-h100-async"], ["vllm-v1"], asked, settings)
        assert (answer.twice, answer.stable.backlog) == (True, "flat")
        found.append(answer.found)
    assert found[0].value in found[1]
    assert found[1].value in found[0]
    assert 83.3 in found[0]
