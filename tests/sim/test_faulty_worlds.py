"""Workers that fail, slow down, stand still and come back, in random worlds under every invariant."""

import json
from math import nan

from faulty_worlds import FaultRules, FaultyEngines, FaultyWorld, faulty_engines, faulty_worlds
from hypothesis import given, settings
from servetwin.core import RunFolder
from servetwin.core.invariants.record_checker import check_records
from worlds import World


@given(faulty_worlds())
@settings(max_examples=300)
def test_workers_with_batches(world: FaultyWorld) -> None:
    world.run()  # raises InvariantBroken otherwise


@given(faulty_engines())
@settings(max_examples=300)
def test_engines(world: FaultyEngines) -> None:
    world.run()


@given(faulty_worlds())
def test_records(tmp_path_factory, world: FaultyWorld) -> None:
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder, {})
    simulation = world.run(recorder)
    lines = simulation.loop.fleet.lines()
    (folder / "faults.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recorder.close()
    check_records(folder)


@given(faulty_engines())
def test_records_of_engines(tmp_path_factory, world: FaultyEngines) -> None:
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder, {})
    recorder.wants_token_times = True  # some policies promise each token its time
    loop, _ = world.run(recorder)
    (folder / "faults.jsonl").write_text("".join(json.dumps(line) + "\n" for line in loop.fleet.lines()))
    recorder.close()
    check_records(folder)


@given(faulty_worlds(), faulty_engines())
def test_without_faults_nothing_changes(world: FaultyWorld, engines: FaultyEngines) -> None:
    """Lanes that may fail keep the times of those that cannot, to the bit."""
    for some in (world, engines):
        some.copies = max(2, some.copies)  # else only one of the two asks a router
        some.faults = FaultRules([], None, 0, 1.0, None, None)
    ends = []
    for breaks in (True, False):
        requests = world.run(breaks=breaks).requests
        ends.append([(r.outcome, r.finished, [(t.queued, t.started, t.finished) for t in r.tasks]) for r in requests])
        _, sent = engines.run(breaks=breaks)
        ends[-1] += [(r.outcome, r.finished, [(t.started, t.first_token) for t in r.tasks]) for r in sent]
    assert ends[0] == ends[1]


def joined(
    policies: list[str], limits: list[int], requests: int, each: float, router: str = "central"
) -> FaultyWorld:
    """Requests that pass a and b, and then c, where batches of two do not fit; any batch takes *each* seconds."""
    arrivals = [(0.0, 0.5 if each > 0.05 else 10.0, 1)] * requests
    timings = [{"device": [nan, *[each] * 4]} for _ in "abc"]
    groups = [["a"], ["b"], ["c"]]
    intakes = ["before"] * 3
    world = World("join", groups, policies, limits, intakes, timings, [], [0.0] * 3, None, arrivals, 1.0, None, {})
    return FaultyWorld(world, 1, router, FaultRules([], None, 0, 0.0, None, (2, None)))


def test_who_waits_centrally_gets_the_place_of_one_that_ended_elsewhere() -> None:
    """It ended at b while a computed it: a has room when that is over (`soak.py --only faults --seed 5`)."""
    ran = joined(["clockwork-table"] * 3, [1, 2, 1], 3, 0.0625).run()  # raises if one never ends
    assert [request.outcome.value for request in ran.requests] == ["failed", "failed", "met"]


def test_clockwork_does_not_wait_for_batches_that_failed() -> None:
    """Its tracker hears of ends, which those have not (`soak.py --only faults --seed 5`: it decided no more)."""
    ran = joined(["clockwork-table", "clockwork-tracked", "clockwork-table"], [1, 2, 1], 4, 0.0625).run()
    assert all(request.outcome is not None for request in ran.requests)


def test_who_has_ended_holds_no_place_in_an_inbox() -> None:
    """Four end at a while they are in the inbox of b: the fifth waits centrally for b."""
    ran = joined(["edf", "clockwork-tracked", "edf"], [4, 2, 4], 5, 0.004).run()
    assert [request.outcome.value for request in ran.requests] == ["failed"] * 4 + ["met"]


def test_what_was_decided_ahead_of_a_batch_that_failed_is_computed() -> None:
    """At b two batches of two fail, one after the other; who was to follow alone must not vanish with the first."""
    ran = joined(["edf", "clockwork-tracked", "edf"], [1, 2, 1], 5, 0.004, "round_robin").run()
    assert [request.outcome.value for request in ran.requests] == ["failed"] * 4 + ["met"]
