"""Simulated time by hand: each case small enough to be worked out on paper."""

from __future__ import annotations

import math

import pytest
from harness import Script, WorkerSetup, one_stage, simulate
from servetwin.core import BadInput, Batch, Decision, Module, Pipeline, Recorder, Repeat, Request
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.sim import MeasuredTiming, SimExecutor, TableTiming

NAN = math.nan
CHAIN = Pipeline.chain(Module("dit", loop=True), Module("vae"))


def requests(*arrivals: float, steps: int = 1) -> list[Request]:
    return [Request(i, t, 1e6, {"dit": steps, "m": steps}) for i, t in enumerate(arrivals)]


def ends(run, stage: str) -> list[float]:
    return [finished for _, _, finished in run.stamps(stage)]


def test_a_batch_takes_as_long_as_its_table_says() -> None:
    run = one_stage(Script(), requests(0.0, 0.5, steps=2), seconds=[1.0, 1.5])
    # 0 starts alone; 1 joins its second iteration, and has one more to itself
    assert ends(run, "m") == [2.5, 3.5]


def test_a_whole_batch_takes_its_iterations_and_the_modules_around_the_loop_once() -> None:
    timing = TableTiming([NAN, 1.0, 1.5], once=[NAN, 0.25, 0.5])
    run = one_stage(FCFS(), requests(0.0, 0.1, 0.2, steps=4), timing=timing)
    assert ends(run, "m") == [4.25, 4.25 + 6.5, 4.25 + 6.5]


def test_noise_is_a_factor_on_each_iteration() -> None:
    factors = iter([1.0, 2.0, 0.5])
    timing = TableTiming([NAN, 1.0], draw=lambda: next(factors))
    together = Script(lambda view, now: Decision(list(view.running or view.waiting), repeat=Repeat(9)))
    assert ends(one_stage(together, requests(0.0, steps=3), timing=timing), "m") == [3.5]


def test_a_word_about_long_iterations_stands_for_one() -> None:
    asked = []

    def decide(view, now) -> Decision:
        asked.append(now)
        return Decision(list(view.running or view.waiting), repeat=Repeat(9, longest=5.0))

    assert ends(one_stage(Script(decide), requests(0.0, steps=3), timing=TableTiming([NAN, 1.0])), "m") == [3.0]
    assert asked == [0.0, 1.0, 2.0, 3.0]


# -- contention -----------------------------------------------------------------------------------------------


def beside(**kwargs):
    """A request that takes 4 s at ``dit`` from 0 s on, and one that enters ``vae`` at 1 s and takes 1 s there."""
    pipeline = Pipeline([Module("dit", loop=True), Module("vae"), Module("end")], [("dit", "end"), ("vae", "end")])
    late = Script(lambda view, now: Decision(list(view.waiting)) if now >= 1.0 else Decision(idle_until=1.0))
    setups = [
        WorkerSetup(["dit"], FCFS(), [4.0]),
        WorkerSetup(["vae"], late, [1.0]),
        WorkerSetup(["end"], FCFS(), [0.0]),
    ]
    return simulate(pipeline, setups, requests(0.0), **kwargs)


def test_workers_that_do_not_contend_leave_each_other_alone() -> None:
    run = beside()
    assert (ends(run, "dit"), ends(run, "vae")) == ([4.0], [2.0])


def test_a_busy_neighbour_slows_a_worker_down() -> None:
    run = beside(contention={("dit", "vae"): (1.0, 0.5)})
    # from 1 s to 2 s half a second of work is done, so half a second is left over
    assert (ends(run, "dit"), ends(run, "vae")) == ([4.5], [2.0])


def test_both_slow_each_other_down() -> None:
    run = beside(contention={("dit", "vae"): (1.0, 0.5), ("vae", "dit"): (1.0, 0.25)})
    # vae takes 4 s at a quarter of its speed: until 5 s. By then dit has done 1 + 4 * 0.5 = 3 s of work.
    assert (ends(run, "vae"), ends(run, "dit")) == ([5.0], [6.0])


def test_workers_on_different_devices_do_not_contend() -> None:
    pipeline = Pipeline([Module("a"), Module("b"), Module("end")], [("a", "end"), ("b", "end")])
    setups = [WorkerSetup(["a"], FCFS()), WorkerSetup(["b"], FCFS(), device="gpu1"), WorkerSetup(["end"], FCFS())]
    run = simulate(pipeline, setups, requests(0.0), contention={("a", "b"): (0.1, 0.1)})
    assert ends(run, "a") == [1.0]


def test_three_rates_multiply() -> None:
    pipeline = Pipeline([Module(m) for m in "abcz"], [(m, "z") for m in "abc"])
    setups = [WorkerSetup([m], FCFS(), [s]) for m, s in (("a", 1.0), ("b", 1.0), ("c", 8.0), ("z", 0.0))]
    run = simulate(pipeline, setups, requests(0.0), contention={("c", "a"): (1.0, 0.5), ("c", "b"): (1.0, 0.5)})
    assert ends(run, "c") == [1.0 + (8.0 - 0.25)]


def test_what_was_measured_of_several_at_once_goes_before_the_product() -> None:
    pipeline = Pipeline([Module(m) for m in "abcz"], [(m, "z") for m in "abc"])
    setups = [WorkerSetup([m], FCFS(), [s]) for m, s in (("a", 1.0), ("b", 2.0), ("c", 8.0), ("z", 0.0))]
    pairs = {("c", "a"): (1.0, 0.5), ("c", "b"): (1.0, 0.5)}
    run = simulate(pipeline, setups, requests(0.0), contention={**pairs, ("c", "a", "b"): (1.0, 0.75)})
    # 1 s beside both, 1 s beside b alone
    assert ends(run, "c") == [2.0 + (8.0 - 0.75 - 0.5)]


def test_a_rate_may_go_by_the_size_of_the_loops_batch() -> None:
    pipeline = Pipeline([Module("dit", loop=True), Module("vae"), Module("end")], [("dit", "end"), ("vae", "end")])
    setups = [
        WorkerSetup(["dit"], FCFS(), [4.0]),
        WorkerSetup(["vae"], FCFS(), [1.0], limit=1),
        WorkerSetup(["end"], FCFS(), [0.0]),
    ]
    # vae gets on at half its speed beside a batch of one, at a quarter beside two
    run = simulate(pipeline, setups, requests(0.0, 0.5, 0.5), contention={("vae", "dit"): (1.0, [1.0, 0.5, 0.25])})
    # dit: request 0 alone until 4 s, then 1 and 2 together until 8 s. vae: 0 until 2 s, 1 until 4 s, 2 until 8 s.
    assert (ends(run, "dit"), ends(run, "vae")) == ([4.0, 8.0, 8.0], [2.0, 4.0, 8.0])


def test_a_rate_may_go_by_both_batches() -> None:
    pipeline = Pipeline([Module("dit", loop=True), Module("vae"), Module("end")], [("dit", "end"), ("vae", "end")])
    late = Script(lambda view, now: Decision(list(view.waiting)) if now >= 1.0 else Decision(idle_until=1.0))
    setups = [
        WorkerSetup(["dit"], FCFS(), [4.0], limit=1),
        WorkerSetup(["vae"], late, [1.0, 1.0]),
        WorkerSetup(["end"], FCFS(), [0.0]),
    ]
    # beside a batch of two the loop gets on at a quarter of its speed, from 1 s to 2 s
    run = simulate(
        pipeline, setups, requests(0.0, 0.0), contention={("dit", "vae"): (1.0, [[1.0], [1.0, 0.5, 0.25]])}
    )
    assert (ends(run, "vae"), ends(run, "dit")) == ([2.0, 2.0], [4.75, 8.75])


# -- host and device ------------------------------------------------------------------------------------------


def measured(n: int, **terms) -> MeasuredTiming:
    terms = {"host": 0.0, "device": 1.0} | terms
    lists = {k: [0.0, *[terms.pop(k)] * n] for k in ("host", "device", "ahead", "before", "after") if k in terms}
    return MeasuredTiming(**lists, **terms)


def stepwise(timing: MeasuredTiming, steps: int = 3, arrivals=(0.0,)) -> list[float]:
    return ends(one_stage(Script(), requests(*arrivals, steps=steps), timing=timing), "m")


def test_a_worker_that_waits_for_its_device_takes_the_slower_of_the_two() -> None:
    assert stepwise(measured(1, host=0.25)) == [3.0]
    assert stepwise(measured(1, host=1.5)) == [4.5]


class Ends(Recorder):
    """When batches ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        self.ends.append(batch.end)


def test_a_host_that_runs_ahead_pays_when_a_request_leaves() -> None:
    # Up to 1 s of device work may be outstanding, so the first iteration is over with the host's part of it.
    ends, setup = Ends(), WorkerSetup(["m"], Script(), timing=measured(1, host=0.25, ahead=1.0))
    simulate(Pipeline([Module("m", loop=True)], []), [setup], requests(0.0, steps=3), recorder=ends)
    assert ends.ends == [0.25, 1.0, 3.0]


def test_joining_and_leaving_cost() -> None:
    assert stepwise(measured(1, join=0.5)) == [3.5]
    assert stepwise(measured(1, leave=(0.25, 0.125))) == [3.375]


def test_after_a_leaver_the_host_is_busy_for_a_while() -> None:
    # The first leaves at 1 s, the second can begin half a second later; who comes to an idle worker does not wait.
    assert stepwise(measured(1, pausing=0.5), steps=1, arrivals=(0.0, 0.5)) == [1.0, 2.5]
    assert stepwise(measured(1, pausing=0.5), steps=1, arrivals=(0.0, 5.0)) == [1.0, 6.0]


def test_while_the_host_is_busy_with_leavers_the_device_is_the_neighbours() -> None:
    pipeline = Pipeline([Module("dit", loop=True), Module("vae"), Module("end")], [("dit", "end"), ("vae", "end")])
    setups = [
        WorkerSetup(["dit"], FCFS(), timing=measured(1, pausing=1.0), limit=1),
        WorkerSetup(["vae"], FCFS(), [2.0], limit=1),
        WorkerSetup(["end"], FCFS(), [0.0]),
    ]
    run = simulate(pipeline, setups, requests(0.0, 0.0), contention={("vae", "dit"): (1.0, 0.5)})
    # dit computes from 0 s to 1 s and from 2 s to 3 s; vae does half a second, a second, and half a second of work
    assert (ends(run, "dit"), ends(run, "vae")) == ([1.0, 3.0], [3.0, 5.0])


def test_modules_around_the_loop_run_with_those_that_join_and_leave() -> None:
    assert stepwise(measured(1, before=0.5, after=0.25)) == [3.75]


def test_after_an_idle_spell_the_first_iterations_are_slow() -> None:
    cold = measured(1, cold=(0.5, 0.25), cold_long=(1.0,), long_spell=10.0)
    assert stepwise(cold, arrivals=(1.0,)) == [1.0 + 3.75]
    assert stepwise(cold, arrivals=(20.0,)) == [20.0 + 4.0]


def test_slow_spells_slow_the_host() -> None:
    class Clearing:
        until = 1.0

        def __call__(self, now: float) -> float:
            self.until = 1.0 if now < 1.0 else float("inf")
            return 3.0 if now < 1.0 else 1.0

    slow = measured(1, host=1.0, device=0.0, slow_spells=Clearing())
    assert stepwise(slow) == [3.0 + 1.0 + 1.0]


def test_scheduling_takes_time_for_each_request_that_is_left_out() -> None:
    one_by_one = Script(lambda view, now: Decision([*view.running, *view.waiting][:1]))
    run = one_stage(one_by_one, requests(0.0, 0.5, 0.5), timing=measured(8, deciding=0.125))
    assert ends(run, "m") == [1.0, 2.125, 3.125]


# -- transport, and the calendar ------------------------------------------------------------------------------


def test_transport_takes_time_from_the_client_and_between_workers() -> None:
    delays = {(None, "dit"): lambda task: 0.5, ("dit", "vae"): lambda task: 0.25}
    run = simulate(CHAIN, [WorkerSetup(["dit"], FCFS()), WorkerSetup(["vae"], FCFS())], requests(1.0), delays=delays)
    assert run.stamps("dit") == [(1.5, 1.5, 2.5)]
    assert run.stamps("vae") == [(2.75, 2.75, 3.75)]


def test_a_delay_is_drawn_for_every_request() -> None:
    draws = iter([0.5, 0.25])
    run = simulate(
        CHAIN,
        [WorkerSetup(["dit"], FCFS(), [0.0]), WorkerSetup(["vae"], FCFS(), [0.0])],
        requests(0.0, 1.0),
        delays={("dit", "vae"): lambda task: next(draws)},
    )
    assert [queued for queued, *_ in run.stamps("vae")] == [0.5, 1.25]


def test_time_is_taken_to_the_bit() -> None:
    times = [0.1, 0.1 + 0.2, 0.7, 1e9 + 0.1]
    run = one_stage(FCFS(), requests(*times), loop=False, seconds=[0.0])
    assert [started for _, started, _ in run.stamps("m")] == times


def test_nothing_can_be_called_in_the_past() -> None:
    executor = SimExecutor(lambda worker: TableTiming([NAN, 1.0]))
    executor.call_at(2.0, lambda: None)
    executor.run_until_idle()
    with pytest.raises(BadInput, match=r"a call at 1 s, but it is 2 s already \(right would be: a time to come\)"):
        executor.call_at(1.0, lambda: None)


def test_a_call_may_be_cancelled() -> None:
    executor, rung = SimExecutor(lambda worker: TableTiming([NAN, 1.0])), []
    executor.call_at(1.0, lambda: rung.append(1)).cancel()
    executor.call_at(2.0, lambda: rung.append(2))
    executor.run_until_idle()
    assert rung == [2]


def test_calls_at_one_time_come_in_the_order_in_which_they_were_asked_for() -> None:
    executor, rung = SimExecutor(lambda worker: TableTiming([NAN, 1.0])), []
    for i in range(5):
        executor.call_at(1.0, lambda i=i: rung.append(i))
    executor.run_until_idle()
    assert rung == [0, 1, 2, 3, 4]
