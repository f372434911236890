"""Fleets that are planned: against queues in closed form, an independent small model, and trying everything."""

from __future__ import annotations

import heapq
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import build
from servetwin.experiments.capacity import plan as plans
from servetwin.experiments.capacity.plan_sets import check_sets
from servetwin.experiments.cli.output.json_output import COMMANDS
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.sweeps.point import Row, run_point
from toy_systems import ONE_PROFILE, refused, rows, servetwin, write_one

SLOW = {"profile": "one.profile.yaml", "per_hour": 1.0, "source": "made up"}
#: Twice as fast, and more than twice as dear.
FAST = {"profile": "fast.yaml", "per_hour": 2.2, "source": "made up"}
PLAN: dict[str, Any] = {
    "extends": "one.yaml",
    "set": {"requests": 200, "workload.arrivals": {"process": "poisson", "rate": 30.0}, "slo.seconds": 0.25},
    "target": 90,
    "seeds": 2,
    "routers": ["central", "random"],
    "fleets": [
        {"name": "slow", "counts": [2, 7], "devices": {"gpu0": SLOW}},
        {"name": "fast", "counts": [1, 4], "devices": {"gpu0": FAST}},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_one(tmp_path)
    fast = ONE_PROFILE.replace("mine/one", "mine/fast").replace("[0.010, 0.020]", "[0.005, 0.010]")
    (tmp_path / "fast.yaml").write_text(fast)
    fine = ONE_PROFILE.replace("mine/one", "mine/fine").replace("[0.010, 0.020]", "[0.001, 0.002]")
    (tmp_path / "fine.yaml").write_text(fine)
    return tmp_path


def write(folder: Path, **changes: Any) -> Path:
    (folder / "plan.yaml").write_text(json.dumps({**PLAN, **changes}))
    return folder / "plan.yaml"


def run(experiments: Any) -> list[Row]:
    return [run_point(experiment) for experiment in experiments]


def met_by_hand(experiment: Experiment, servers: int, service: float) -> int:
    """Who meets the SLO of a queue that all *servers* take from, first come, first served."""
    free, met = [0.0] * servers, 0
    for request in build(experiment).source:
        begins = max(request.arrival, heapq.heappop(free))
        heapq.heappush(free, begins + service)
        met += begins + service <= request.arrival + request.slo + 1e-9
    return met


def test_each_fleet_meets_what_a_small_model_of_the_queue_does(folder: Path) -> None:
    found = plans.plan(write(folder, routers=["central"]), run)
    assert len(found.fleets) > 5
    for fleet in found.fleets:
        service = {"slow": 0.1, "fast": 0.05}[fleet.kind]
        for seed, row in enumerate(fleet.point.rows):
            same = fleet.point.experiment.model_copy(update={"seed": seed})
            assert row["met"] == met_by_hand(same, fleet.count, service), fleet.label
        assert fleet.dollars_per_hour == pytest.approx(fleet.count * {"slow": 1.0, "fast": 2.2}[fleet.kind])


def test_halving_finds_what_trying_everything_finds(folder: Path) -> None:
    path = write(folder)
    quick, whole = plans.plan(path, run), plans.plan(path, run, every=True)
    assert len(whole.fleets) == 2 * (6 + 4)
    assert len(quick.fleets) < len(whole.fleets)
    assert quick.chosen is not None
    assert whole.chosen is not None
    assert {fleet.front for fleet in quick.fleets} == {None}  # counts between were not tried
    assert "which fleets are on the Pareto front is not known" in " ".join(quick.notes)
    assert not any("Pareto" in note for note in whole.notes)
    assert quick.chosen.as_row() == {**whole.chosen.as_row(), "front": None}
    assert [fleet.label for fleet, _ in quick.rivals] == [fleet.label for fleet, _ in whole.rivals]
    holding = [fleet.dollars_per_hour for fleet in whole.fleets if fleet.attainment.low >= 0.9]
    assert quick.chosen.dollars_per_hour == min(holding)
    for fleet in whole.fleets:  # nothing is cheaper and meets as many, or as cheap and meets more
        own, price = fleet.attainment.mean, pytest.approx(fleet.dollars_per_hour)
        alike = [f.attainment.mean for f in whole.fleets if f.dollars_per_hour == price]
        cheaper = [f.attainment.mean for f in whole.fleets if f.dollars_per_hour < fleet.dollars_per_hour - 1e-6]
        assert fleet.front == (own == max(alike) and all(own > other for other in cheaper)), fleet.label


def test_of_two_that_are_as_good_one_is_named_and_the_other_told(folder: Path) -> None:
    both = [{**PLAN["fleets"][0], "name": name, "counts": [5, 7]} for name in ("later", "earlier")]
    found = plans.plan(write(folder, fleets=both, routers=["central"]), run, every=True)
    assert found.chosen is not None
    assert found.chosen.kind == "earlier"
    (tie,) = [note for note in found.notes if note.startswith("at the same price hold it, too: ")]
    assert f"{found.chosen.count} x later, fcfs, central (" in tie
    assert tie.endswith("of those that meet as many, the first by name is the answer")
    by_count: dict[int, set[bool | None]] = {}
    for fleet in found.fleets:
        by_count.setdefault(fleet.count, set()).add(fleet.front)
    assert by_count[found.chosen.count] == {True}
    assert all(len(on_front) == 1 for on_front in by_count.values())


LLAMA = "h100/llama-3.1-8b-tp{}-imported"


def llama(folder: Path, profiles: dict[int, str], **more: Any) -> Path:
    """A plan of Llama-3.1-8B on H100s, each degree of tensor parallelism with its profile."""
    chat = {
        "extends": "opt-13b-h100",
        "policy": {"name": "vllm-v1"},
        "workload": {"requests": 60, "draws": "seeded", "arrivals": {"process": "poisson", "rate": 20.0}},
        "slo": {"prefill": None, "decode": None, "limits": {"tpot_ms": 5.5}},
    }
    (folder / "chat.yaml").write_text(json.dumps(chat))
    said = "".join(f"{degree}: {profile}, " for degree, profile in profiles.items())
    offer = f"{{profile: {{{said}}}, per_hour: 3.0, source: a list of May, power: {{busy: 600, idle: 100}}}}"
    fleets = f"[{{name: H100, counts: [1, 2], devices: {{gpu0: {offer}}}}}]"
    text = f"extends: chat.yaml\ntarget: 90\nseeds: 2\nfleets: {fleets}\n"
    (folder / "plan.yaml").write_text(text)
    return folder / "plan.yaml"


def test_a_kind_with_degrees_of_tensor_parallelism_is_one_of_each(folder: Path) -> None:
    """Of one GPU's price and power each degree costs and draws so many times as much; what is served is what kinds
    that are written out serve."""
    found = plans.plan(llama(folder, {degree: LLAMA.format(degree) for degree in (1, 2, 4)}), run, every=True)
    assert [(f.kind, f.count, f.dollars_per_hour) for f in sorted(found.fleets, key=lambda f: (f.kind, f.count))] == [
        (f"H100 TP{degree}", count, 3.0 * degree * count) for degree in (1, 2, 4) for count in (1, 2)
    ]
    written = [
        {
            "name": f"by hand {degree}",
            "counts": [1, 2],
            "devices": {
                "gpu0": {
                    "profile": LLAMA.format(degree),
                    "per_hour": 3.0 * degree,
                    "source": "a list of May",
                    "power": {"busy": 600.0 * degree, "idle": 100.0 * degree},
                }
            },
        }
        for degree in (1, 2, 4)
    ]
    by_hand = plans.plan(write(folder, extends="chat.yaml", set={}, routers=None, fleets=written), run, every=True)
    told = [{**fleet.as_row(), "fleet": ""} for fleet in found.fleets]
    assert told == [{**fleet.as_row(), "fleet": ""} for fleet in by_hand.fleets]
    assert len({row["attainment"] for row in told}) > 1  # more GPUs a replica are quicker
    assert [(price["fleet"], price["per_hour"], price["source"]) for price in found.prices] == [
        ("H100 TP1", 3.0, "a list of May"),
        ("H100 TP2", 6.0, "a list of May ($3 x 2 GPUs)"),
        ("H100 TP4", 12.0, "a list of May ($3 x 4 GPUs)"),
    ]


def test_a_profile_of_another_degree_is_refused(folder: Path) -> None:
    said = refused("plan", llama(folder, {1: LLAMA.format(1), 2: LLAMA.format(4)}), "--jobs", 1)
    assert "plan.yaml: fleets.0.devices.gpu0.profile.2: h100/llama-3.1-8b-tp4-imported was taken with" in said
    assert "tensor_parallel: 4 (right would be: a profile with tensor_parallel: 2)" in said


def test_what_is_assumed_and_whose_the_prices_are_is_told(folder: Path) -> None:
    """A fleet whose KV is in fp8, at a slowdown that somebody assumed, is the answer: the plan says so."""
    chat = {
        "extends": "opt-13b-a6000",
        "policy": {"name": "vllm-v1"},
        "workload": {"requests": 20, "draws": "seeded"},
    }
    (folder / "chat.yaml").write_text(json.dumps(chat))
    offer = {"profile": "a6000/opt-13b-tp1", "per_hour": 0.8, "source": "a list of May"}
    engine = "deployment.workers.0.engine"
    assumed = {
        f"{engine}.kv_cache_dtype": "fp8",
        f"{engine}.fp8_attention": {"decode": 0.6, "prefill": 1.0, "source": "assumed"},
    }
    fleets = [{"name": "plain", "counts": [1, 1], "devices": {"gpu0": offer}}]
    fleets += [{"name": "half", "counts": [1, 1], "devices": {"gpu0": {**offer, "per_hour": 0.7}}, "set": assumed}]
    slo = {"slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 60000}}}
    path = write(folder, extends="chat.yaml", set=slo, target=50, routers=None, fleets=fleets)
    takes = "0.6 times as long in decoding and 1 times for prompts"
    said = f"half: KV in fp8: attention to tokens before takes {takes}: assumed"
    found = json.loads(servetwin("plan", path, "--jobs", 1, "--json")[1])
    assert found["chosen"]["fleet"] == "half"
    assert said in found["notes"]
    assert [(p["fleet"], p["per_hour"], p["source"]) for p in found["prices"]] == [
        ("plain", 0.8, "a list of May"),
        ("half", 0.7, "a list of May"),
    ]
    out = servetwin("plan", path, "--jobs", 1)[1]
    assert said in " ".join(out.split())
    assert "price of half: gpu0 $0.7 an hour: a list of May" in out


def in_time(servers: int, rate: float, mean: float, limit: float) -> float:
    """P(wait + service <= limit) in M/M/c: Erlang C, and an exponential service after the wait (numerically)."""
    load = rate * mean
    if load >= servers:
        return 0.0
    top = load**servers / math.factorial(servers) * servers / (servers - load)
    waits = top / (sum(load**k / math.factorial(k) for k in range(servers)) + top)
    drain, cells = servers / mean - rate, 4000
    late = math.exp(-limit / mean)
    width = limit / cells
    for i in range(cells):
        service = (i + 0.5) * width
        late += width / mean * math.exp(-service / mean) * waits * math.exp(-drain * (limit - service))
    return 1.0 - late


def test_the_least_count_is_that_of_erlang_c(folder: Path) -> None:
    """Services of 1 ms times a geometric number, 100 ms on average, are as good as exponential."""
    steps = {"draw": "choice", "values": list(range(1, 1001)), "weights": [0.99**k for k in range(1000)]}
    fine = {"name": "fine", "counts": [3, 6], "devices": {"gpu0": {**SLOW, "profile": "fine.yaml"}}}
    said = {"requests": 1200, "workload.arrivals": {"process": "poisson", "rate": 30.0}, "slo.seconds": 0.35}
    said["workload.steps.denoise"] = steps
    path = write(folder, set=said, routers=["central"], fleets=[fine], target=80, seeds=4)
    found = plans.plan(path, run)
    theory = {servers: in_time(servers, 30.0, 0.1, 0.35) for servers in range(1, 11)}
    least = min(servers for servers, share in theory.items() if share >= 0.8)
    assert theory[least - 1] < 0.75  # so that chance does not decide
    assert theory[least] > 0.88
    assert found.chosen is not None
    assert found.chosen.count == least
    for fleet in found.fleets:
        if theory[fleet.count] > 0.8:
            assert fleet.attainment.mean == pytest.approx(theory[fleet.count], abs=0.03), fleet.label


def test_one_server_is_the_m_d_1_queue(folder: Path) -> None:
    """P(wait <= t) = (1 - r) sum_k (l (kD - t))^k / k! exp(-l (kD - t)) for k to t / D (Erlang, 1909)."""
    rate, service, wait = 5.0, 0.1, 0.15
    terms = [rate * (k * service - wait) for k in range(int(wait / service) + 1)]
    share = (1 - rate * service) * sum(x**k / math.factorial(k) * math.exp(-x) for k, x in enumerate(terms))
    said = {
        "requests": 3000,
        "workload.arrivals": {"process": "poisson", "rate": rate},
        "slo.seconds": service + wait,
    }
    slow = {"name": "slow", "counts": [1, 1], "devices": {"gpu0": SLOW}}
    found = plans.plan(write(folder, set=said, routers=["central"], fleets=[slow], seeds=4), run)
    assert found.fleets[0].attainment.mean == pytest.approx(share, abs=0.012)


def test_routers_of_one_name_are_told_apart_by_what_they_take(folder: Path) -> None:
    """Two that look rarely and one that looks always: each serves as an experiment with that router does."""
    routers = ["jsq", {"name": "jsq", "stale": 0.5}, {"name": "power_of_two", "params": {"choices": 3}}]
    found = plans.plan(write(folder, routers=routers, fleets=[PLAN["fleets"][0]]), run, every=True)
    by_label = {fleet.label: fleet for fleet in found.fleets}
    for router, told in zip(routers, ("jsq", "jsq (stale 0.5)", "power_of_two (choices 3)"), strict=True):
        own = plans.load(folder / "one.yaml", [*PLAN["set"].items(), ("deployment.router", router), ("replicas", 4)])
        rows = [run_point(own.model_copy(update={"seed": seed})) for seed in (0, 1)]
        assert [row["met"] for row in by_label[f"4 x slow, {own.policy.name}, {told}"].point.rows] == [
            row["met"] for row in rows
        ]
    with pytest.raises(BadInput, match=r"routers.1: 'jsq' is named twice"):
        plans.read(write(folder, routers=["jsq", "jsq"]))


def test_where_no_fleet_holds_it_says_so_and_what_may(folder: Path) -> None:
    few = [{**PLAN["fleets"][0], "counts": [1, 2]}]
    found = plans.plan(write(folder, fleets=few, routers=["central"]), run)
    assert found.chosen is None
    assert {fleet.verdict for fleet in found.fleets} == {"does not hold"}
    assert found.rivals == []


def test_a_load_without_chance_is_one_run(folder: Path) -> None:
    arrivals = {"process": "schedule", "rate": 8.0, "cv": 0.0, "spikes": [{"at": 5, "seconds": 2, "factor": 4}]}
    said = {"requests": 300, "workload.arrivals": arrivals, "slo.seconds": 0.25}
    found = plans.plan(write(folder, set=said, routers=["central"], fleets=PLAN["fleets"][:1]), run)
    assert found.seeds == 1
    assert found.chosen is not None
    assert found.chosen.attainment.low == found.chosen.attainment.mean
    assert "nothing is drawn from a seed" in found.notes[0]


def test_a_trace_that_is_replayed_is_one_run(folder: Path) -> None:
    """Two come at once each second: one server makes the second wait 100 ms too long, two do not."""
    times = [float(second) for second in range(30) for _ in range(2)]
    (folder / "t.csv").write_text("arrival_s,steps\n" + "".join(f"{at},10\n" for at in times))
    arrivals = {"process": "trace", "file": str(folder / "t.csv"), "rate": None}
    said = {"requests": None, "workload.arrivals": arrivals, "slo.seconds": 0.15}
    slow = [{**PLAN["fleets"][0], "counts": [1, 3]}]
    found = plans.plan(write(folder, set=said, routers=["central"], fleets=slow), run)
    assert [(f.count, f.attainment.mean) for f in found.fleets] == [(1, 0.5), (2, 1.0), (3, 1.0)]
    assert found.chosen is not None
    assert (found.chosen.count, found.seeds) == (2, 1)
    both = plans.plan(write(folder, set=said, routers=["central", "random"], fleets=slow), run)  # one of them draws
    assert (both.chosen, both.seeds) == (both.fleets[2], 2)
    assert both.chosen.label == "2 x slow, fcfs, central"
    by_chance = {f.count: f.attainment for f in both.fleets if f.router == "random"}
    assert by_chance[1].mean == 0.5
    assert 0.5 < by_chance[3].mean < 1.0


def test_the_command_prints_writes_and_draws(folder: Path) -> None:
    fleets = [{**PLAN["fleets"][0], "counts": [3, 6]}, {**PLAN["fleets"][1], "counts": [1, 3]}]
    path = write(folder, routers=["central"], fleets=fleets)
    table, figure = folder / "plan.csv", folder / "plan.svg"
    options = ("--no-cache", "--jobs", 1, "--out", table, "--figure", figure)
    code, out, err = servetwin("plan", path, *options)
    assert code == 0, err
    assert "which fleets are on the Pareto front is not known" in " ".join(out.split())
    assert " front " not in out.partition("which fleets")[0]
    assert "grey: Pareto front" not in figure.read_text()
    assert {row["front"] for row in rows(table)} == {""}
    code, out, err = servetwin("plan", path, *options, "--every")
    assert code == 0, err
    assert "Pareto" in out
    assert "not known" not in out
    assert {row["front"] for row in rows(table)} == {"True", "False"}
    assert ", the cheapest that holds 90 %" in out
    assert "95 % interval over 2 seeds" in out
    assert "validity of" in out
    assert figure.read_text().lstrip().startswith("<?xml")
    code, out, err = servetwin("plan", path, "--no-cache", "--jobs", 1, "--json")
    assert code == 0, err
    said = json.loads(out)
    TypeAdapter(COMMANDS["plan"]).validate_python(said)
    assert len(rows(table)) > len(said["fleets"])
    assert {fleet["front"] for fleet in said["fleets"]} == {None}
    assert said["chosen"]["verdict"] == "holds"


def with_set(**said: Any) -> dict[str, Any]:
    """The plan with so much set for its second fleet."""
    return {"fleets": [PLAN["fleets"][0], {**PLAN["fleets"][1], "set": said}]}


def of_fleet(key: str, value: Any, named: str | None = None) -> tuple[dict[str, Any], str]:
    return with_set(**{key: value}), f"plan.yaml: fleets.1.set.{named or key}: "


NOWHERE = {"gpu0": {**SLOW, "profile": "x/y"}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"polices": ["edf"]}, "unknown key 'polices'"),
    "a target of all": ({"target": 100}, "target"),
    "a target as a share": ({"target": 0.9}, "plan.yaml:1: target: 0.9 is a share (right would be: 90, in per cent)"),
    "a target of one": ({"target": 1}, "target: 1 is a share (right would be: more than 1, in per cent)"),
    "degrees of an image model": (
        {"fleets": [{**PLAN["fleets"][0], "devices": {"gpu0": {**SLOW, "profile": {"1": "one.profile.yaml"}}}}]},
        "profile",
    ),
    "counts that fall": ({"fleets": [{**PLAN["fleets"][0], "counts": [3, 2]}]}, "fleets.0.counts: 3 is above 2"),
    "three counts": (
        {"fleets": [{**PLAN["fleets"][0], "counts": [1, 2, 3]}]},
        "fleets.0.counts: the value does not fit (right would be: [least, most], two whole numbers",
    ),
    "no counts": ({"fleets": [{**PLAN["fleets"][0], "counts": [0, 2]}]}, "counts"),
    "no price": ({"fleets": [{**PLAN["fleets"][0], "devices": {"gpu0": {"profile": "fast.yaml"}}}]}, "per_hour"),
    "another device": (
        {"fleets": [{**PLAN["fleets"][0], "devices": {"gpu7": SLOW}}]},
        "fleets.0.devices: it has gpu7",
    ),
    "two of a name": ({"fleets": [PLAN["fleets"][0]] * 2}, "fleets.1.name: two fleets are called 'slow'"),
    "a fleet's own rate": of_fleet("rate", 0.01),
    "a fleet's own load": of_fleet("workload", {"requests": 20}, "workload.requests"),
    "a fleet's own arrivals": of_fleet("workload.arrivals.rate", 0.01),
    "a fleet's own SLO": of_fleet("slo.seconds", 9.0),
    "a fleet's own kind of SLO": of_fleet("slo", {"factor": 9.0}, "slo.factor"),
    "a fleet's own seed": of_fleet("seed", 7),
    "a fleet's own policy": of_fleet("policy", "edf"),
    "a fleet's own policy, by name": of_fleet("policy", {"name": "edf"}, "policy.name"),
    "a worker's own policy": of_fleet(
        "deployment.workers.0.policy", {"name": "edf"}, "deployment.workers.0.policy.name"
    ),
    "a fleet's own count": of_fleet("replicas", 7),
    "a fleet's own count, nested": of_fleet("deployment", {"replicas": 7}, "deployment.replicas"),
    "a fleet's own prices": of_fleet("deployment.prices", {"gpu0": SLOW}, "deployment.prices.gpu0.profile"),
    "another device in a fleet": of_fleet("deployment.devices.gpu0", "fast.yaml"),
    "a fleet's own router": of_fleet("router", "random"),
    "a count for all": ({"set": {**PLAN["set"], "replicas": 7}}, "plan.yaml: set.replicas: "),
    "prices for all": (
        {"set": {**PLAN["set"], "deployment": {"prices": {"gpu0": 1}}}},
        "plan.yaml: set.deployment.prices.gpu0: ",
    ),
    "a policy twice": ({"policies": ["edf", "fcfs", "edf"]}, "plan.yaml: policies.2: 'edf' is named twice"),
    "a router twice": ({"routers": ["random", "random"]}, "plan.yaml: routers.1: 'random' is named twice"),
    "no request under a seed": (
        {"set": {"requests": None, "workload.arrivals": {"process": "schedule", "rate": 1.0, "until": 1e-6}}},
        "plan.yaml: set: workload: no request is sent under seed 0",
    ),
    "one seed": ({"seeds": 1}, "seeds"),
    "an unknown policy": ({"policies": ["edfx"]}, "edfx"),
    "an unknown router": ({"routers": ["centrall"]}, "centrall"),
    "an unknown profile": (
        {"fleets": [{**PLAN["fleets"][0], "devices": {"gpu0": {**SLOW, "profile": "x/y"}}}]},
        "x/y",
    ),
    "a closed loop": (
        {"set": {"workload.arrivals": {"process": "closed", "clients": 3}, "requests": 50}},
        "requests are sent when others are answered",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_plan_is_refused_before_anything_runs(folder: Path, case: str) -> None:
    changes, said = REFUSED[case]
    assert said in refused("plan", write(folder, **changes), "--out", folder / "t.csv", "--jobs", 1)
    assert not (folder / "t.csv").exists()


def test_a_fleet_that_cannot_be_built_is_named(folder: Path) -> None:
    chat = {"extends": "opt-13b-a6000", "policy": {"name": "vllm-v1"}, "workload": {"requests": 5, "draws": "seeded"}}
    (folder / "chat.yaml").write_text(json.dumps(chat))
    slo = {"slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 60000}}}
    fleets: list[dict[str, Any]] = [
        {"name": name, "counts": [1, 1], "devices": {"gpu0": {**SLOW, "profile": f"{name}/opt-13b-tp1"}}}
        for name in ("a6000", "h200")
    ]
    fleets[1]["set"] = {"deployment.workers.0.engine.kv_cache_dtype": "fp8"}
    path = write(folder, extends="chat.yaml", set=slo, routers=None, fleets=fleets)
    said = "plan.yaml: fleets.1, vllm-v1: deployment.workers: engine.kv_cache_dtype: nothing says"
    assert said in refused("plan", path, "--jobs", 1)


def test_parameters_of_the_policy_may_be_set_for_a_fleet() -> None:
    check_sets({}, [{"policy.params.step_delta": 3, "step_delta": 3}], Path("plan.yaml"), policies=True, routers=True)


def test_the_help_keeps_what_the_figure_needs() -> None:
    assert "(needs the extra plots)" in " ".join(servetwin("plan", "--help")[1].replace("│", " ").split())


def test_a_file_that_is_no_plan_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput):
        plans.read(folder / "missing.yaml")
    (folder / "list.yaml").write_text("[1, 2]")
    with pytest.raises(BadInput, match="there is no mapping"):
        plans.read(folder / "list.yaml")
