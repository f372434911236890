"""vLLM's own scheduler and our vllm-v1 policy decide the same, step by step.

vLLM's V1 scheduler runs as it is, fed with synthetic tokens; the policy runs in the simulated engine, and once more
inside vLLM's scheduler through the adapter. All get the same requests on the same clock. The same holds with
asynchronous scheduling, where a step is decided while the one before it runs.
"""

import random

import pytest
from no_gpu import Asked, replay, replay_ahead, scheduler
from servetwin.core import Module, Pipeline, Recorder, ServingLoop
from servetwin.core.llm import CumulativeSLO, EngineLimits, PromptContent, TokenRequest
from servetwin.core.llm.serving.host import Stages
from servetwin.core.llm.serving.worker import Host, TokenWorker, kind_of_view
from servetwin.core.serving.client import play
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.real.vllm.scheduler import Estimates, PolicyScheduler, Settings, find
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming

#: Engine settings: with room to spare, with prompts in chunks, with too little memory, with few sequences.
SETTINGS = {
    "roomy": {"blocks": 1000, "max_batched_tokens": 2048, "max_sequences": 64},
    "chunks": {"blocks": 1000, "max_batched_tokens": 128, "max_sequences": 64},
    "tight": {"blocks": 220, "max_batched_tokens": 256, "max_sequences": 64},
    "few": {"blocks": 400, "max_batched_tokens": 512, "max_sequences": 8},
}


class Times:
    """Seconds of a step, the same for both."""

    def step(self, tokens, squares, context, batch, decode_context):
        if not tokens:
            constant, slope, _ = self.straight(batch, decode_context)
            return constant + slope * decode_context
        return 0.012 + 4e-5 * (tokens + batch) + 1e-8 * (squares + context)

    def straight(self, batch, context):
        return 0.012 + 5e-5 * batch, 1e-7, float("inf")

    def between(self, sequences):
        return 0.0

    def prefill(self, tokens, squares=None):
        return self.step(tokens, tokens * tokens if squares is None else squares, 0.0, 0, 0)

    def decode(self, batch, context):
        return self.step(0, 0.0, 0.0, batch, context)


def trace(count, rate, seed):
    rng = random.Random(seed)
    now = 0.0
    asked = []
    for i in range(count):
        now += rng.gammavariate(0.25, 4 / rate)
        asked.append(Asked(i, now, rng.randint(8, 600), rng.randint(1, 160)))
    return asked


def together(count, rate, seed):
    """Likewise, in groups of one to six that arrive at the same time, as in traces whose stamps are rounded."""
    rng = random.Random(seed)
    now = 0.0
    asked = []
    while len(asked) < count:
        many = rng.randint(1, 6)
        now += rng.expovariate(rate / 3.5)
        asked += [Asked(len(asked) + k, now, rng.randint(8, 600), rng.randint(1, 160)) for k in range(many)]
    return asked


def seconds(made):
    tokens = sum(n for _, n, _ in made.prefill)
    squares = float(sum(n * n for _, n, _ in made.prefill))
    context = float(sum(n * c for _, n, c in made.prefill))
    return Times().step(tokens, squares, context, len(made.decode), made.context)


class Steps(Recorder):
    wants_batches = True
    wants_token_times = True

    def __init__(self):
        super().__init__()
        self.steps = []
        self.ends = []
        self.times = {}

    def batch(self, batch):
        super().batch(batch)
        self.ends += batch.ends or [batch.end]
        for i in range(batch.count):
            self.steps.append(
                (
                    tuple((t.id, n, c) for t, n, c in batch.prefill),
                    batch.decode,
                    batch.context + i * batch.decode,
                    {t.id for t in batch.preempted},
                )
            )

    def ended(self, request, now):
        super().ended(request, now)
        self.times[request.id] = list(request.tasks[0].times())


def request_of(a):
    prefix = {"llm": PromptContent(a.ids, a.size)} if a.ids else None
    tokens, output = {"llm": (a.prompt, 160)}, {"llm": a.output}
    return TokenRequest(a.id, a.arrival, tokens, output, prefix=prefix, class_name=f"class {a.adapter}")


def simulated(asked, settings, host=None, policy=None, slo=None, speculation=None, shares=None, **limits):
    stage = Pipeline.chain(Module("llm", loop=True)).stages([["llm"]])[0]
    times = Times()
    given = EngineLimits(**settings, whole_prompt=True, **limits)
    view = kind_of_view(given)(
        stage,
        given,
        estimate_prefill=times.prefill,
        estimate_decode=times.decode,
        slo=slo,
    )
    log = Steps()
    executor = SimExecutor(lambda worker: TokenTiming(times))
    worker = TokenWorker(stage, policy or VLLMV1(), view, host=host)
    worker.speculation, worker.stages = speculation, None if shares is None else Stages(shares)
    loop = ServingLoop([stage], [worker], executor, log)
    play(loop, map(request_of, asked))
    executor.run_until_idle()
    return log


@pytest.mark.parametrize("name", SETTINGS)
def test_a_thousand_requests_in_the_simulated_engine(folder, name):
    settings = SETTINGS[name]
    asked = trace(1000, 5.0, seed=1)
    real, times, _ = replay(scheduler(folder, **settings), asked, seconds)
    log = simulated(asked, settings)
    theirs = [(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real]
    same = sum(a == b for a, b in zip(theirs, log.steps, strict=False))
    assert len(theirs) == len(log.steps)
    assert same == len(theirs), f"{len(theirs) - same} of {len(theirs)} steps differ"
    assert log.times == times
    preempted = sum(len(m.preempted) for m in real)
    chunks = sum(c > 0 for m in real for _, _, c in m.prefill)
    assert (preempted > 100) == (name == "tight")
    assert chunks > (500 if name == "chunks" else 0)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rate", [1.0, 5.0])
def test_requests_that_arrive_at_the_same_time(folder, name, rate, ahead):
    """An idle engine takes all of them, as vLLM does."""
    settings = SETTINGS[name]
    asked = together(600, rate, seed=4)
    assert len({a.arrival for a in asked}) < 250
    if ahead:
        real, times, _ = replay_ahead(scheduler(folder, **settings, asynchronous=True), asked, seconds)
        log = simulated(asked, settings, Host(lambda sequences: 0.0, 0.0, ahead=True))
    else:
        real, times, _ = replay(scheduler(folder, **settings), asked, seconds)
        log = simulated(asked, settings)
    theirs = [(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real]
    assert log.steps == theirs
    assert log.times == times
    assert max(len(m.prefill) for m in real) > 1


@pytest.mark.parametrize("name", SETTINGS)
def test_inside_vllms_scheduler(folder, name):
    settings = SETTINGS[name]
    asked = trace(300, 5.0, seed=2)
    real, times, _ = replay(scheduler(folder, **settings), asked, seconds)
    adapted = scheduler(folder, **settings, cls=PolicyScheduler, settings={"policy": "vllm-v1"})
    steps, ours, _ = replay(adapted, asked, seconds, limit=160)
    assert steps == real
    assert ours == times
    assert adapted.free_blocks == adapted.blocks == settings["blocks"]


def decoding(steps, asked):
    """*steps* in which a piece that computes nothing but the last token of a request that found all the rest counts
    as a decode, which is what vLLM's scheduler cannot tell from one."""
    prompts = {a.id: a.prompt for a in asked}
    found = []
    for pieces, decode, context, lost in steps:
        single = [(i, n, c) for i, n, c in pieces if n == 1 and c >= prompts[i]]
        rest = tuple(piece for piece in pieces if piece not in single)
        found.append((rest, decode + len(single), context + sum(c for _, _, c in single), lost))
    return found


#: Blocks -> the share of steps that are the same, decided step by step and ahead. What differs is a block more or
#: less that somebody finds again; with 150 blocks that moves all that comes after.
KEPT = {220: (1.0, 0.999), 400: (1.0, 1.0)}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("blocks", KEPT)
def test_a_preempted_request_finds_what_vllms_prefix_cache_has_kept(folder, blocks, ahead):
    """vLLM with its prefix cache, as by default, and prompts of which no two are alike."""
    settings = {"blocks": blocks, "max_batched_tokens": 256, "max_sequences": 64}
    asked = trace(1000, 5.0, seed=1)
    if ahead:
        real, _, _ = replay_ahead(scheduler(folder, **settings, asynchronous=True, caching=True), asked, seconds)
        log = simulated(asked, settings, Host(lambda sequences: 0.0, 0.0, ahead=True), keep_freed=True)
    else:
        real, _, _ = replay(scheduler(folder, **settings, caching=True), asked, seconds)
        log = simulated(asked, settings, keep_freed=True)
    theirs = decoding([(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real], asked)
    ours = decoding(log.steps, asked)
    preempted = {i for _, _, _, lost in theirs for i in lost}
    assert len(preempted) > (50 if blocks == 220 else 10)
    # Most of them come back to a part of what they had.
    assert sum(c > 0 and c % 16 == 0 and i in preempted for pieces, *_ in theirs for i, _, c in pieces) > 10
    same = sum(a == b for a, b in zip(theirs, ours, strict=False))
    assert same >= KEPT[blocks][ahead] * len(theirs), f"{len(theirs) - same} of {len(theirs)} steps differ"
    assert len(theirs) == len(ours)


#: What the host of an engine that decides ahead may take, in seconds: nothing, or what it does on a GPU and more.
COSTS = {"free": (0.0, 0.0, 0.0), "costly": (0.0004, 0.0002, 0.0015)}


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_thousand_requests_with_asynchronous_scheduling(folder, name, costs):
    """vLLM's scheduler for it, driven as its engine core does, with two steps in flight; and the simulated engine."""
    settings = SETTINGS[name]
    between, intake, begins = COSTS[costs]
    asked = trace(1000, 5.0, seed=1)
    real, times, ends = replay_ahead(
        scheduler(folder, **settings, asynchronous=True),
        asked,
        seconds,
        between=between,
        intake=intake,
        begins=begins,
    )
    log = simulated(asked, settings, Host(lambda sequences: between, intake, ahead=True, begins=begins))
    theirs = [(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real]
    same = sum(a == b for a, b in zip(theirs, log.steps, strict=False))
    assert len(theirs) == len(log.steps)
    assert same == len(theirs), f"{len(theirs) - same} of {len(theirs)} steps differ"
    assert log.ends == pytest.approx(ends, abs=1e-9)
    assert log.times.keys() == times.keys()
    assert all(log.times[i] == pytest.approx(times[i], abs=1e-9) for i in times)
    if costs == "free":
        assert log.times == times
    assert (sum(len(m.preempted) for m in real) > 100) == (name == "tight")


@pytest.mark.parametrize("name", SETTINGS)
def test_inside_vllms_scheduler_with_asynchronous_scheduling(folder, name):
    settings = {**SETTINGS[name], "asynchronous": True}
    asked = trace(300, 5.0, seed=2)
    real, times, _ = replay_ahead(scheduler(folder, **settings), asked, seconds)
    adapted = scheduler(folder, **settings, cls=PolicyScheduler, settings={"policy": "vllm-v1"})
    steps, ours, _ = replay_ahead(adapted, asked, seconds, limit=160)
    assert steps == real
    assert ours == times
    assert adapted.free_blocks == adapted.blocks == settings["blocks"]


#: Policies with their parameters. What a step took, by which NeuStream plans, is not on our clock in the adapter.
POLICIES = {
    "vllm": {},
    "vllm-v1": {},
    "sarathi": {"chunk": 256},
    "edf-llm": {},
    "neustream-llm": {"feedback": False},
    "slack-admission": {},
}


@pytest.mark.parametrize("blocks", [1000, 220])
@pytest.mark.parametrize("name", POLICIES)
def test_policies_inside_vllms_scheduler_with_asynchronous_scheduling(folder, name, blocks):
    """All of them, with deadlines and drops: the steps and token times of their simulation."""
    settings = {"blocks": blocks, "max_batched_tokens": 2048, "max_sequences": 64}
    asked = trace(300, 9.0, seed=3)
    slo = CumulativeSLO(6.0, 2.0, 0.012, 1e-7, Times().prefill)
    adapted = scheduler(folder, **settings, asynchronous=True, cls=PolicyScheduler)
    now = [0.0]
    adapted.now, adapted.zero = lambda: now[0], 0.0
    told = Settings(policy=name, params=POLICIES[name])
    adapted.install(told, estimates=Estimates(Times().prefill, Times().decode, slo))
    real, times, _ = replay_ahead(adapted, asked, seconds, clock=lambda at: now.__setitem__(0, at), limit=160)
    host = Host(lambda sequences: 0.0, 0.0, ahead=True)
    log = simulated(asked, settings, host, policy=find(name)(**POLICIES[name]), slo=slo)
    theirs = [(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real]
    same = sum(a == b for a, b in zip(theirs, log.steps, strict=False))
    assert len(theirs) == len(log.steps)
    assert same == len(theirs), f"{len(theirs) - same} of {len(theirs)} steps differ"
    assert log.times == times
    assert adapted.free_blocks == adapted.blocks
    # (Where memory is set aside for all that a request may put out, nobody is preempted.)
    assert (sum(len(m.preempted) for m in real) > 10) == (blocks == 220 and name != "slack-admission")
    assert any(not ends for ends in times.values()) == (
        name in {"edf-llm", "slack-admission"} or (name == "neustream-llm" and blocks == 220)
    )
