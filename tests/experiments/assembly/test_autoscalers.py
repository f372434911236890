"""Replicas that come and go, as experiments say it: on diffusion and language models, with prices, in sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput, Recorder
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.scaling.autoscaler import FleetState
from servetwin.experiments.assembly import build
from servetwin.experiments.cli.output.run_output import show_run
from servetwin.experiments.registry import autoscaler_registry, router_registry
from servetwin.experiments.reporting.run_sections import read, tables
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import run_point

STARTS = {"machine": 1.0, "weights": {"gb": 3.0, "gb_per_s": 2.0}, "warm_up": 0.5, "source": "an example"}
PHASES = "machine 1 s, weights 1.5 s, warm-up 0.5 s"
LLM: dict[str, Any] = {
    "extends": "opt-13b-a6000",
    "name": "chat",
    "policy": {"name": "vllm-v1"},
    "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 1000, "tpot_ms": 120}},
    "workload": {
        "requests": 60,
        "draws": "seeded",
        "arrivals": {"process": "poisson", "rate": 6.0},
        "lengths": {"llm": {"output": {"draw": "uniform", "low": 4, "high": 30}}},
    },
}


def scaled(source: Any, replicas: int = 3, **said: Any) -> Experiment:
    told = {"name": "by_queue", "params": {"target": 4}, "least": 0, "every": 0.5, "start": STARTS, **said}
    return load(source, [("deployment.replicas", replicas), ("deployment.autoscaler", told)])


def checked(experiment: Experiment) -> tuple[build.Run, Recorder]:
    log = Recorder()
    checker = InvariantChecker(log)
    run = build.build(experiment, checker)
    checker.watch(run.loop)
    run.play()
    checker.finish()
    return run, log


@pytest.mark.parametrize("router", sorted(router_registry.router_names()))
@pytest.mark.parametrize("every", [0.5, None])
def test_under_each_router_all_requests_end_and_replicas_come_and_go(
    toy: Path, router: str, every: float | None
) -> None:
    experiment = scaled(toy, every=every, initial=0)
    plan = experiment.deployment.model_copy(update={"router": router})
    run, log = checked(experiment.model_copy(update={"deployment": plan}))
    fleet = run.loop.fleet
    assert log.summary.requests == sum(log.summary.outcomes.values()) > 0
    assert fleet.starts >= 1
    assert fleet.summary(0.0, log.summary.last_end)["waited_for_a_replica"] >= 1
    for replica in fleet.replicas:
        assert replica.state in ("off", "ready", "starting")
        assert replica.empty


@pytest.mark.parametrize("source", ["toy", "llm"])
def test_as_many_all_the_time_are_the_replicas_to_the_byte(toy: Path, tmp_path: Path, source: str) -> None:
    """Where it is asked within a run of iterations, that is told as two batches; all times stay the same. (Engines
    behind one calendar number their batches in another order.)"""
    said = toy if source == "toy" else LLM
    static = {"name": "by_schedule", "params": {"points": [[0, 2]]}, "least": 2}
    build.run(load(said, [("deployment.replicas", 2)]), tmp_path / "plain")
    batches = ["batches.jsonl"] if source == "toy" else []
    for every, same in ((0.5, ["requests.jsonl"]), (1e6, ["requests.jsonl", *batches])):
        out = tmp_path / str(every)
        build.run(scaled(said, 2, **static, every=every), out)
        assert (out / "fleet.jsonl").read_text().splitlines() == [
            f'{{"at": 0.0, "replica": {n}, "state": "ready"}}' for n in (1, 2)
        ]
        for name in same:
            assert (out / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_language_models_come_and_go_and_what_is_started_is_paid_for() -> None:
    priced = {**LLM, "deployment": {"prices": {"gpu0": {"per_hour": 3.6, "source": "an example"}}}}
    run, log = checked(scaled(priced, every=1.0, least=1))
    told = log.summary.as_dict()
    fleet, cost = told["fleet"], told["cost"]
    assert 1 < fleet["mean_replicas"] < 3
    assert fleet["most_replicas"] == 3
    seconds = sum(b - a for r in run.loop.fleet.replicas for a, b in r.held_between(0.0, log.summary.last_end))
    first = log.summary.first_arrival
    assert cost["device_hours"] * 3600 == pytest.approx(seconds - first)  # one is there from the start
    assert cost["dollars"] == pytest.approx((seconds - first) * 0.001)
    assert cost["dollars_per_hour"] == pytest.approx(3.6 * fleet["mean_replicas"])
    assert told["basis"][-1].startswith(
        "the start of a replica is stated (machine 1 s, weights 1.5 s, warm-up 0.5 s)"
    )


def test_what_a_stopped_engine_had_cached_is_lost() -> None:
    """Each prompt is the same; without a replica between two of them there is nothing to find."""
    lengths = {"prompt": {"draw": "constant", "tokens": 320}, "output": {"draw": "constant", "tokens": 4}}
    lengths["prefix"] = {"draw": "shared", "groups": 1, "tokens": 320}
    load_ = {"requests": 4, "arrivals": {"process": "constant", "rate": 0.1}, "lengths": {"llm": lengths}}
    source = {**LLM, "workload": {"draws": "seeded", **load_}}
    engine = ("deployment.workers.0.engine.enable_prefix_caching", True)

    def found(**said: Any) -> float:
        plain = scaled(source, 1, **said)
        return build.run(load(plain.as_dict(), [engine])).as_dict()["prefix_cache_hit_rate"]

    assert found(least=1) > 0.5
    assert found(least=0, every=1.0) == 0.0


def test_a_row_of_a_sweep_has_how_many_there_were(toy: Path) -> None:
    row = run_point(scaled(toy))
    assert row["most_replicas"] >= 1
    assert row["mean_replicas"] > 0


def test_drawn_starts_differ_by_seed_and_repeat(toy: Path) -> None:
    start = {**STARTS, "draw": "exponential"}

    def held(seed: int) -> float:
        experiment = scaled(toy, start=start, initial=0).model_copy(update={"seed": seed})
        return build.run(experiment).as_dict()["fleet"]["mean_replicas"]

    assert held(1) == held(1) != held(2)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"least": 4}, "least: 4 is above deployment.replicas, 3"),
        ({"initial": 5}, "initial: 5 are no number of replicas"),
        ({"name": "by_queu"}, "name: unknown autoscaler 'by_queu'"),
        ({"params": {"targt": 3}}, "params.targt: autoscaler ByQueue takes no parameter 'targt'"),
        ({"params": {"target": 0}}, "params.target: target is 0"),
        ({"name": "by_schedule", "params": {"points": [[1, 2]]}}, "points are"),
        (
            {"name": "by_schedule", "params": {"points": [[0, 2]]}, "every": None},
            "every: by_schedule goes by the time",
        ),
        ({"start": {"machine": 3}}, "source"),
        ({"start": {**STARTS, "weights": {"gb": 3}}}, "gb_per_s"),
        ({"start": {**STARTS, "weights": -1}}, "weights"),
        ({"every": 0}, "every"),
    ],
)
def test_what_does_not_fit_is_one_line(toy: Path, said: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput) as refused:
        scaled(toy, **said)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_name_forgets_parameters_and_keeps_the_rules(toy: Path) -> None:
    chosen = load(scaled(toy, down_after=7.0).as_dict(), [("deployment.autoscaler.name", "by_utilisation")])
    told = chosen.deployment.autoscaler
    assert told.params == {"target": 0.7, "tolerance": 0.1}
    assert (told.down_after, told.start.machine) == (7.0, 1.0)


def test_those_that_come_along_are_found_by_name_and_say_what_they_are() -> None:
    assert autoscaler_registry.autoscaler_names() == ["by_attainment", "by_queue", "by_schedule", "by_utilisation"]
    for name in autoscaler_registry.autoscaler_names():
        first, parameters = autoscaler_registry.describe(name)
        assert first
        assert parameters


POINTS = ("deployment.autoscaler.params.points", [[0, 1], [5, 3]])
BY_SCHEDULE = ("deployment.autoscaler.name", "by_schedule")
OF_QUEUE = {"name": "by_queue", "params": {"target": 4}, "start": STARTS}


@pytest.mark.parametrize("given", [[BY_SCHEDULE, POINTS], [POINTS, BY_SCHEDULE]])
def test_another_autoscaler_is_set_with_its_parameters(given: list[tuple[str, Any]]) -> None:
    file = {**LLM, "deployment": {"replicas": 3, "autoscaler": OF_QUEUE}}
    scaler = load(file, given).deployment.autoscaler
    assert scaler is not None
    assert (scaler.name, scaler.params) == ("by_schedule", {"points": [[0, 1], [5, 3]], "every": None, "ahead": 0.0})
    with pytest.raises(BadInput, match=r"params.pints: autoscaler BySchedule takes no parameter 'pints' .*points"):
        load(file, [("deployment.autoscaler.params.pints", 1), *given])


def test_another_router_is_set_with_its_parameters() -> None:
    given = [("deployment.router.params.choices", 3), ("deployment.router", "power_of_two")]
    for order in (given, given[::-1]):
        (router,) = load(LLM, order).deployment.routings.values()
        assert (router.name, router.params["choices"]) == ("power_of_two", 3)
    with pytest.raises(BadInput, match=r"--set deployment.router: unknown router 'jsqq' .*jsq"):
        load(LLM, [("deployment.router", "jsqq")])


def test_names_of_modules_and_classes_can_be_set() -> None:
    assert load(LLM, [("deployment.routers.llm", "jsq")]).deployment.routers == {"llm": "jsq"}
    with pytest.raises(BadInput, match=r"--set deployment.routers.lm: no worker's modules begin with 'lm'"):
        load(LLM, [("deployment.routers.lm", "jsq")])


def test_reports_and_runs_say_what_the_replicas_were(tmp_path: Path) -> None:
    prices = ("deployment.prices", {"gpu0": {"per_hour": 0.8, "source": "an example"}})
    experiment = load({**LLM, "deployment": {"replicas": 3, "autoscaler": OF_QUEUE}}, [prices])
    summary = build.run(experiment, tmp_path / "run").as_dict()
    (found,) = [t for t in tables(read([tmp_path / "run"])) if t.caption == "Replicas and what they cost"]
    rows = dict(found.rows)
    assert rows["starts"] == str(summary["fleet"]["starts"])
    assert float(rows["replicas, mean"]) == pytest.approx(summary["fleet"]["mean_replicas"], rel=1e-3)
    assert float(rows["dollars"]) == pytest.approx(summary["cost"]["dollars"], rel=1e-3)
    assert "dollars per million output tokens" in rows
    build.run(load(LLM), tmp_path / "plain")
    assert "Replicas and what they cost" not in [t.caption for t in tables(read([tmp_path / "plain"]))]


def test_a_run_says_that_its_autoscaler_has_nothing_to_choose(capsys: pytest.CaptureFixture[str]) -> None:
    for replicas, said in ((1, True), (2, False)):
        experiment = load({**LLM, "deployment": {"replicas": replicas, "autoscaler": OF_QUEUE}})
        show_run(experiment, build.run(experiment).as_dict(), 1.0, None)
        line = "autoscaler by_queue has nothing to choose: least is 1, and deployment.replicas, the most, is 1"
        assert (line in capsys.readouterr().out.replace("\n", " ")) == said


def seen_by(experiment: Experiment) -> list[FleetState]:
    """What the autoscaler of *experiment* sees in a run."""
    run, seen = build.build(experiment), []
    assert run.loop.fleet is not None
    scaler = run.loop.fleet.scaler
    want = scaler.want

    def told(fleet: FleetState, now: float) -> int:
        seen.append(fleet)
        return want(fleet, now)

    scaler.want = told  # type: ignore[method-assign]
    run.play()
    return seen


ONE = {
    "name": "by_schedule", "every": 5, "window": 5, "params": {"points": [[0, 1]]},
    "start": {"machine": 1, "source": "an example"},
}  # fmt: skip


@pytest.mark.parametrize(("degree", "share"), [(1, 0.5), (2, 1.0)])
def test_of_a_group_the_devices_that_compute_count(degree: int, share: float) -> None:
    """A long request by itself on one of two devices, or on both; then several, two of them long."""
    chosen = {
        "requests": 1, "policy": "fixed-degree", "policy.params.degree": degree, "deployment.workers.0.gpus": 2,
        "workload.arrivals": {"process": "constant", "rate": 0.5}, "deployment.router": "jsq",
        "workload.shape": {"draw": "constant", "size": "2048x2048"}, "deployment.replicas": 2,
        "deployment.autoscaler": ONE,
    }  # fmt: skip
    seen = seen_by(load("flux-groups-published", [*chosen.items()]))
    assert [fleet.utilisation for fleet in seen if 10.0 <= fleet.time <= 15.0] == pytest.approx([share, share])
    five = seen_by(load("flux-groups-published", [*{**chosen, "requests": 5}.items()]))
    assert max(fleet.utilisation for fleet in five) == pytest.approx(1.0)


def test_of_a_model_in_stages_each_stage_counts() -> None:
    """One request: one of four stages computes, or none while activations are sent."""

    def idle(hop: float, costs: bool = True) -> float:
        stages = {"pipeline_parallel_size": 4, "hop_seconds": hop, "source": "assumed"}
        chosen = {
            "requests": 1, "rate": 1.0, "workload.draws": "seeded", "time.costs": costs, "deployment.router": "jsq",
            "policy": "vllm-v1", "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 500, "tpot_ms": 100}},
            "workload.lengths.llm.output": {"draw": "constant", "tokens": 400}, "deployment.replicas": 2,
            "deployment.workers.0.engine": {"blocks": 1000, "pipeline_parallel": stages},
            "deployment.autoscaler": ONE,
        }  # fmt: skip
        seen = next(fleet for fleet in seen_by(load("opt-13b-a6000", [*chosen.items()])) if fleet.time == 10.0)
        return 0.25 / seen.utilisation - 1.0

    assert idle(0.0, costs=False) == pytest.approx(0.0, abs=1e-9)
    none, once, twice = idle(0.0), idle(0.002), idle(0.004)
    assert once - none > 0.1
    assert twice - none == pytest.approx(2.0 * (once - none), rel=0.01)
