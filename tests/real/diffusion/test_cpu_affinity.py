"""The serving thread looks for an undisturbed core, and is free again afterwards."""

import os
import statistics
import threading
import time

import pytest
from servetwin.core import BatchWorker, Module, Pipeline, Recorder, Request, ServingLoop, WorkerView
from servetwin.policies.diffusion.edf import EDF
from servetwin.real.cpu_affinity import EVERY, RESIGNED, PinnedCore, pinned_core, trial
from servetwin.real.executor import RealExecutor, undisturbed


class Machine:
    """Cores that take so many microseconds for a trial, one thread on them, and a clock of its own."""

    def __init__(self, **took):
        self.took = {int(core[1:]): us * 1e-6 for core, us in took.items()}
        self.now = 0.0
        self.at = None
        self.visits = 0  # of a core that is not the thread's
        self.pinned = PinnedCore(self.took, test=self.test, move=self.move, clock=lambda: self.now)

    def test(self):
        assert len(self.at) == 1
        return self.took[self.at[0]]

    def move(self, cores):
        self.at = list(cores)
        self.visits += len(self.at) == 1 and self.at != [self.pinned.core]

    def go_on(self, looks):
        for _ in range(looks):
            self.now += EVERY
            self.pinned.look()


def test_a_run_begins_on_the_least_disturbed_core_and_leaves_all_of_them():
    machine = Machine(c0=30, c3=15, c5=31)
    machine.pinned.enter()
    assert machine.at == [3]
    machine.pinned.leave()
    assert machine.at == [0, 3, 5]


def test_a_core_that_becomes_slow_is_left_within_some_trials():
    machine = Machine(c0=30, c3=15, c5=15.5)
    machine.pinned.enter()
    machine.go_on(20)
    assert machine.at == [3]
    machine.took[3] = 33e-6
    machine.go_on(3)
    assert machine.at == [3]  # not for a moment's sake
    machine.go_on(6)
    assert machine.at == [5]
    assert machine.pinned.moves == 2


def test_where_all_are_slow_the_thread_stays():
    machine = Machine(c0=15, c3=30, c5=31, c7=30)
    machine.pinned.enter()
    machine.took[0] = 31e-6
    machine.visits = 0
    machine.go_on(500)
    assert machine.at == [0]
    assert machine.pinned.moves == 0
    assert 30 < machine.visits <= len(machine.took) + 500 * EVERY / RESIGNED  # it does not try at every look
    machine.took[7] = 16e-6
    machine.go_on(len(machine.took) * int(RESIGNED / EVERY) + 1)
    assert machine.at == [7]


def test_looking_costs_no_trial_before_it_is_due():
    machine = Machine(c0=15, c1=16)
    machine.pinned.enter()
    trials = []
    machine.pinned.test = lambda: trials.append(machine.now) or 15e-6
    for _ in range(100):
        machine.now += EVERY / 50
        machine.pinned.look()
    assert len(trials) in (2, 3)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not let threads be bound")
def test_the_thread_is_free_again_after_a_run():
    before = os.sched_getaffinity(0)
    pinned = PinnedCore()
    with undisturbed(True, pinned):
        assert os.sched_getaffinity(0) == {pinned.core}
        assert 1e-6 < trial() < 0.1
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not let threads be bound")
def test_threads_that_the_bound_one_starts_may_run_anywhere():
    """They begin where it may run, and would take turns with it there."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core")
    over = threading.Event()
    pinned = PinnedCore()
    with undisturbed(True, pinned):
        thread = threading.Thread(target=over.wait)
        thread.start()
        try:
            assert os.sched_getaffinity(thread.native_id) == {pinned.core}
            for _ in range(2):
                time.sleep(EVERY)
                pinned.look()
            assert os.sched_getaffinity(thread.native_id) == before
            assert os.sched_getaffinity(0) == {pinned.core}
        finally:
            over.set()
            thread.join()


class Clocked:
    """A lane on a device that takes 4 ms for whatever it is given."""

    polled = True
    TAKES = 0.004

    def __init__(self, worker):
        self.worker, self.batch, self.leaving = worker, None, []

    def start(self, batch, done):
        self.batch, self.done, self.began = batch, done, time.monotonic()

    def is_over(self):
        return time.monotonic() >= self.began + self.TAKES

    def finish(self):
        batch, self.batch = self.batch, None
        self.done(batch)

    def prepare(self, task):
        pass

    def close(self):
        pass


class Watched:
    """What stands for a `PinnedCore`: notes in which state of *lanes* it is asked to look."""

    def __init__(self, lanes):
        self.lanes, self.seen, self.idle = lanes, [], 0

    def enter(self):
        self.entered = True

    def leave(self):
        self.entered = False

    def look(self):
        began = [lane.began for lane in self.lanes if lane.batch is not None]
        if began:
            self.seen.append(time.monotonic() - max(began))
        else:
            self.idle += 1


def test_it_is_looked_for_when_a_batch_has_just_been_launched_or_nothing_runs():
    """Else the end of what runs would be heard late."""
    (stage,) = Pipeline.chain(Module("dit", loop=True)).stages([["dit"]])
    worker = BatchWorker(stage, EDF(), WorkerView(stage, lambda module, n: Clocked.TAKES, limit=2))
    lane = Clocked(worker)
    executor = RealExecutor({})
    executor.gpu, executor.pinned = True, Watched([lane])
    executor.lanes[worker] = lane
    loop = ServingLoop([stage], [worker], executor, Recorder())
    executor.measured_run(loop, [Request(i, at, 9.0, {"dit": 6}) for i, at in enumerate((0.0, 0.002, 0.5))])
    assert loop.recorder.summary.met == 3
    assert not executor.pinned.entered
    assert executor.pinned.idle > 10  # between the second and the third
    assert len(executor.pinned.seen) >= 10  # seven iterations of the first two, six of the third
    assert statistics.median(executor.pinned.seen) < Clocked.TAKES / 10


def test_it_can_be_switched_off():
    assert pinned_core(False) is None
