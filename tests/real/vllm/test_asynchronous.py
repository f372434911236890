"""Asynchronous scheduling with a model computing: a step is decided while the one before it runs.

vLLM gives it up on CPUs; `ahead` forces it there. The scheduling, the engine core's step and the model runner are
vLLM's own, and the model computes in a thread of its own, as on a GPU.
"""

import dataclasses
import random

import ahead
import pytest
from servetwin.core import BadInput, ServeTwinError
from servetwin.core.invariants.record_checker import check_records
from servetwin.core.llm import ALL, CumulativeSLO, Step, TokenPolicy
from servetwin.experiments.backends.profile import measure
from servetwin.experiments.backends.vllm import VllmBackend
from servetwin.experiments.spec.loading import load
from servetwin.profiles.llm.recent_load import recent_load_of
from servetwin.profiles.llm.schema import TokenData, TokenModel
from servetwin.profiles.llm.step_table import TokenTable
from servetwin.profiles.schema import ProfileFile
from servetwin.profiles.tables.cost import Cost
from servetwin.real.vllm.engine import EngineOptions, VllmEngine
from servetwin.real.vllm.internals import own_class, steps_queued
from servetwin.real.vllm.plan import Planned
from servetwin.real.vllm.profiling.fitting.async_fit import begins, between, steady_section
from servetwin.real.vllm.profiling.fitting.grid_fit import _prefill, ratio_costs
from servetwin.real.vllm.profiling.measuring.async_steps import SMALL_ROTATION, Move, Script, both_ends, rests, rotate
from servetwin.real.vllm.profiling.measuring.recent_load import recent_load_costs
from servetwin.real.vllm.profiling.measuring.step_grid import Measured
from servetwin.real.vllm.profiling.profile_content import profile_content
from servetwin.real.vllm.scheduler import AsyncPolicyScheduler, Estimates, Settings, StepLog
from test_serving import POLICIES, SERVES_ALL, Odd, check_tokens, requests
from vllm.v1.core.sched.async_scheduler import AsyncScheduler


@pytest.fixture(scope="module")
def engine(model):
    ahead.force()
    return VllmEngine(EngineOptions(model=str(model[0]), max_sequences=32, kv_bytes=16 << 20, asynchronous=True))


@pytest.fixture(scope="module")
def measured(engine):
    return rotate(engine, SMALL_ROTATION, 2.0)


@pytest.fixture(scope="module")
def profile(engine, measured):
    content = profile_content(
        measured, engine.describe(), SMALL_ROTATION, name="here/tiny", when="today", command="this", source="steps"
    )
    read = ProfileFile.model_validate(content)
    table = TokenTable(read.tokens.kinds["measured"], hold=True)
    solo = read.tokens.solo
    return read, table, CumulativeSLO(500.0, 500.0, solo.d0, solo.d1, table.prefill)


class Dropping(TokenPolicy):
    """Drops every third request once it decodes: a step that computes it is in flight."""

    def decide(self, view, now):
        late = [t for t in view.running if t.id % 3 == 0 and t.decoding]
        gone = set(late)
        rest = [t for t in view.running if t.decoding and t not in gone]
        return Step([(t, t.pending) for t in view.waiting], rest, drop=late)


def test_the_engine_schedules_as_vllm_would(engine):
    assert type(engine.scheduler) is AsyncPolicyScheduler
    assert own_class(engine.scheduler) is AsyncScheduler
    assert engine.core.batch_queue.maxlen == 2


@pytest.mark.parametrize("policy", [None, Odd()], ids=["vllms-own", "odd"])
def test_tokens_are_those_of_the_model_whatever_the_policy(model, engine, policy):
    check_tokens(model, engine, policy)


def test_the_first_call_only_decides(engine):
    engine.empty()
    scheduler = engine.scheduler
    scheduler.install(Settings(policy="vllm-v1"))
    engine.add(Planned(1, 0.0, 20, 3), scheduler.zero)
    assert engine.step() == []
    assert scheduler.in_flight == 1
    with pytest.raises(ServeTwinError, match="1 requests are in the engine"):
        scheduler.install(Settings())
    engine.empty()
    assert (scheduler.in_flight, steps_queued(engine.core)) == (0, 0)
    assert scheduler.free_blocks == scheduler.blocks


@pytest.mark.parametrize("policy", [*POLICIES, *SERVES_ALL])
def test_serves_under_each_policy(engine, profile, policy):
    _, table, slo = profile
    asked = requests(60)
    told = Settings(policy=policy, params=SERVES_ALL.get(policy, {}))
    run = engine.serve(asked, told, estimates=Estimates(table.prefill, table.decode, slo))
    assert [r.id for r in run.requests] == list(range(60))
    assert all(r.outcome == "finished" for r in run.requests)
    ends = {s.end for s in run.steps}
    for r, planned in zip(run.requests, asked, strict=True):
        assert len(r.times) == planned.output
        assert r.times == sorted(r.times)
        assert set(r.times) <= ends  # a token is there when its step is taken in
        assert r.arrival <= r.queued <= r.times[0]
    assert sum(n for s in run.steps for _, n, _ in s.prefill) >= sum(r.prompt for r in asked)
    assert sum(s.decode for s in run.steps) == sum(r.output - 1 for r in asked)
    for a, b in zip(run.steps, run.steps[1:], strict=False):
        assert a.start <= a.decided <= a.scheduled <= a.end <= b.end
        assert a.scheduled <= b.start
        assert b.after == a.end
        assert b.began >= a.end
    # Two at most are in flight: the one after the next is decided when a step is over.
    for a, c in zip(run.steps, run.steps[2:], strict=False):
        assert c.start >= a.end
    assert sum(s.behind for s in run.steps) > len(run.steps) / 3
    assert (engine.scheduler.in_flight, steps_queued(engine.core)) == (0, 0)
    assert engine.scheduler.free_blocks == engine.scheduler.blocks


def test_a_request_is_dropped_while_a_step_computes_it(engine):
    run = engine.serve(requests(40), Settings(), policy=Dropping())
    outcomes = {r.id: r.outcome for r in run.requests}
    assert {i for i, o in outcomes.items() if o == "dropped"} == {
        r.id for r in run.requests if r.id % 3 == 0 and r.output > 1
    }
    for r in run.requests:
        # The token of the step in flight is lost with the request; the one before it is not.
        assert len(r.times) == (r.output if r.outcome == "finished" else len(r.times))
        assert r.outcome == "finished" or len(r.times) <= 1
    assert engine.scheduler.free_blocks == engine.scheduler.blocks


def test_memory_is_taken_from_a_request_whose_token_is_in_flight(engine):
    class Preempts(TokenPolicy):
        def __init__(self):
            self.calls = 0

        def decide(self, view, now):
            self.calls += 1
            chunks = view.admissible([(t, t.pending) for t in view.waiting])
            if not chunks and self.calls % 2 == 0 and len(view.running) > 1:
                return Step((), ALL, preempt=[next(reversed(view.running))])
            return Step(chunks, ALL)

    run = engine.serve(requests(30), Settings(), policy=Preempts())
    assert all(r.outcome == "finished" and len(r.times) == r.output for r in run.requests)
    assert sum(r.preemptions for r in run.requests) > 3


def test_a_run_that_is_stopped_leaves_nothing_in_flight(engine):
    class Slow(TokenPolicy):
        def decide(self, view, now):
            return Step([(t, t.pending) for t in view.waiting], ALL)

    asked = [Planned(i, 0.0, 20, 1500, 1500) for i in range(3)]
    run = engine.serve(asked, Settings(), policy=Slow(), stop_after=0.2)
    assert {r.outcome for r in run.requests} == {"failed"}
    assert (engine.scheduler.in_flight, steps_queued(engine.core)) == (0, 0)
    assert not engine.scheduler.requests


def test_a_policy_that_waits_is_asked_again_in_time(engine):
    class Later(TokenPolicy):
        def __init__(self):
            self.asked = []

        def decide(self, view, now):
            self.asked.append(now)
            if now < 0.2:
                return Step(idle_until=0.2)
            return Step([(t, t.pending) for t in view.waiting], ALL)

    policy = Later()
    run = engine.serve([Planned(0, 0.0, 20, 4)], Settings(), policy=policy)
    assert 0.2 <= run.steps[0].start < 0.3
    assert not run.steps[0].behind
    assert len(policy.asked) < 250  # it slept meanwhile


# -- the profile ------------------------------------------------------------------------------------------------


def test_a_rotation_makes_steps_without_a_gap(measured):
    kinds = {one.kind for one in measured}
    assert kinds == {"fill", "prefill", "decode", "mixed", "chunks", "traffic"}
    for kind in ("prefill", "mixed"):
        steps = [s for one in measured if one.kind == kind for s in one.steps if s.prefill]
        assert 0.6 < sum(s.behind for s in steps) / len(steps) < 0.95
    sizes = {s.decode for one in measured if one.kind == "decode" for s in one.steps}
    assert sizes == set(SMALL_ROTATION.decode)
    mixed = {(len(s.prefill), s.decode) for one in measured if one.kind == "mixed" for s in one.steps if s.prefill}
    assert {n for n, _ in mixed} == set(SMALL_ROTATION.mixed_prompts)
    assert {size for _, size in mixed} == set(SMALL_ROTATION.mixed_sequences)


def test_a_profile_says_what_was_measured(profile, engine, measured):
    read, table, _ = profile
    data: TokenData = read.tokens
    assert data.engine.asynchronous
    assert "asynchronous" in data.step_includes
    model = data.kinds["measured"]
    assert model.surface.batch == SMALL_ROTATION.decode
    assert model.prefill.tokens == SMALL_ROTATION.prefill
    assert model.prefill.prompts == SMALL_ROTATION.prompts
    assert 1e-4 < table.decode(1, 100) < 1
    costs = read.costs
    assert costs["step.between"].by_batch.batch == SMALL_ROTATION.decode
    assert costs["step.begins"].value >= 0.0
    assert "prefill" in costs["step.begins"].statistic
    assert costs["engine.intake"].value > 0
    dry = begins(measured, table)
    assert len(dry["prefill"]) > 3
    assert len(dry["decode"]) > 3


def test_what_lies_between_two_steps():
    def step(start, end, after, decode=4):
        return StepLog(start, start, start, end, [], decode, 0, [], [], 0, 0, after)

    row = [step(0.0, 10.0, 0.0), step(1.0, 20.0, 10.0), step(10.5, 30.0, 20.0, 5), step(35.0, 45.0, 30.0)]
    assert list(between(row)) == [(4, 0.5)]  # the last was decided when nothing ran
    assert [s.seconds for s in row] == [10.0, 10.0, 10.0, 10.0]


def test_a_script_keeps_a_batch_together():
    class View:
        def __init__(self):
            self.waiting = {}
            self.running = {Task(i): None for i in range(9)}

    class Task:
        decoding = True

        def __init__(self, number):
            self.limit = 1 if number == 0 else 50

    view, script = View(), Script(random.Random(1))
    script.moves.extend([Move(0, 3), Move(0, 3), Move(), Move(0, 3), Move(0, 5), Move(0, 3)])
    batches = [script.decide(view, 0.0).decode for _ in range(6)]
    assert batches[0] == batches[1] == batches[3]
    assert batches[2] == ()
    assert len(batches[4]) == 5
    assert all(task.limit > 1 for batch in batches for task in batch)
    rest = script.decide(view, 0.0)
    assert (rest.prefill, rest.decode) == ((), ())


def test_a_profile_from_the_command_line_serves_a_run(engine, tmp_path):
    out = tmp_path / "ahead.yaml"
    found = measure("tiny-opt", out, name="here/tiny-opt", asynchronous=True)
    assert found.token_data.engine.asynchronous
    experiment = load("tiny-opt-cpu", [("deployment.devices.gpu0", str(out)), ("requests", 30)])
    report = VllmBackend().run(experiment, tmp_path / "run")  # asynchronously, as its profile
    assert report.summary.finished == 30
    assert report.engine["options"]["asynchronous"]
    assert 0.0 < report.gap_ms["median"] < 50.0
    check_records(tmp_path / "run")


def test_a_run_tells_how_long_its_launches_took(engine):
    done = engine.serve(requests(8), Settings(), policy=Odd())
    assert len(done.launches) == len(done.steps)
    for launch, step in zip(done.launches, done.steps, strict=True):
        assert launch.sequences == step.decode + len(step.prefill)
        assert launch.tokens == step.decode + sum(tokens for _, tokens, _ in step.prefill)
        assert 0.0 < launch.launched <= launch.sampled
    engine.step()  # outside of a run nobody watches
    assert engine.host_clock.take() == []


def test_what_vllm_will_not_do_is_said(engine, monkeypatch):
    from servetwin.real.vllm import internals

    assert internals.steps_ahead(engine.core)
    monkeypatch.setattr(internals, "steps_ahead", lambda core: False)
    with pytest.raises(BadInput, match="does not schedule asynchronously on cpu"):
        VllmEngine(EngineOptions(asynchronous=True, kv_bytes=4 << 20, max_sequences=4))


def test_both_ends_of_what_runs_in_a_graph():
    assert both_ends((1, 2, 4, 8, 16, 96), (1, 2, 4, 8, 16, 32, 96)) == [1, 2, 3, 4, 5, 8, 9, 16, 96]
    assert both_ends((1, 4, 8), ()) == [1, 4, 8]  # without graphs there are no stairs


def test_decode_batches_between_two_graphs(engine):
    """Padded sizes follow the line between the two ends that were measured, and jump to the next graph; where only
    one end was measured a batch takes what the graph's size does."""

    def surface(sizes):
        steps = [made(0.010 * (1 + (n > 8)) + n * 1e-4, decode=n) for n in sizes for _ in range(8)]
        kinds = [("decode", steps), ("prefill", [made(0.02, prompt=n) for n in (1, 64, 1000) for _ in range(3)])]
        measured = [Measured(kind, in_turn(some), [(8, 1e-4)]) for kind, some in kinds]
        about = engine.describe()
        about["options"] |= {"graphs": [8, 16]}
        rotation = dataclasses.replace(SMALL_ROTATION, decode=(8, 16), contexts=(32,))
        model = steady_section(measured, about, rotation, "here")["tokens"]["kinds"]["measured"]
        return TokenTable(TokenModel.model_validate(model), hold=True)

    ends = surface([8, 9, 16])
    for n in (8, 9, 12, 16):
        assert ends.decode(n, 32 * n) == pytest.approx(0.010 * (1 + (n > 8)) + n * 1e-4)
    assert surface([8, 16]).decode(12, 32 * 12) == pytest.approx(0.0216)


def test_decode_steps_that_chance_made_faster_with_longer_contexts_are_level(engine):
    """On a busy machine the line through the steps of one sequence may fall, or begin below nothing."""

    def solo(*seconds):
        decode = [dataclasses.replace(made(s, decode=1), context=c) for s, c in zip(seconds, (32, 128), strict=True)]
        kinds = [("decode", decode * 6), ("prefill", [made(0.02, prompt=n) for n in (1, 64, 1000)])]
        measured = [Measured(kind, in_turn([dataclasses.replace(s) for s in some]), []) for kind, some in kinds]
        rotation = dataclasses.replace(SMALL_ROTATION, decode=(1,), contexts=(32, 128), prompts=(1,))
        return steady_section(measured, engine.describe(), rotation, "here")["tokens"]["solo"]

    assert solo(0.010, 0.0109)["d0"] == pytest.approx(0.0097, abs=1e-4)
    for falling in ((0.012, 0.010), (0.001, 0.021)):
        assert solo(*falling)["d0"] == pytest.approx(sum(falling) / 2)
        assert solo(*falling)["d1"] == 0.0
        assert "level" in solo(*falling)["statistic"]


def made(seconds, *, decode=0, prompt=0):
    return StepLog(0.0, 0.0, 0.0, seconds, [(0, prompt, 0)] if prompt else [], decode, 32 * decode, [], [], 0, 0, 0.0)


def in_turn(steps):
    """One after the other without a gap."""
    at = 1.0
    for step in steps:
        step.after, step.start, step.end = at, at - 1e-3, at + step.end
        at = step.end
    return steps


def described(engine, graphs):
    about = engine.describe()
    about["options"] |= {"graphs": graphs, "graphs_for": "all"}
    return about


def test_a_step_that_is_launched_kernel_by_kernel_counts_from_when_the_one_before_should_be_over(engine):
    """Decoding takes 10 ms, 2000 tokens take 60; launching them takes 30 from when they are asked for, so the tokens
    of the decode step before come 20 ms late, and theirs 40 ms after those."""
    row = []
    for total, seconds in ((16, 0.02), (512, 0.03), (1024, 0.04), (2000, 0.06)) * 4:
        late = 0.02 if total > 1024 else 0.0
        row += [made(0.01, decode=4), made(0.01 + late, decode=4), made(seconds - late, prompt=total)]
    in_turn(row)
    for step in row:
        if step.prefill and step.prefill[0][1] > 1024:
            step.start = step.after - 0.03
    measured = [
        Measured("decode", in_turn([made(0.01, decode=4) for _ in range(9)]), []),
        Measured("prefill", row, []),
    ]
    rotation = dataclasses.replace(SMALL_ROTATION, decode=(4,), contexts=(32,), prompts=(1,))
    section = steady_section(measured, described(engine, [4, 16, 512, 1024]), rotation, "here")
    table = TokenTable(TokenModel.model_validate(section["tokens"]["kinds"]["measured"]), hold=True)
    assert table.prefill(2000) == pytest.approx(0.06)
    assert table.prefill(1024) == pytest.approx(0.04)
    assert section["tokens"]["engine"]["graph_tokens"] == 1024
    launch = section["costs"]["step.launch"]
    assert (launch["value"], launch["samples"]) == (pytest.approx(0.03), 4)


def test_stalls_of_the_host_are_told_by_what_they_cost(engine):
    """Every tenth of the steps of 10 ms takes 14 ms more, of which the next one makes up for 4; and steps in which
    many come take their time, which is no stall."""
    steps = []
    for _ in range(8):
        steps += [made(0.01, decode=4) for _ in range(8)] + [made(0.024, decode=4), made(0.006, decode=4)]
    steps += [made(0.03, decode=16), made(0.01, decode=16), made(0.01, decode=16), made(0.01, decode=16)]
    measured = [
        Measured("decode", in_turn(steps), []),
        Measured("prefill", in_turn([made(0.02, prompt=n) for n in (1, 64, 1000) for _ in range(3)]), []),
    ]
    rotation = dataclasses.replace(SMALL_ROTATION, decode=(4, 16), contexts=(32,), prompts=(1,))
    costs = steady_section(measured, described(engine, [4, 16, 1024]), rotation, "here")["costs"]
    stall, every = costs["host.stall"], costs["host.stall_every"]
    assert stall["samples"] == every["samples"] == 8
    assert stall["value"] == pytest.approx(0.02)  # 10 ms lost beyond the 10 of the step that ran
    assert 0.1 < every["value"] < 0.15
    assert "host.stall_every.changing" not in costs  # which traffic tells only
    assert max(costs["decode.ratio"]["quantiles"]["values"]) == pytest.approx(1.0)


def test_stalls_are_more_frequent_where_the_batch_changes(engine):
    """In traffic one decode step of twenty that are followed by their like stalls, and one of four that a step with
    prompts follows, or one of fewer sequences."""
    steps = []
    for i in range(80):
        steps += [
            made(0.024 if i % 4 == 0 else 0.01, decode=4) if j == 10 else made(0.01, decode=4) for j in range(20)
        ]
        stalled = made(0.024 if i % 4 == 1 else 0.01, decode=4)
        steps += [stalled, made(0.02, prompt=64) if i % 2 else made(0.01, decode=3)]
    rows = in_turn([made(0.01, decode=4) for _ in range(9)])
    prompts = in_turn([made(0.02, prompt=n) for n in (1, 64, 1000) for _ in range(3)])
    measured = [
        Measured("decode", rows, []),
        Measured("prefill", prompts, []),
        Measured("traffic", in_turn(steps), []),
    ]
    rotation = dataclasses.replace(SMALL_ROTATION, decode=(4,), contexts=(32,), prompts=(1,))
    costs = steady_section(measured, described(engine, [4, 16, 1024]), rotation, "here")["costs"]
    same, changing = costs["host.stall_every"], costs["host.stall_every.changing"]
    assert (same["samples"], changing["samples"]) == (20, 20)
    assert same["value"] > 10 * changing["value"]


def test_steps_are_held_against_what_was_computed_just_before(engine):
    """Among requests as they come, steps with prompts of 200 tokens take 2 % less than in the table where little was
    computed before, and 4 % more where much was; decode steps 1 % less and 3 % more. A stall, and a prompt beyond the
    graphs, count for nothing."""

    def prompt(usual, dense, tokens=200):
        step = made(usual * (1.04 if dense else 0.98), decode=4)
        step.prefill = [(0, tokens - 4, 0)]
        return step

    steps = []
    for _ in range(40):
        steps += [*[made(0.0099, decode=4) for _ in range(30)], prompt(0.02, False)]
        steps += [*[made(0.005, prompt=100) for _ in range(40)], prompt(0.02, True), prompt(0.05, True, 2000)]
        for _ in range(3):
            steps += [*[made(0.005, prompt=100) for _ in range(40)], made(0.0103, decode=4)]
    steps += [*[made(0.0099, decode=4) for _ in range(30)], prompt(0.04, False)]
    measured = [Measured("traffic", in_turn(steps), []), Measured("decode", steps[:5], [])]

    def usual(step):
        return 0.005 if not step.decode else 0.02 if step.prefill else 0.01

    costs = recent_load_costs(measured, usual, 1024, 8192, {"file": "here"})
    recent = recent_load_of({name: Cost.model_validate(cost) for name, cost in costs.items()})
    curves = {kind: curve.limits for kind, curve in recent.curves.items()}
    assert curves == {"decode": [16], "mixed": [384], "prefill": [128, 384]}
    assert costs["mixed.recent_load.384"]["samples"] == 80
    assert costs["mixed.recent_load.384"]["by_batch"]["values"][0] == pytest.approx(0.98, abs=0.005)
    assert costs["mixed.recent_load.384"]["by_batch"]["values"][-1] == pytest.approx(1.04, abs=0.008)
    assert costs["decode.recent_load.16"]["by_batch"]["values"][0] == pytest.approx(0.99, abs=0.002)
    assert recent.curves["decode"].at(4, 20000) == pytest.approx(1.03, abs=0.005)
    assert set(costs["prefill.recent_load.128"]["by_batch"]["values"]) == {1.0}
    # Nothing only computes so many tokens: that goes by what does so beside decoding.
    assert costs["prefill.recent_load.384"]["by_batch"] == costs["mixed.recent_load.384"]["by_batch"]
    assert recent_load_costs(measured[1:], usual, 1024, 8192, {"file": "here"}) == {}


def test_prompts_that_the_traffic_lacks_take_what_they_do_in_rows_where_those_were_dense(engine):
    """In traffic all prompts came beside decode steps that take 2 % less than the table says, whatever was computed
    before: it is the table of those that is wrong, not what a step with prompts takes."""

    def beside(usual):
        step = made(usual, decode=4)
        step.prefill = [(0, 196, 0)]
        return step

    served = [step for _ in range(40) for step in (*[made(0.01, decode=4) for _ in range(9)], beside(0.0196))]
    rows = [step for _ in range(20) for step in (*[made(0.01, decode=4) for _ in range(9)], made(0.02, prompt=200))]
    measured = [Measured("traffic", in_turn(served), []), Measured("prefill", in_turn(rows), [])]
    costs = recent_load_costs(measured, lambda step: 0.02 if step.prefill else 0.01, 1024, 8192, {"file": "here"})
    assert costs["mixed.recent_load.384"]["by_batch"]["values"][-1] == pytest.approx(0.98, abs=0.003)
    assert costs["prefill.recent_load.384"]["by_batch"]["values"][-1] == pytest.approx(1.0, abs=0.003)


def test_a_profile_ends_with_requests_as_they_come(measured):
    served = [one for one in measured if one.kind == "traffic"]
    assert len(served) == 2 * len(SMALL_ROTATION.traffic)
    for one in served:
        assert sum(len(step.prefill) for step in one.steps) > 1
    both = [any(step.prefill and step.decode for step in one.steps) for one in served]
    # vLLM decides, and prefill first, in turn; a busy machine may serve all of one rate's requests one by one.
    assert any(both[::2])
    assert not any(both[1::2])


def test_a_number_of_prompts_that_was_measured_at_few_totals_stands_on_the_stairs_of_one(engine):
    """Alone a prompt takes 10, 20 and 20 ms at 16, 32 and 48 tokens; two at a time, at 16 and 48 only, take 10 %
    more."""
    found = [made(s, prompt=n) for n, s in ((16, 0.010), (32, 0.020), (48, 0.020))]
    for total, seconds in ((16, 0.011), (48, 0.022)):
        step = made(seconds)
        step.prefill = [(0, total // 2, 0), (1, total // 2, 0)]
        found.append(step)
    table = _prefill(found, (1, 2), 100, (16, 32, 48), {"file": "here"})
    assert dict(zip(table["tokens"], table["seconds"][1], strict=True))[32] == pytest.approx(0.022)


def test_prompts_are_measured_among_decode_steps():
    assert [rests(n) for n in (1, 200, 201, 2047)] == [2, 2, 3, 21]


def test_stalls_are_no_part_of_the_ratios():
    usual = [0.99, 1.0, 1.01] * 10
    cost = ratio_costs({"decode": [*usual, 3.0, 0.3], "prefill": usual[:5]}, {"file": "here"})
    assert set(cost) == {"decode.ratio"}
    assert max(cost["decode.ratio"]["quantiles"]["values"]) == 1.01
    assert cost["decode.ratio"]["samples"] == 30
    assert "2 of 32 are left out" in cost["decode.ratio"]["how"]
