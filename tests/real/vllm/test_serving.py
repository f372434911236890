"""A tiny OPT served for real, by vLLM on the CPU, under each policy; measured, and compared with its simulation."""

import os
import random
import time

import pytest
import torch
from servetwin.core import BadInput, Module, Pipeline, Recorder, ServingLoop
from servetwin.core.llm import ALL, CumulativeSLO, EngineLimits, Step, TokenPolicy, TokenRequest, TokenView
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.client import play
from servetwin.experiments.registry import policy_registry
from servetwin.profiles.llm.schema import TokenData
from servetwin.profiles.llm.step_table import TokenTable
from servetwin.real.cpu_affinity import PinnedCore
from servetwin.real.vllm import engine as engine_module
from servetwin.real.vllm.engine import EngineOptions, VllmEngine
from servetwin.real.vllm.plan import Planned
from servetwin.real.vllm.profiling.fitting.grid_fit import tokens_section
from servetwin.real.vllm.profiling.measuring.step_grid import SMALL, measure
from servetwin.real.vllm.scheduler import Estimates, Settings
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming

POLICIES = ["vllm-v1", "vllm", "neustream-llm", "edf-llm", "sarathi"]
#: One more, which drops whom a slow machine makes late: so not here.
SERVES_ALL = {"slack-admission": {"drop_late": False}}


class Odd(TokenPolicy):
    """Does what no sensible policy would: small chunks out of order, halves in turns, preemptions for nothing."""

    def __init__(self):
        self.steps = 0

    def decide(self, view, now):
        self.steps += 1
        if self.steps % 11 == 0 and len(view.running) > 1:
            return Step((), [], preempt=[next(iter(view.running))])
        open_prompts = [t for t in view.running if not t.decoding]
        chunks = [(t, min(16, t.pending)) for t in open_prompts or list(view.waiting)[-1:]]
        ready = [t for t in view.running if t.decoding]
        return Step(chunks, ready[self.steps % 2 :: 2] or (() if chunks else ALL))


@pytest.fixture(scope="module")
def engine(model):
    return VllmEngine(EngineOptions(model=str(model[0]), max_sequences=32, kv_bytes=16 << 20))


@pytest.fixture(scope="module")
def profile(engine):
    section = tokens_section(measure(engine, SMALL), engine.describe(), SMALL, "steps")
    data = TokenData.model_validate(section["tokens"])
    table = TokenTable(data.kinds["measured"], hold=True)
    return section, table, CumulativeSLO(500.0, 500.0, data.solo.d0, data.solo.d1, table.prefill)


def requests(count, rate=60.0, seed=3):
    rng = random.Random(seed)
    now = 0.0
    planned = []
    for i in range(count):
        now += rng.expovariate(rate)
        planned.append(Planned(i, now, rng.randint(5, 200), rng.randint(1, 24), 32))
    return planned


def check_tokens(model, engine, policy):
    """What *engine* generates under *policy* is what *model* generates for each prompt alone."""
    from vllm import SamplingParams

    prompts = [[5 + (7 * i + 3 * j) % 400 for j in range(4 + 9 * i)] for i in range(6)]
    engine.empty()
    engine.scheduler.install(Settings(), policy=policy)
    for i, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False, temperature=0.0)
        engine.engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
    out = {}
    while engine.engine.has_unfinished_requests():
        for one in engine.step():
            if one.finished:
                out[int(one.request_id)] = list(one.outputs[0].token_ids)
    with torch.no_grad():
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([prompt])
            alone = model[1].generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=1)
            assert out[i] == alone[0, len(prompt) :].tolist()


@pytest.mark.parametrize("policy", [None, Odd()], ids=["vllms-own", "odd"])
def test_tokens_are_those_of_the_model_whatever_the_policy(model, engine, policy):
    check_tokens(model, engine, policy)


@pytest.mark.parametrize("policy", [*POLICIES, *SERVES_ALL])
def test_serves_under_each_policy(engine, profile, policy):
    _, table, slo = profile
    asked = requests(80)
    told = Settings(policy=policy, params=SERVES_ALL.get(policy, {}))
    run = engine.serve(asked, told, estimates=Estimates(table.prefill, table.decode, slo))
    assert [r.id for r in run.requests] == list(range(80))
    assert all(r.outcome == "finished" for r in run.requests)
    for r, planned in zip(run.requests, asked, strict=True):
        assert len(r.times) == planned.output
        assert r.times == sorted(r.times)
        assert r.arrival <= r.queued <= r.times[0]
        assert r.arrival >= planned.arrival - 1e-4
    assert sum(n for s in run.steps for _, n, _ in s.prefill) >= sum(r.prompt for r in asked)
    assert sum(s.decode for s in run.steps) == sum(r.output - 1 for r in asked)
    for a, b in zip(run.steps, run.steps[1:], strict=False):
        assert a.start <= a.decided <= a.scheduled <= a.end <= b.start
    assert engine.scheduler.free_blocks == engine.scheduler.blocks


def test_what_a_policy_drops_ends_as_dropped(engine, profile):
    _, table, slo = profile
    tight = CumulativeSLO(1e-6, 1.0, slo.d0, slo.d1, table.prefill)  # nobody can be on time
    estimates = Estimates(table.prefill, table.decode, tight)
    run = engine.serve(requests(20), Settings(policy="edf-llm"), estimates=estimates)
    assert {r.outcome for r in run.requests} == {"dropped"}


def test_a_run_that_is_stopped_fails_what_is_left(engine):
    class Never(TokenPolicy):
        def decide(self, view, now):
            return Step()

    run = engine.serve(requests(5), Settings(), policy=Never(), stop_after=0.2)
    assert {r.outcome for r in run.requests} == {"failed"}
    assert run.seconds < 5
    assert not engine.scheduler.requests


def test_a_profile_says_what_was_measured(profile, engine):
    section, table, _ = profile
    data = TokenData.model_validate(section["tokens"])
    assert data.kv.blocks == engine.scheduler.blocks
    model = data.kinds["measured"]
    assert model.surface.batch == SMALL.decode
    assert model.prefill.tokens[-1] == 1000
    assert 1e-4 < table.decode(1, 100) < 1
    assert table.prefill(1000) > table.prefill(16)
    assert section["costs"]["step.between"]["by_batch"]["batch"][-1] == 32
    assert section["costs"]["engine.intake"]["value"] > 0


class Steps(Recorder):
    wants_batches = True

    def __init__(self):
        super().__init__()
        self.steps = []

    def batch(self, batch):
        super().batch(batch)
        for i in range(batch.count):
            context = batch.context + i * batch.decode
            self.steps.append(([(t.id, n, c) for t, n, c in batch.prefill], batch.decode, context))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_simulation_makes_the_same_steps(engine, profile, policy):
    """With a model computing, too.

    One request first, the others while its prompt is computed: so events come in the same order however long steps
    take here (on a shared CPU they take five times as long at one time as at another).
    """
    _, table, slo = profile
    asked = requests(70)
    engine.empty()
    scheduler = engine.scheduler
    scheduler.install(Settings(policy=policy), estimates=Estimates(table.prefill, table.decode, slo))
    scheduler.keep_log = True
    scheduler.zero = zero = time.monotonic()
    engine.add(asked[0], zero)
    engine.step()
    for planned in asked[1:]:
        engine.add(planned, zero)
    while engine.engine.has_unfinished_requests():
        engine.step()
    scheduler.keep_log = False
    real = [([tuple(p) for p in s.prefill], s.decode, s.context) for s in scheduler.log]

    stage = Pipeline.chain(Module("llm", loop=True)).stages([["llm"]])[0]
    limits = EngineLimits(engine.scheduler.blocks, 16, 0.0, 2048, 32, whole_prompt=True)
    view = TokenView(
        stage, limits, estimate_prefill=table.prefill, estimate_decode=table.decode, slo=slo, name="engine"
    )
    log = Steps()
    executor = SimExecutor(lambda worker: TokenTiming(table))
    loop = ServingLoop([stage], [TokenWorker(stage, policy_registry.make(policy, {}), view)], executor, log)
    sent = (
        TokenRequest(p.id, 1e-9 * (i > 0), {"llm": (p.prompt, p.limit)}, {"llm": p.output})
        for i, p in enumerate(asked)
    )
    play(loop, sent)
    executor.run_until_idle()
    assert log.steps == real
    assert len(real) > 20


def test_a_model_that_is_not_there():
    with pytest.raises(BadInput, match="there is no model"):
        VllmEngine(EngineOptions(model="nowhere/at-all"))


def test_the_thread_that_launches_steps_keeps_an_undisturbed_core(engine, monkeypatch):
    """As on a GPU; what it starts meanwhile, the client too, may run on all cores."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core")
    seen = []
    monkeypatch.setattr(engine, "pinned", PinnedCore())
    step, client = engine.engine.step, engine_module.Client

    def stepped():
        seen.append(os.sched_getaffinity(0))
        return step()

    def begun(due):
        one = client(due)
        clients.append(os.sched_getaffinity(one._process.pid))
        return one

    clients = []
    monkeypatch.setattr(engine.engine, "step", stepped)
    monkeypatch.setattr(engine_module, "Client", begun)
    with engine.undisturbed():
        run = engine.serve(requests(10), Settings(policy="vllm_v1"))
    assert {served.outcome for served in run.requests} == {"finished"}
    assert all(len(at) == 1 for at in seen)
    assert clients == [cores]
    assert run.moves is not None
    assert os.sched_getaffinity(0) == cores
