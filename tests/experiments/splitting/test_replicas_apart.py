"""Replicas that are simulated one by one, or in other processes, give what the fleet gives as one run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servetwin.core import Summary
from servetwin.core.errors import PolicyFault
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.splitting import dealing
from servetwin.experiments.splitting.apart import why_whole
from servetwin.experiments.sweeps import one_run
from servetwin.experiments.sweeps.point import results_of

#: By requests in the order of their numbers: who says nothing of classes goes to the first.
BY_CLASS = """
from servetwin.core.routing import Router


class ByClass(Router):
    static = {static}

    def route(self, request, workers, now):
        return workers["ab".find(request.class_name) % len(workers)] if {asks} else workers[0]
"""

NOT_NUMBERS = "replicas do not go as numbers to the end (under vllm, vllm-v1 and sarathi they do, while memory lasts)"
PRICES = {"gpu0": {"per_hour": 2.0, "source": "an example", "power": {"busy": 300, "idle": 20}}}
CLASSES = {
    "a": {"share": 1, "tenant": "t", "weight": 0.3, "slo": {"limits": {"e2el_ms": 900}}},
    "b": {"share": 2, "tenant": "u", "weight": 0.7},
}

lengths = st.fixed_dictionaries({
    "prompt": st.sampled_from([
        {"draw": "listed", "name": "neustream-llm-prompts"},
        {"draw": "lognormal", "median": 200, "p90": 800, "high": 2500},
        {"draw": "constant", "tokens": 512},
    ]),
    "output": st.sampled_from([
        {"draw": "constant", "tokens": 30},
        {"draw": "constant", "tokens": 1},
        {"draw": "uniform", "low": 1, "high": 80},
    ]),
})  # fmt: skip
arrivals = st.sampled_from([
    {"process": "poisson", "rate": 60.0},
    {"process": "poisson", "rate": 400.0},
    {"process": "constant", "rate": 50.0},  # several at one instant, and steps that end when requests come
    {"process": "gamma", "rate": 100.0, "cv": 4.0},
])  # fmt: skip
slos = st.sampled_from([
    {"prefill": 3.0, "decode": 1.5},
    {"prefill": 3.0, "decode": 1.5, "limits": {"ttft_ms": 500, "itl_ms": 200}},
    {"prefill": None, "decode": None, "limits": {"ttft_ms": 300, "tpot_ms": 60}},
])  # fmt: skip


def fleet(policy: str = "vllm-v1", replicas: int = 3, router: object = "round_robin", requests: int = 80, **more):
    tree = load(more.pop("base", "opt-13b-h100")).as_dict()
    tree["policy"] = {"name": policy}
    tree["workload"] |= {"requests": requests, "draws": "seeded"}
    tree["workload"]["lengths"]["llm"] = {"truncate": True, **more.pop("lengths", tree["workload"]["lengths"]["llm"])}
    tree["workload"] |= {key: more.pop(key) for key in ("arrivals", "classes") if key in more}
    tree["deployment"] |= {"replicas": replicas, "router": router}
    if more.pop("priced", False):
        tree["deployment"]["prices"] = PRICES
    engine = more.pop("engine", {})
    tree["deployment"]["workers"][0]["engine"] |= engine
    tree["time"] |= {"hold": True, "noise": more.pop("noise", True)}
    tree.update(more)
    return load(tree)


def same(chosen) -> dict:
    """A replica after the other, and all as one run."""
    apart = build(chosen)
    assert why_whole(apart) is None
    found = apart.play()
    assert apart.loop.batches == 0  # nothing was sent to the loop of all
    expected = build(chosen).play(columns=False)
    assert found.as_dict() == expected.as_dict()
    assert results_of(chosen, found) == results_of(chosen, expected)
    return found.as_dict()


@given(
    st.sampled_from(["vllm", "vllm-v1", "vllm-v1", "sarathi", "neustream-llm", "edf-llm"]), st.integers(2, 5),
    st.sampled_from(["round_robin", "random"]), lengths, arrivals, slos, st.booleans(), st.booleans(),
    st.sampled_from([{}, {}, {"enable_prefix_caching": True}, {"blocks": 250}, {"stamp": "seen", "headroom": 1}]),
    st.integers(0, 99), st.booleans(), st.sampled_from(["opt-13b-h100", "opt-13b-h100", "opt-13b-h100-async"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_fleet_reports_the_same(
    policy, replicas, router, lengths, arrivals, slo, noise, priced, engine, seed, classes, base
) -> None:
    if policy in ("edf-llm", "neustream-llm") and slo["prefill"] is None:
        slo = {"prefill": 3.0, "decode": 1.5}
    more = {"classes": CLASSES} if classes else {}
    same(fleet(
        policy, replicas, router, lengths=lengths, arrivals=arrivals, slo=slo, noise=noise, priced=priced,
        engine=engine, seed=seed, base=base, **more,
    ))  # fmt: skip


@pytest.fixture(scope="module")
def served():
    """How many runs went as numbers, of those that would as far as anybody knows before, and how many began anew."""
    counted: Counter[bool] = Counter()
    yield counted
    assert counted[True] > 3 * counted[False] > 0


@given(
    st.sampled_from(["vllm", "vllm-v1", "vllm-v1", "sarathi"]), st.integers(2, 5),
    st.sampled_from(["jsq", "least_loaded", {"name": "power_of_two", "params": {"choices": 2}}]),
    lengths, arrivals, slos, st.booleans(), st.sampled_from([{}, {}, {}, {"blocks": 250}, {"stamp": "seen"}]),
    st.integers(0, 99), st.booleans(),
)  # fmt: skip
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_behind_routers_that_look_reports_are_the_same(
    served, policy, replicas, router, lengths, arrivals, slo, noise, engine, seed, classes
) -> None:
    more = {"classes": CLASSES} if classes else {}
    more |= {"arrivals": arrivals, "slo": slo, "noise": noise, "engine": engine, "seed": seed}
    chosen = fleet(policy, replicas, router, lengths=lengths, **more)
    run, plain = build(chosen), build(chosen)
    found, expected = run.play(), plain.play(columns=False)
    served[run.loop.batches == 0] += 1
    assert found.as_dict() == expected.as_dict()
    assert results_of(chosen, found) == results_of(chosen, expected)


@given(
    st.sampled_from(["vllm", "vllm-v1", "vllm-v1", "sarathi"]), st.integers(2, 5),
    st.sampled_from(["jsq", "least_loaded", "power_of_two"]), st.sampled_from([0.01, 0.1, 0.2, 1.0, 1e6]),
    lengths, arrivals, slos, st.booleans(), st.sampled_from([{}, {}, {}, {"blocks": 250}, {"stamp": "seen"}]),
    st.integers(0, 99), st.booleans(),
)  # fmt: skip
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_behind_routers_that_look_now_and_then_reports_are_the_same(
    served, policy, replicas, router, stale, lengths, arrivals, slo, noise, engine, seed, classes
) -> None:
    more = {"classes": CLASSES} if classes else {}
    more |= {"arrivals": arrivals, "slo": slo, "noise": noise, "engine": engine, "seed": seed}
    chosen = fleet(policy, replicas, {"name": router, "stale": stale}, lengths=lengths, **more)
    run, plain = build(chosen), build(chosen)
    found, expected = run.play(), plain.play(columns=False)
    served[run.loop.batches == 0] += 1
    assert found.as_dict() == expected.as_dict()
    assert results_of(chosen, found) == results_of(chosen, expected)


@pytest.mark.parametrize(("more", "numbers"), [
    ({}, True),
    ({"router": {"name": "jsq", "stale": 0.1}}, True),
    ({"router": {"name": "least_violating", "stale": 0.1}}, False),
    ({"router": "least_violating"}, False),
    ({"router": "central"}, False),
    ({"policy": "edf-llm"}, False),
    ({"base": "opt-13b-h100-async"}, False),
    ({"priced": True}, False),
])  # fmt: skip
def test_what_goes_as_numbers_behind_routers_that_look(more: dict, numbers: bool) -> None:
    chosen = fleet(**{"router": "jsq", "requests": 30} | more)
    run = build(chosen)
    assert run.play().as_dict() == build(chosen).play(columns=False).as_dict()
    assert (run.loop.batches == 0) is numbers


def test_requests_of_somebody_else_are_those_that_are_sent() -> None:
    run = build(fleet(router="jsq"))
    run.send(build(fleet(router="jsq", seed=5, requests=20)).source)
    assert run.play().requests == 20


def test_long_workloads_go_by_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = same(fleet(requests=400, replicas=4, classes=CLASSES))
    rolled = []
    real = dealing.SpooledTemporaryFile

    class Noting(real):
        def rollover(self) -> None:
            rolled.append(self)
            super().rollover()

    monkeypatch.setattr(dealing, "SpooledTemporaryFile", Noting)
    monkeypatch.setattr(dealing, "MEMORY", 2000)
    monkeypatch.setattr(dealing, "BLOCK", 7)
    monkeypatch.setattr(dealing, "READ", 11)
    assert same(fleet(requests=400, replicas=4, classes=CLASSES)) == expected
    assert rolled


@pytest.mark.parametrize("policy", ["vllm-v1", "edf-llm"])  # by numbers, and request by request
def test_latencies_of_many_requests_go_by_a_file(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit what all of them in memory tell, of classes and tenants as well, on several cores too."""
    chosen = fleet(policy, requests=400, replicas=4, classes=CLASSES, slo={"prefill": 3.0, "decode": 1.5})
    expected = same(chosen)
    put_away = []
    real = Summary.put_away
    monkeypatch.setattr(Summary, "put_away", lambda summary: (put_away.append(summary), real(summary)))
    monkeypatch.setattr(Summary, "most", 60)
    assert same(chosen) == expected
    assert len(put_away) > 8
    assert one_run.run(chosen, 2).as_dict() == expected


def test_many_tokens_are_counted_in_bins_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replica alone has too few gaps between tokens to count them in bins, all together have more."""
    monkeypatch.setattr("servetwin.core.llm.token_gaps.Gaps.__init__.__defaults__", (2000,))
    same(fleet(requests=150, replicas=3))
    same(fleet(requests=150, replicas=40))


@pytest.mark.parametrize("jobs", [2, 3, 7])
def test_other_processes_give_the_same(jobs: int) -> None:
    chosen = fleet(replicas=5, requests=300, router="random", classes=CLASSES, priced=True, seed=4)
    assert one_run.run(chosen, jobs).as_dict() == build(chosen).play(columns=False).as_dict()


@pytest.mark.parametrize(("router", "stale"), [("jsq", 0.05), ("power_of_two", 0.3), ("least_loaded", 0.1)])
@pytest.mark.parametrize("jobs", [2, 3])
def test_processes_that_tell_each_other_at_each_look_give_the_same(router: str, stale: float, jobs: int) -> None:
    said: list[str] = []
    chosen = fleet(replicas=5, requests=300, router={"name": router, "stale": stale}, classes=CLASSES, seed=4)
    assert one_run.run(chosen, jobs, say=said.append).as_dict() == build(chosen).play(columns=False).as_dict()
    assert said == []


@pytest.mark.parametrize(("more", "why"), [
    ({"router": "jsq"}, "the router JSQ looks at how workers stand for each request (it has no stale)"),
    ({"router": {"name": "jsq", "stale": 0.1}, "priced": True}, "devices have prices, and the router looks"),
    ({"router": {"name": "jsq", "stale": 0.1}, "policy": "edf-llm"}, NOT_NUMBERS),
    ({"router": {"name": "jsq", "stale": 0.1}, "engine": {"blocks": 200}, "requests": 400,
      "arrivals": {"process": "poisson", "rate": 400.0}}, NOT_NUMBERS),
    ({"replicas": 1}, "there is one worker"),
    ({"system": {"stop_after": 1.0}}, "the run is cut off after its last request"),
    ({"lengths": {"prompt": {"draw": "constant", "tokens": 90}, "output": {"draw": "constant", "tokens": 9},
                  "prefix": {"draw": "shared", "groups": 3, "tokens": 64}}},
     "requests say more than lengths and a class"),
])  # fmt: skip
def test_what_cannot_be_split_says_so_and_runs_whole(more: dict, why: str) -> None:
    said: list[str] = []
    chosen = fleet(**more)
    found = one_run.run(chosen, 2, say=said.append)
    assert said == [f"runs whole, on one core: {why}"]
    assert found.as_dict() == build(chosen).play().as_dict()


def test_records_are_kept_of_one_run(tmp_path: Path) -> None:
    from servetwin.experiments.backends.serve import serve

    said: list[str] = []
    kept = serve(fleet(), tmp_path / "run", jobs=2, say=said.append)
    assert said == ["runs whole, on one core: records of single requests and batches are kept"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == json.loads(json.dumps(kept.summary))
    assert kept.summary == serve(fleet(), jobs=2).summary


def test_static_routers_of_users(tmp_path: Path) -> None:
    (tmp_path / "by_class.py").write_text(BY_CLASS.format(static=True, asks=True))
    found = same(fleet(router=str(tmp_path / "by_class.py"), classes=CLASSES, replicas=3))
    assert set(found["workers"]) == {"llm", "llm@gpu0.2"}  # nobody goes to the third


def test_static_routers_do_not_see_how_long_outputs_become(tmp_path: Path) -> None:
    (tmp_path / "oracle.py").write_text(BY_CLASS.format(static=True, asks="request.outputs is not None"))
    found = same(fleet(router=str(tmp_path / "oracle.py"), classes=CLASSES, replicas=2))
    assert set(found["workers"]) == {"llm"}  # had it known, half of them would be at the second


def test_a_router_that_says_it_is_static_and_looks_is_at_fault(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(BY_CLASS.format(static=True, asks="workers[0].present"))
    with pytest.raises(PolicyFault, match=r"^router \w+ \(looks\.py:\d+\): it is static, and asks how"):
        build(fleet(router=str(tmp_path / "looks.py"))).play()
    (tmp_path / "honest.py").write_text(BY_CLASS.format(static=False, asks="workers[0].present"))
    assert build(fleet(router=str(tmp_path / "honest.py"))).play().requests == 80
