"""Workers that fail, slow down, stand still and come back, in random worlds under every invariant."""

import json

from faulty_worlds import FaultRules, FaultyEngines, FaultyWorld, faulty_engines, faulty_worlds
from hypothesis import given, settings
from servetwin.core import RunFolder
from servetwin.core.invariants.record_checker import check_records


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
