"""Batches of whole requests: what was measured of them can be switched off like any other term."""

from __future__ import annotations

import pytest
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load

ALL = ("whole", "noise", "costs", "contention", "transport")


@pytest.mark.parametrize("workload", ["sd15-512-rtx4090", "dit-s2-256-rtx4090", "dit-xl2-256-rtx4090"])
@pytest.mark.parametrize("policy", ["clockwork", "fcfs"])
def test_a_whole_request_takes_what_its_iterations_take_where_the_term_is_off(workload, policy):
    """To the digit: steps times the scheduler's table, and the modules before and after it once."""
    given = [("policy", policy), ("deployment", "whole-clockwork"), ("deployment.estimates", "scheduler")]
    given += [("requests", 1), ("rate", 0.1), ("time.table", "scheduler"), *((f"time.{term}", False) for term in ALL)]
    experiment = load(workload, given, session="2024-04-28 17:41:55")
    run = build(experiment)
    (worker,) = run.loop.workers
    summary = run.play()
    loop = worker.stage.loop
    estimate = worker.view.estimate
    steps = next(iter(build(experiment).source)).work[loop]
    alone = steps * estimate(loop, 1) + sum(estimate(m, 1) for m in (*worker.stage.before, *worker.stage.after))
    assert next(iter(summary.e2el)) == pytest.approx(alone, rel=1e-9)


def test_the_term_is_on_by_default_and_reads_the_session():
    """Sessions of Clockwork's worker move its batches by some percent; without the term they do not."""
    given = [("variant", "clockwork-ae"), ("requests", 1), ("rate", 0.1), ("time.noise", False)]
    runs = {}
    for whole in (True, False):
        for session in ("2024-04-29 05:00:00", "2024-04-29 10:00:00"):
            experiment = load("sd15-256-rtx4090", [*given, ("time.whole", whole)], session=session)
            runs[whole, session[11:13]] = next(iter(build(experiment).play().e2el))
    assert runs[True, "05"] / runs[True, "10"] == pytest.approx(1.0237 / 0.9881, rel=2e-3)
    assert runs[False, "05"] != runs[True, "05"]
