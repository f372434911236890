"""Prefix caching in real runs: what begins alike is found in vLLM's cache, policies see it before they decide, the
steps are those of the simulation, and records and summary say what was found."""

import json
import random

import pytest
from no_gpu import Asked, replay, replay_ahead, scheduler
from servetwin.core import BadInput
from servetwin.core.invariants.record_checker import check_records
from servetwin.core.llm import CumulativeSLO, PromptContent
from servetwin.core.llm.serving.worker import Host
from servetwin.experiments.backends.vllm import VllmBackend
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.replay import folder as replay_folder
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.real.vllm.engine import EngineOptions, VllmEngine, bytes_per_token
from servetwin.real.vllm.plan import Planned
from servetwin.real.vllm.prompts import Prompts
from servetwin.real.vllm.scheduler import Estimates, PolicyScheduler, Settings, find
from test_prefix_caching import SETTINGS, shared, turns
from test_same_decisions import Times, seconds, simulated

#: Policies with their parameters, as in test_same_decisions; and what orders the queue.
POLICIES = {
    "vllm-v1": {},
    "vllm": {},
    "sarathi": {"chunk": 256},
    "edf-llm": {},
    "slack-admission": {},
    "slos-serve": {},
}
#: (policy, settings, requests, block size, whether steps are decided ahead): each value of each at least once.
SOME = [
    ("vllm-v1", "chunks", shared, 16, True),
    ("vllm-v1", "tighter", turns, 16, False),
    ("vllm", "tight", shared, 32, False),
    ("sarathi", "tighter", turns, 16, True),
    ("edf-llm", "tighter", shared, 16, True),
    ("slack-admission", "tight", turns, 16, False),
    ("slos-serve", "roomy", shared, 32, True),
    ("slos-serve", "tighter", shared, 16, False),
]


@pytest.mark.parametrize(("name", "settings", "kind", "size", "ahead"), SOME)
def test_policies_inside_vllms_scheduler_decide_as_in_the_simulated_engine(folder, name, settings, kind, size, ahead):
    limits = {**SETTINGS[settings], "blocks": SETTINGS[settings]["blocks"] * 16 // size}
    if name != "vllm-v1":
        limits["max_batched_tokens"] = 2048
    asked = kind(120, 5.0, seed=1)
    slo = CumulativeSLO(6.0, 2.0, 0.012, 1e-7, Times().prefill)
    adapted = scheduler(folder, **limits, caching=True, block_size=size, asynchronous=ahead, cls=PolicyScheduler)
    now = [0.0]
    adapted.now, adapted.zero = lambda: now[0], 0.0
    told = Settings(policy=name, params=POLICIES[name])
    adapted.install(told, estimates=Estimates(Times().prefill, Times().decode, slo))
    play = replay_ahead if ahead else replay
    real, times, _ = play(adapted, asked, seconds, clock=lambda at: now.__setitem__(0, at), limit=160)
    host = Host(lambda sequences: 0.0, 0.0, ahead=True) if ahead else None
    policy = find(name)(**POLICIES[name])
    log = simulated(asked, limits, host, policy=policy, slo=slo, block_size=size, enable_prefix_caching=True)
    theirs = [(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real]
    differ = [i for i, (a, b) in enumerate(zip(theirs, log.steps, strict=False)) if a != b]
    assert not differ, (
        f"{len(differ)} of {len(theirs)} steps differ, first {theirs[differ[0]]}, {log.steps[differ[0]]}"
    )
    assert len(theirs) == len(log.steps)
    assert log.times == times
    assert adapted.free_blocks == adapted.blocks
    assert sum(c > 0 and c % size == 0 for pieces, *_ in theirs for _, _, c in pieces) > 25
    # (Where memory is set aside for all that a request may put out, nobody is preempted.)
    lost = sum(len(m.preempted) for m in real)
    assert (lost > 3) == (settings in ("tight", "tighter") and name != "slack-admission")


def grouped(count, groups=3, size=100):
    """Requests that come all at once: of groups with a beginning of their own, and some of none."""
    rng = random.Random(5)
    asked = []
    for i in range(count):
        group = rng.randrange(groups + 1)
        ids = (group,) if group < groups else ()
        asked.append(Asked(i, 0.0, rng.randint(60, 260), rng.randint(20, 120), ids, size))
    return asked


@pytest.fixture(scope="module")
def small():
    """An engine of a tiny model whose memory holds some 900 tokens."""
    options = EngineOptions(
        max_model_len=512,
        max_batched_tokens=128,
        max_sequences=16,
        kv_bytes=61 * 16 * bytes_per_token("tiny", "float32"),
        enable_prefix_caching=True,
    )
    engine = VllmEngine(options)
    yield engine
    engine.close()


def test_a_real_model_makes_the_steps_of_the_simulation(small):
    """With preemptions, twice: the second run finds nothing of the first."""
    asked = grouped(40)
    limits = {"blocks": small.scheduler.blocks, "max_batched_tokens": 128, "max_sequences": 16}
    log = simulated(asked, limits, enable_prefix_caching=True)
    for _ in range(2):
        small.empty()
        small.scheduler.install(Settings(), policy=VLLMV1())
        small.begin_prompts()
        small.scheduler.keep_log = True
        for a in asked:
            prefix = PromptContent(a.ids, a.size) if a.ids else None
            small.add(Planned(a.id, 0.0, a.prompt, a.output, 160, prefix=prefix), small.scheduler.zero)
        while small.engine.has_unfinished_requests():
            small.step()
        steps = [(tuple(s.prefill), s.decode, s.context, set(s.preempted)) for s in small.scheduler.log]
        assert steps == log.steps
        assert sum(len(lost) for *_, lost in steps) > 5
        assert sum(c > 0 and c % 16 == 0 for pieces, *_ in steps for _, _, c in pieces) > 15


def test_prompts_begin_alike_where_that_is_said_and_nowhere_else():
    prompts = Prompts(512)
    names = [("a",), ("a", "b"), ("a", "c"), ("d",), ()]
    contents = [PromptContent(name, 30) if name else None for name in names] * 200
    made = [prompts.ids(Planned(i, 0.0, 90, 1, prefix=content)) for i, content in enumerate(contents)]
    assert {len(ids) for ids in made} == {90}
    assert min(map(min, made)) >= 4
    assert max(map(max, made)) < 508

    def alike(i, j):
        return next((k for k in range(90) if made[i][k] != made[j][k]), 90)

    rng = random.Random(0)
    for _ in range(3000):
        i, j = sorted(rng.sample(range(len(made)), 2))
        a, b = names[i % 5], names[j % 5]
        same = next((k for k in range(3) if k >= min(len(a), len(b)) or a[k] != b[k]), 0)
        assert 30 * same <= alike(i, j) < 30 * same + 3


CACHING = [
    ("policy", "vllm-v1"),
    ("requests", 40),
    ("slo.prefill", 500),
    ("slo.decode", 500),
    ("deployment.workers.0.engine.enable_prefix_caching", True),
    ("workload.lengths.llm.prompt", {"draw": "uniform", "low": 70, "high": 200}),
    ("workload.lengths.llm.prefix", {"draw": "shared", "groups": 2, "tokens": 70}),
]


@pytest.fixture(scope="module")
def backend():
    made = VllmBackend()
    yield made
    made.close()


def test_a_run_says_what_was_found_and_is_repeated_with_caching_on(backend, tmp_path):
    experiment = load("tiny-opt-cpu", CACHING)
    summary = backend.run(experiment, tmp_path / "real").summary.as_dict()
    check_records(tmp_path / "real")
    lines = [json.loads(line) for line in (tmp_path / "real" / "requests.jsonl").read_text().splitlines()]
    stays = [line["stages"][0] for line in lines]
    assert sum(stay["cached"] for stay in stays) == summary["prefix_cache_hits"]
    assert sum(stay["prompt"] for stay in stays) == summary["prefix_cache_queries"]
    size = json.loads((tmp_path / "real" / "meta.json").read_text())["engine"]["block_size"]
    # All but the first of each group, and those that came with them, find what all of a group have.
    assert {stay["cached"] for stay in stays} == {0, 70 // size * size}
    assert sum(stay["cached"] == 0 for stay in stays) <= 8
    (again,) = replay_folder.find(tmp_path / "real")
    row = replay_folder.replay(tmp_path / "real", again.experiment, tmp_path / "again")
    repeated = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert row["requests"] == 40
    assert repeated["prefix_cache_queries"] == summary["prefix_cache_queries"]
    assert abs(repeated["prefix_cache_hits"] - summary["prefix_cache_hits"]) <= 4 * 70
    assert set(repeated) == set(summary)


def test_what_an_engine_on_vllm_does_not_keep_is_refused(backend, tmp_path):
    kept = ("deployment.workers.0.engine.keep_freed", True)
    with pytest.raises(BadInput, match="keeps what a preempted request left in its prefix cache"):
        backend.run(load("tiny-opt-cpu", [kept]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
