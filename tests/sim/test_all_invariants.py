"""Every invariant, on random worlds: all policies x pipelines x placements x intakes x timings."""

import pytest
from hypothesis import given, settings
from servetwin.core import RunFolder
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec import loading
from worlds import World, worlds


@given(worlds())
@settings(max_examples=400)
def test_no_run_breaks_a_invariant(world: World) -> None:
    world.run()  # raises InvariantBroken otherwise


@given(worlds())
def test_records_keep_the_invariants(tmp_path_factory, world: World) -> None:
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder, {})
    simulation = world.run(recorder)
    recorder.close()
    stages = simulation.loop.serving.values()
    inputs: dict[str, list[str]] = {}
    for stage in [workers[0].stage for workers in stages]:
        for after in stage.next:
            inputs.setdefault(after.name, []).append(stage.name)
    check_records(folder, inputs)


WORKLOADS = ["dit-s2-256", "dit-xl2-256", "palette-256", "sd15-256", "sd15-512"]


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("policy", ["neustream", "clockwork", "edf", "fcfs"])
def test_the_shipped_workloads_break_no_invariant(workload: str, policy: str) -> None:
    experiment = loading.load(f"{workload}-rtx4090", [("policy", policy)])
    checker = InvariantChecker()
    run = build(experiment, checker)
    checker.watch(run.loop)
    run.play()
    checker.finish()
    assert checker.summary.requests == 500
