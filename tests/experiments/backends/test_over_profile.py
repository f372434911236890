"""A real run whose iterations took much longer than its profile says tells so."""

import pytest
from servetwin.experiments.assembly.build import make_slo, make_workers
from servetwin.experiments.assembly.pipeline import make_pipeline, stale_unused
from servetwin.experiments.assembly.replicas import expanded
from servetwin.experiments.backends.over_profile import over_profile
from servetwin.experiments.cli.output.run_output import show_real
from servetwin.experiments.spec.loading import load, load_profiles


def _workers(replicas: int):
    experiment = expanded(load("tiny-dit-cpu", [("deployment.replicas", replicas)]))
    profiles = load_profiles(experiment)
    stages = make_pipeline(experiment.pipeline, experiment.name).stages(
        list(dict.fromkeys(tuple(w.modules) for w in experiment.deployment.workers))
    )
    return make_workers(experiment, stages, profiles, make_slo(experiment, profiles)), profiles


def test_all_time_of_iterations_counts_by_profile() -> None:
    workers, profiles = _workers(2)
    table = next(iter(profiles.values())).table("dit", "measured", "scheduler")
    first, second = (w.name for w in workers if w.stage.loop)
    took = {
        first: {"1": {"mean": 2e3 * table(1), "samples": 3}},
        second: {"1": {"mean": 4e3 * table(1), "samples": 1}, "4": {"mean": 2e3 * table(4), "samples": 10}},
    }
    (ratio,) = over_profile(workers, took, profiles).values()
    assert ratio == pytest.approx((10 * table(1) + 20 * table(4)) / (4 * table(1) + 10 * table(4)))


def test_what_ran_no_iteration_tells_nothing() -> None:
    workers, profiles = _workers(1)
    assert over_profile(workers, {}, profiles) == {}


@pytest.mark.parametrize(("ratio", "told"), [(1.4, False), (1.6, True), (12.34, True)])
def test_a_run_says_it_where_they_took_much_longer(ratio: float, told: bool, capsys: pytest.CaptureFixture[str]):
    show_real({"lateness_ms": {}, "gap_ms": {}, "over_profile": {"cpu/tiny-dit": ratio}})
    out = " ".join(capsys.readouterr().out.split())
    assert (f"iterations took {ratio:.1f} times as long as cpu/tiny-dit says" in out) is told


@pytest.mark.parametrize(("router", "told"), [("round_robin", True), ("random", True), ("jsq", False)])
def test_stale_is_said_to_change_nothing_for_routers_that_never_look(router: str, told: bool) -> None:
    said = stale_unused(load("tiny-dit-cpu", [("deployment.router", {"name": router, "stale": 0.5})]))
    line = f"deployment.router: stale changes nothing, as {router} never looks at how workers stand"
    assert said == ([line] if told else [])
    assert stale_unused(load("tiny-dit-cpu", [("deployment.router", router)])) == []
