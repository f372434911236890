"""Models that share a card, against a few lines that reckon the same, and against the queue in closed form."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput, Outcome
from servetwin.experiments.assembly import fleets
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.cli.output import run_output
from servetwin.experiments.explaining.causes import Cause
from servetwin.experiments.explaining.explanation import explain
from servetwin.experiments.reporting.timeline import read
from servetwin.experiments.spec import yaml_io
from servetwin.experiments.spec.loading import load, load_profiles
from servetwin.experiments.sweeps.point import results_of
from servetwin.experiments.validation.check_policy import run_under_invariants

PROFILE = {
    "schema_version": 1,
    "description": "a model",
    "device": {"name": "a GPU", "kind": "gpu"},
    "model": "none",
    "precision": "none",
    "batch_counts": "requests",
    "measured_when": "never",
    "origin": {"repository": "here"},
}
SECONDS = {"small": 0.25, "large": 0.5, "third": 0.125}


def models(folder: Path, seconds: dict[str, float]) -> None:
    for name, each in seconds.items():
        table = {"batch": [1, 4], "seconds": [each, each], "statistic": "exact", "source": {"file": "this"}}
        modules = {"modules": {name: {"tables": {"scheduler": table}}}}
        (folder / f"{name}.yaml").write_text(yaml_io.write({**PROFILE, "name": f"here/{name}", **modules}))


def experiment(folder: Path, card: dict, seconds: dict[str, float] = SECONDS, **more):
    """Each model a module of its own, with a class of requests of its own and a worker of one request at a time."""
    models(folder, seconds)
    workload = {"requests": 40, "draws": "seeded", "arrivals": {"process": "poisson", "rate": 0.5}}
    tree = {
        "name": "models",
        "pipeline": {"modules": {name: {} for name in seconds}, "edges": []},
        "workload": workload | {"classes": {name: {"share": 1, "enters": [name]} for name in seconds}},
        "slo": {"seconds": 20},
        "policy": {"name": "fcfs"},
        "deployment": {
            "devices": {name: str(folder / f"{name}.yaml") for name in seconds},
            "workers": [{"modules": [name], "device": name, "limit": 1} for name in seconds],
            "cards": {"card": {"devices": [*seconds], "source": "an example", **card}},
        },
    }
    for path, value in more.items():
        node = tree
        *way, last = path.split("__")
        for key in way:
            node = node[key]
        node[last] = value
    return load(tree)


def plain(requests: list[tuple[float, str]], memory: dict, seconds: dict[str, float]) -> tuple[list[float], int]:
    """First come, first served over all models, each request by itself: when each ends, and how many swaps."""
    there: list[str] = []
    for name in seconds:  # what is there at first
        if sum(memory["weights"][other] for other in (*there, name)) <= memory["room"]:
            there.append(name)
    now, ends, swaps = 0.0, [], 0
    for arrival, name in requests:
        now = max(now, arrival)
        if name not in there:
            while memory["room"] - sum(memory["weights"][other] for other in there) < memory["weights"][name]:
                there.remove(next(other for other in there if other not in memory["pinned"]))
            now += memory["weights"][name] * 1e9 / (memory["gb_per_s"] * 1e9)
            there.append(name)
            swaps += 1
        there.append(there.pop(there.index(name)))
        now += seconds[name]
        ends.append(now)
    return ends, swaps


@given(
    st.floats(0.1, 2.0), st.integers(0, 99), st.sampled_from([[], ["small"], ["third"]]),
    st.sampled_from([{"small": 3.0, "large": 5.0, "third": 2.0}, {"small": 8.0, "large": 8.0, "third": 1.0}]),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_swaps_are_those_of_a_few_lines(
    tmp_path: Path, rate: float, seed: int, pinned: list[str], sizes: dict
) -> None:
    gib = 9e9 / 2**30
    card = {"gib": gib, "weights": sizes, "gb_per_s": 4.0, "pinned": pinned}
    if "small" in pinned and sizes["small"] == 8.0:
        pinned = card["pinned"] = []
    chosen = experiment(tmp_path, card, workload__arrivals={"process": "poisson", "rate": rate}, seed=seed)
    sent = [(r.arrival, r.class_name) for r in build(chosen).planned()]
    order = dict.fromkeys(pinned, 0) | dict.fromkeys(SECONDS, 0)
    room = {"room": gib * 2**30 / 1e9, "weights": sizes, "gb_per_s": 4.0, "pinned": pinned}
    ends, swaps = plain(sent, room, {name: SECONDS[name] for name in order})
    summary = run(chosen)
    assert sorted(summary.e2el) == pytest.approx(sorted(end - at for end, (at, _) in zip(ends, sent, strict=True)))
    assert summary.input["placement"]["swaps"] == swaps
    assert results_of(chosen, summary)["swaps"] == swaps


def test_two_models_that_alternate_by_hand(tmp_path: Path) -> None:
    """A request for each in turns, every four seconds; 8 GB take 2 s, and each model is gone when its next comes."""
    card = {"gib": 9.0, "weights": {"small": 4.0, "large": 8.0}, "gb_per_s": 4.0}
    two = {"small": 0.25, "large": 0.5}
    classes = {
        name: {
            "enters": [name],
            "arrivals": {"process": "schedule", "rate": 0.125, "cv": 0.0, "until": 33.0, "points": p},
        }
        for name, p in (("small", [[0, 1.0]]), ("large", [[0, 0.0], [4, 1.0]]))
    }
    load = {"requests": None, "draws": "seeded", "arrivals": {"process": "by_class"}, "classes": classes}
    chosen = experiment(tmp_path, card, two, workload=load)
    folder = tmp_path / "run"
    found = run(chosen, folder).as_dict()
    swaps = [json.loads(line) for line in (folder / "swaps.jsonl").read_text().splitlines()]
    assert [swap["model"] for swap in swaps] == ["large", "small", "large", "small", "large", "small"]
    assert [(swap["start"], swap["end"]) for swap in swaps[:3]] == [(12.0, 14.0), (16.0, 17.0), (20.0, 22.0)]
    assert found["placement"]["seconds_swapping"] == 3 * 2.0 + 3 * 1.0
    assert found["classes"]["large"]["mean_e2el_ms"] == pytest.approx(2500.0)


@pytest.mark.parametrize("stay", [0.0, 2.0])
def test_all_invariants_hold(tmp_path: Path, stay: float) -> None:
    card = {"gib": 9.0, "weights": {"small": 4.0, "large": 8.0, "third": 1.0}, "gb_per_s": 8.0, "stay": stay}
    chosen = experiment(
        tmp_path, card, workload__arrivals={"process": "poisson", "rate": 1.5}, policy={"name": "edf"}
    )
    summary = run_under_invariants(chosen)
    assert summary.finished + summary.outcomes[Outcome.DROPPED] == 40
    assert summary.input["placement"]["swaps"] > 5


@pytest.mark.parametrize("rate", [0.4, 0.7])
def test_a_queue_with_set_up_when_classes_change(tmp_path: Path, rate: float) -> None:
    """Two classes, as many of each, first come, first served: whether a request's model must come is a coin for each,
    so that this is an M/G/1 queue: Pollaczek and Khinchine's mean wait, rate E[S^2] / (2 (1 - rate E[S]))."""
    two, swap = {"small": 0.5, "large": 0.5}, 1.0
    card = {"gib": 9.0, "weights": {"small": 8.0, "large": 8.0}, "gb_per_s": 8.0}
    chosen = experiment(
        tmp_path, card, two, workload__requests=40_000, workload__arrivals={"process": "poisson", "rate": rate},
        slo__seconds=1e6,
    )  # fmt: skip
    summary = run(chosen)
    service = 0.5 + 0.5 * swap
    second = 0.5 * 0.5**2 + 0.5 * (0.5 + swap) ** 2
    expected = rate * second / (2.0 * (1.0 - rate * service)) + service
    assert sum(summary.e2el) / len(summary.e2el) == pytest.approx(expected, rel=0.05)
    assert summary.input["placement"]["swaps"] == pytest.approx(20_000, rel=0.02)


def test_a_model_that_came_stays_while_it_has_work(tmp_path: Path) -> None:
    card = {"gib": 9.0, "weights": {"small": 8.0, "large": 8.0}, "gb_per_s": 8.0}
    two = {"small": 0.25, "large": 0.25}
    busy = {"workload__arrivals": {"process": "poisson", "rate": 3.2}, "workload__requests": 400}
    swaps = []
    for stay in (0.0, 1.5, 30.0):
        chosen = experiment(tmp_path, card | {"stay": stay}, two, **busy)
        folder = tmp_path / f"stay{stay}"
        swaps.append(run(chosen, folder).input["placement"]["swaps"])
        batches = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
        spans = sorted((batch["start"], batch["end"]) for batch in batches)
        spans += [(s["start"], s["end"]) for s in map(json.loads, (folder / "swaps.jsonl").read_text().splitlines())]
        spans.sort()
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(spans))  # one thing at a time
    assert swaps[0] > 1.2 * swaps[1] > 1.2 * swaps[2] > 0


def test_steps_take_turns_and_replicas_have_cards_of_their_own(tmp_path: Path) -> None:
    """Two diffusion models of many steps on each of two cards: all are served, and each card has swaps of its own."""
    tree = load("dit-s2-256-rtx4090").as_dict()
    tree["slo"], tree["policy"] = {"seconds": 100.0}, {"name": "edf"}
    tree["workload"] |= {"requests": 40, "draws": "seeded", "arrivals": {"process": "poisson", "rate": 1.0}}
    plan = tree["deployment"]
    (name,) = plan["devices"]
    plan["devices"]["vae"] = plan["devices"][name]
    plan["workers"][-1]["device"] = "vae"
    plan["replicas"] = 2
    plan["router"] = "round_robin"
    card = {"devices": [name, "vae"], "gib": 3.0, "weights": {name: 2.0, "vae": 2.0}, "gb_per_s": 10.0}
    plan["cards"] = {"card": card | {"source": "an example"}}
    chosen = load(tree)
    assert len(plan["workers"]) > 1
    found = run(chosen, tmp_path / "run").as_dict()
    assert found["finished"] == 40
    swaps = [json.loads(line) for line in (tmp_path / "run" / "swaps.jsonl").read_text().splitlines()]
    assert {swap["card"] for swap in swaps} == {"card", "card.2"}


@pytest.mark.parametrize(("card", "key", "what"), [
    ({"weights": {"small": 4.0, "large": 8.0}}, "cards.card.gib", "name no memory of a card"),
    ({"gib": 6.0, "weights": {"small": 4.0, "large": 8.0}}, "cards.card", "large has 8 GB of weights"),
    ({"gib": 10.0, "weights": {"small": 4.0, "large": 8.0}, "pinned": ["small"]}, "cards.card", "beside what is"),
    ({"gib": 10.0, "weights": {"small": 4.0}}, "cards.card.weights", "how large the weights of large are"),
    ({"gib": 10.0, "weights": {"small": 4.0, "larg": 8.0}}, "cards.card.weights", "'larg' is no model of this card"),
    ({"gib": 10.0, "weights": {"small": 4.0, "large": 8.0}, "loaded": ["small", "large"]},
     "cards.card.loaded", "do not fit"),
    ({"gib": 10.0, "weights": {"small": 4.0, "large": 8.0}, "loaded": ["small", "small"]},
     "cards.card.loaded", "small is named 2 times"),
    ({"gib": 10.0, "weights": {"small": 4.0, "large": 8.0}, "pinned": ["small", "small"]},
     "cards.card.pinned", "small is named 2 times"),
    ({"gib": 10.0, "weights": {"small": 4.0, "large": 8.0}, "pinned": ["small", "large"]},
     "cards.card.pinned", r"12 GB of weights \(small 4, large 8\), and the card has room for 10.74 GB"),
    ({"gib": 10.0, "weights": {"small": 4.0, "large": 8.0}, "gb_per_s": 1e-12},
     "cards.card.gb_per_s", "0.000001|1e-06"),
    ({"gib": 10.0, "weights": {}, "devices": ["small", "b"]}, "cards.card.devices", "unknown device 'b'"),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, card: dict, key: str, what: str) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        build(experiment(tmp_path, {"gb_per_s": 4.0, **card}, {"small": 0.25, "large": 0.5}))
    assert key in str(caught.value)


def test_the_bound_and_real_backends_refuse_cards_and_single_entries(tmp_path: Path) -> None:
    card = {"gib": 9.0, "weights": {"small": 4.0, "large": 8.0}, "gb_per_s": 4.0}
    chosen = experiment(tmp_path, card, {"small": 0.25, "large": 0.5})
    with pytest.raises(BadInput, match="the real side knows no cards"):
        fleets.refuse(chosen, "the real side", "no autoscaler, or --backend sim")
    without = chosen.as_dict()
    del without["deployment"]["cards"]
    with pytest.raises(BadInput, match="the bound knows no classes that enter single modules"):
        fleets.refuse(load(without), "the bound", "no autoscaler, or servetwin run")


def test_classes_enter_what_the_pipeline_begins_with(tmp_path: Path) -> None:
    card = {"gib": 20.0, "weights": {"small": 4.0, "large": 8.0}, "gb_per_s": 4.0}
    two = {"small": 0.25, "large": 0.5}
    found = run(experiment(tmp_path, card, two)).as_dict()
    assert found["placement"] == {"swaps": 0, "seconds_swapping": 0.0, "models": {}}  # there is room for both
    counts = {name: worker["iterations"] for name, worker in found["workers"].items()}
    assert counts == {name: found["classes"][name]["requests"] for name in two}
    with pytest.raises(BadInput, match="'large' is not what the pipeline begins with"):
        experiment(tmp_path, card, two, pipeline__edges=[["small", "large"]])
    with pytest.raises(BadInput, match="a multiple of the latency alone counts modules"):
        experiment(tmp_path, card, two, slo={"factor": 3.0})


def language_models(card: dict):
    """Two that are the same, a card, and as many requests for each."""
    tree = load("opt-13b-h100").as_dict()
    plan, load_ = tree["deployment"], tree["workload"]
    tree["pipeline"] = {"modules": {"one": {"kind": "llm"}, "two": {"kind": "llm"}}, "edges": []}
    load_ |= {"requests": 30, "draws": "seeded", "arrivals": {"process": "poisson", "rate": 1.0}}
    own = load_["lengths"].pop("llm")
    load_["lengths"] = {"one": own, "two": own}
    load_["classes"] = {name: {"share": 1, "enters": [name]} for name in ("one", "two")}
    (worker,) = plan["workers"]
    engine = worker["engine"] | {"blocks": 120}
    plan["devices"] = {"a": "h100/opt-13b-tp1", "b": "h100/opt-13b-tp1"}
    plan["workers"] = [
        worker | {"modules": [module], "device": device, "engine": engine}
        for module, device in (("one", "a"), ("two", "b"))
    ]
    plan["cards"] = {"card": {"devices": ["a", "b"], "source": "an example", **card}}
    tree["policy"] = {"name": "vllm-v1"}
    return load(tree)


def test_language_models_know_the_size_of_their_weights(tmp_path: Path) -> None:
    """OPT-13B in fp16 is some 25.7 GB: one at a time on a card of 40 GiB beside two KV caches of a GB and a half."""
    tree = language_models({"gib": 40.0, "gb_per_s": 25.7}).as_dict()
    plan = tree["deployment"]
    found = run(load(tree)).as_dict()
    assert found["finished"] == 30
    assert found["placement"]["swaps"] > 3
    each = found["placement"]["seconds_swapping"] / found["placement"]["swaps"]
    assert each == pytest.approx(1.0, rel=0.01)
    del plan["workers"][0]["engine"]["blocks"]
    with pytest.raises(BadInput, match="the KV cache of a takes memory of the card"):
        load(tree)


POWER = {"busy": 400.0, "idle": 100.0}
ALTERNATE = {"gib": 9.0, "weights": {"small": 4.0, "large": 8.0}, "gb_per_s": 4.0}


def test_a_card_is_one_device_with_one_price(tmp_path: Path) -> None:
    """Costs by the records of the same run: a card, busy while a model computes or weights come, held once."""
    two, price = {"small": 0.25, "large": 0.5}, {"per_hour": 3.6, "source": "made up", "power": POWER}
    unused = {"deployment__prices": {"card": price}, "deployment__replicas": 2, "deployment__router": "round_robin"}
    for more, many in (({"deployment__prices": {"card": price}}, 1), (unused, 2)):
        folder = tmp_path / f"run{many}"
        found = run(experiment(tmp_path, ALTERNATE, two, **more), folder).as_dict()
        busy, moved = (
            sum(line["end"] - line["start"] for line in map(json.loads, (folder / name).read_text().splitlines()))
            for name in ("batches.jsonl", "swaps.jsonl")
        )
        held, cost = many * found["duration"], found["cost"]
        assert moved > 1.0
        assert cost["device_hours"] == pytest.approx(held / 3600)
        assert cost["dollars"] == pytest.approx(held * 0.001)
        assert cost["utilisation"] == pytest.approx((busy + moved) / held)
        assert cost["utilisation_by_swaps"] == pytest.approx(moved / held)
        assert cost["energy_kwh"] == pytest.approx((400 * (busy + moved) + 100 * (held - busy - moved)) / 3.6e6)
        told = read(folder)
        assert [*told.busy] == ["card", "card.2"][:many]
        assert sum(map(told.mean, told.busy.values())) == pytest.approx((busy + moved) / found["duration"])


def test_a_model_of_a_card_has_no_price_of_its_own(tmp_path: Path) -> None:
    two, price = {"small": 0.25, "large": 0.5}, {"per_hour": 3.6, "source": "made up"}
    with pytest.raises(BadInput, match="small is a model of the card card, which has one price"):
        experiment(tmp_path, ALTERNATE, two, deployment__prices={"card": price, "small": price})
    with pytest.raises(BadInput, match="card has no price"):
        experiment(tmp_path, ALTERNATE, two, deployment__prices={})


def test_a_device_that_no_worker_uses_counts_nowhere(tmp_path: Path) -> None:
    two, price = {"small": 0.25, "large": 0.5}, {"per_hour": 3.6, "source": "made up", "power": POWER}
    models(tmp_path, two)
    bare = experiment(tmp_path, ALTERNATE, two, deployment__prices={"card": price})
    tree = bare.as_dict()
    tree["deployment"]["devices"]["gpu0"] = "h100/opt-13b-tp1"  # whose profile is not clean
    for prices in ({"card": price}, {"card": price, "gpu0": price}):
        tree["deployment"]["prices"] = prices
        other = load(tree)
        assert run(other).as_dict() == run(bare).as_dict()
        assert [*load_profiles(other)] == [*two]
        assert not any("not clean" in line for line in run_output._doubts(other, {}))
    tree["deployment"]["devices"]["gpu0"] = "nowhere/known"
    with pytest.raises(BadInput, match="unknown profile"):
        load_profiles(load(tree))


def test_waits_for_weights_and_for_another_model_are_told_apart(tmp_path: Path) -> None:
    """By the records of the same run: a wait has the seconds in which weights came, or the other model computed."""
    two, folder = {"small": 0.25, "large": 0.5}, tmp_path / "run"
    run(experiment(tmp_path, ALTERNATE, two, slo={"seconds": 1.0}), folder)
    swaps, batches, requests = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("swaps", "batches", "requests")
    )
    found = explain(folder, requests=[r["id"] for r in requests])
    seen = set()
    for one, record in zip(found, requests, strict=True):
        (stay,) = record["stages"]
        (begun,) = (batch["start"] for batch in batches if record["id"] in batch["requests"])

        def within(lines: list[dict], since: float = record["arrival"], until: float = begun) -> float:
            return sum(max(0.0, min(line["end"], until) - max(line["start"], since)) for line in lines)

        others = [batch for batch in batches if batch["worker"] != stay["worker"]]
        own = [batch for batch in batches if batch["worker"] == stay["worker"]]
        waits = {cause: one.seconds.get(cause, 0.0) for cause in (Cause.WEIGHTS, Cause.OTHER_MODEL, Cause.HELD)}
        assert waits[Cause.WEIGHTS] == pytest.approx(within(swaps))
        assert waits[Cause.OTHER_MODEL] == pytest.approx(within(others))
        assert waits[Cause.HELD] == pytest.approx(0.0, abs=1e-9)
        assert one.latency == pytest.approx(within(swaps) + within(others) + within(own) + two[stay["worker"]])
        seen |= {cause for cause, seconds in waits.items() if seconds > 0.1}
        for number in one.stages[0].instead:
            assert any(number in batch["requests"] for batch in batches)
    assert seen == {Cause.WEIGHTS, Cause.OTHER_MODEL}


def test_steps_of_engines_wait_for_the_card_too(tmp_path: Path) -> None:
    chosen, folder = language_models({"gib": 40.0, "gb_per_s": 25.7}), tmp_path / "run"
    run(chosen, folder)
    causes = {cause for one in explain(folder, worst=30) for cause in one.seconds}
    assert Cause.WEIGHTS in causes
    assert Cause.HOST not in {one.lost.part.cause for one in explain(folder, worst=30) if one.lost and one.lost.part}


def test_more_memory_than_measured_is_said(tmp_path: Path) -> None:
    said = run(language_models({"gib": 400.0, "gb_per_s": 25.7})).as_dict()["basis"]
    assert "card is said to have 400 GiB; its models were measured on a card of 79.18 GiB" in said
    said = run(language_models({"gib": 40.0, "gb_per_s": 25.7})).as_dict()["basis"]
    assert not any("is said to have" in line for line in said)


def test_requests_have_work_of_what_their_class_can_come_by_alone(tmp_path: Path) -> None:
    """What is drawn stays the same: each module draws for every request."""
    tables = {"scheduler": {"batch": [1, 4], "seconds": [0.1, 0.2], "statistic": "exact", "source": {"file": "this"}}}
    names, ways = ("light", "heavy", "both"), {"light": {"light", "both"}, "heavy": {"heavy", "both"}}
    content = {**PROFILE, "name": "here/all", "modules": {m: {"loop": True, "tables": tables} for m in names}}
    (tmp_path / "all.yaml").write_text(yaml_io.write(content))
    tree: dict[str, Any] = {
        "name": "two ways",
        "pipeline": {"modules": {m: {"loop": True} for m in names}, "edges": [["light", "both"], ["heavy", "both"]]},
        "workload": {
            "requests": 30,
            "draws": "seeded",
            "arrivals": {"process": "poisson", "rate": 0.5},
            "steps": {m: {"draw": "uniform", "low": 5, "high": 9} for m in names},
        },
        "slo": {"seconds": 20},
        "policy": {"name": "edf"},
        "deployment": {
            "devices": {m: str(tmp_path / "all.yaml") for m in names},
            "workers": [{"modules": [m], "device": m, "limit": 4} for m in names],
        },
    }
    whole = {request.id: request.work for request in build(load(tree)).planned()}
    classes = {m: {"share": 1, "enters": [m]} for m in ways} | {"any": {"share": 1}}
    tree["workload"]["classes"] = classes
    ways["any"], seen = {*names}, set()
    for request in build(load(tree)).planned():
        seen.add(request.class_name)
        assert request.work == {m: n for m, n in whole[request.id].items() if m in ways[request.class_name]}
    assert seen == ways.keys()


def test_a_model_that_no_class_enters_is_said(tmp_path: Path) -> None:
    two = {"small": 0.25, "large": 0.5}
    chosen = experiment(tmp_path, ALTERNATE, two, workload__classes={"a": {"share": 1, "enters": ["small"]}})
    (line,) = run_output._not_entered(chosen)
    assert "no request comes to large" in line
    both = {"a": {"share": 1, "enters": ["small"]}, "b": {"share": 1}}
    assert run_output._not_entered(experiment(tmp_path, ALTERNATE, two, workload__classes=both)) == []
    assert run_output._not_entered(experiment(tmp_path, ALTERNATE, two)) == []
