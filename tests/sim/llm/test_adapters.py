"""LoRA adapters: who is passed over, and what is loaded when, by hand and under the invariants."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from engines import Anything, Linear, Served, Told, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import ALL, EngineLimits, PromptContent, SessionContent, Step, TokenRequest
from servetwin.core.llm.metrics import StageTokens
from servetwin.core.llm.serving.worker import Host
from servetwin.core.llm.speculation import Speculation
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.profiles.llm.adapter_steps import AdapterSteps
from test_engine_invariants import SLO, workloads
from test_engine_invariants import rows as rows_of
from test_prefix_caching import contents

ADAPTERS = tuple((name, f"adapter of {name}") for name in "abcd")  # class z has none
LOAD = 0.07


def of_classes(rows: Sequence[tuple[float, int, int]], names: Sequence[str]) -> list[TokenRequest]:
    sent = requests(*rows)
    return [
        TokenRequest(r.id, r.arrival, r.tokens, r.outputs, class_name=name)
        for r, name in zip(sent, names, strict=True)
    ]


def adapted(policy, sent: Sequence[TokenRequest], most: int, **limits) -> Served:
    given = {"blocks": 2000, "max_batched_tokens": 64, "max_sequences": 4, **limits}
    return serve(policy, sent, max_loras=most, adapters=ADAPTERS, swap=lambda count: LOAD * count, **given)


def by_hand(sent: Sequence[TokenRequest], most: int, budget: int, sequences: int) -> dict[int, list[float]]:
    """When each token comes out under vLLM's V1 scheduler with ``max_loras``, where memory is no concern."""
    times, adapter_of = Linear(), dict(ADAPTERS)
    prompt, asked = {r.id: r.tokens["llm"][0] for r in sent}, {r.id: r.outputs["llm"] for r in sent}
    adapter = {r.id: adapter_of.get(r.class_name) for r in sent}
    coming, waiting, running = [(r.arrival, r.id) for r in sent], [], []
    out: dict[int, list[float]] = {r.id: [] for r in sent}
    computed = dict.fromkeys(prompt, 0)
    slots: list[str] = []  # on the device, the one that was used longest ago first
    now = 0.0
    while coming or waiting or running:
        while coming and coming[0][0] <= now:
            waiting.append(coming.pop(0)[1])
        left, chunks = budget, {}
        decoding = [i for i in running if out[i]]
        left -= len(decoding)
        for i in running:
            if not out[i] and left > 0:
                chunks[i] = min(prompt[i] - computed[i], left)
                left -= chunks[i]
        used = {adapter[i] for i in running} - {None}
        loads = 0
        for i in [*waiting]:
            if left <= 0 or len(running) == sequences:
                break
            mine = adapter[i]
            if mine is not None and mine not in used and len(used) == most:
                continue
            waiting.remove(i)
            running.append(i)
            chunks[i] = min(prompt[i], left)
            left -= chunks[i]
            used |= {mine} - {None}
        for mine in [adapter[i] for i in chunks if adapter[i] is not None]:
            if mine not in slots:
                if len(slots) == most:
                    slots.remove(next(s for s in slots if s not in used))
                slots.append(mine)
                loads += 1
        if not running:
            now = coming[0][0]
            continue
        context = sum(prompt[i] + len(out[i]) - 1 for i in decoding)
        now += times.step(sum(chunks.values()), 0.0, 0.0, len(decoding), context) + LOAD * loads
        for i in [*decoding, *chunks]:
            computed[i] += chunks.get(i, 0)
            if computed[i] == prompt[i]:
                out[i].append(now)
            if len(out[i]) == asked[i]:
                running.remove(i)
                if adapter[i] in slots:
                    slots.remove(adapter[i])
                    slots.append(adapter[i])
    return out


rows = st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 90), st.integers(1, 12)), min_size=1, max_size=16)


@settings(max_examples=40, deadline=None)
@given(rows, st.lists(st.sampled_from("abcdz"), min_size=16, max_size=16), st.integers(1, 3))
def test_a_run_is_that_of_vllms_rules(asked: list, names: list[str], most: int) -> None:
    sent = of_classes(sorted(asked), names[: len(asked)])
    hand = by_hand(sent, most, 64, 4)
    served = adapted(VLLMV1(), sent, most)
    assert {i: tokens for i, (tokens,) in served.log.tokens.items()} == {
        i: pytest.approx(tokens, abs=1e-9) for i, tokens in hand.items()
    }


def test_who_would_be_one_adapter_too_many_is_passed_over() -> None:
    sent = of_classes([(0.0, 10, 9), (0.01, 10, 3), (0.02, 10, 3), (0.03, 10, 3)], "abaz")
    served = adapted(VLLMV1(), sent, 1)
    started = [request.tasks[0].started for request in served.requests]
    assert started[2] == started[3] < started[1]
    assert started[1] >= served.requests[0].tasks[0].finished


def test_an_adapter_that_is_there_is_not_loaded_again() -> None:
    sent = of_classes([(10.0 * i, 10, 2) for i in range(6)], "abacbz")
    served = adapted(VLLMV1(), sent, 2)
    tasks = [request.tasks[0] for request in served.requests]
    assert [task.adapter_loads for task in tasks] == [1, 1, 0, 1, 1, 0]  # c takes the place of b, b that of a
    assert [task.adapter for task in tasks] == [dict(ADAPTERS).get(name) for name in "abacbz"]
    waits = [task.first_token - task.arrival for task in tasks]
    assert waits[0] - waits[2] == pytest.approx(LOAD)
    summary = StageTokens(None)
    for task in tasks:
        summary.ended(task)
    assert summary.as_dict(1.0)["adapter_loads"] == 4


POLICIES = {
    "anything": lambda seed: Anything(seed),
    "vllm": lambda seed: VLLM(),
    "sarathi": lambda seed: Sarathi(32),
    "neustream-llm": lambda seed: NeuStreamLLM(),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_no_step_has_more_adapters_whatever_a_policy_does(name: str, seed: int) -> None:
    asked = [(0.05 * i, 1 + 7 * i % 40, 1 + 5 * i % 20) for i in range(16)]
    sent = of_classes(asked, ["abcdz"[(i * (seed + 1)) % 5] for i in range(16)])
    most = 1 + seed % 2
    served = adapted(POLICIES[name](seed), sent, most, blocks=30, block_size=8, max_batched_tokens=96, slo=SLO)
    spans = [(t.started, t.finished, t.adapter) for r in served.requests for t in r.tasks if t.started is not None]
    for at in {started for started, _, _ in spans}:
        here = {a for begin, end, a in spans if a is not None and end is not None and begin <= at < end}
        if name in ("vllm", "sarathi"):  # nobody is interrupted there but for memory
            assert len(here) <= most + sum(r.tasks[0].preemptions for r in served.requests)
    assert len(served.log.ends) == 16


AHEAD = Host(lambda sequences: 0.0, 0.0, ahead=True)


@settings(max_examples=12, deadline=None)
@given(
    workload=workloads,
    prefixes=st.lists(contents, min_size=1, max_size=8),
    names=st.lists(st.sampled_from("abcdz"), min_size=1, max_size=8),
    most=st.integers(1, 3),
    host=st.sampled_from([None, AHEAD]),
    caching=st.booleans(),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("name", ["anything", "vllm-v1", "neustream-llm"])
def test_the_invariants_with_a_prefix_cache_and_a_step_ahead(
    name: str,
    workload: list,
    prefixes: list,
    names: list[str],
    most: int,
    host: Host | None,
    caching: bool,
    seed: int,
) -> None:
    policy = {**POLICIES, "vllm-v1": lambda seed: VLLMV1()}[name](seed)
    sent = of_classes(rows_of(workload), [names[i % len(names)] for i in range(len(workload))])
    for request in sent:
        content = prefixes[request.id % len(prefixes)]
        request.prefix = None if content is None else {"llm": content}
    limits = {"blocks": 30, "block_size": 8, "max_batched_tokens": 96}
    served = adapted(policy, sent, most, host=host, enable_prefix_caching=caching, slo=SLO, **limits)
    engine = served.loop.workers[0].engine
    assert len(served.log.ends) == len(sent)
    assert len(engine.loaded) <= most
    assert not engine.passed.keys() & {task for request in sent for task in request.tasks}


def test_nothing_is_found_that_another_adapter_computed() -> None:
    sent = of_classes([(5.0 * i, 50, 2) for i in range(5)], "abazb")
    for request in sent:
        request.prefix = {"llm": PromptContent(("system",), 48)}
    served = adapted(VLLMV1(), sent, 4, enable_prefix_caching=True, block_size=16)
    assert [request.tasks[0].cached_tokens for request in served.requests] == [0, 0, 48, 0, 48]
    worker = served.loop.workers[0]
    assert [worker.finds()(request) for request in sent] == [48] * 5
    sent[0].class_name = "c"
    assert worker.finds()(sent[0]) == 0


def test_a_turn_finds_what_its_session_said_with_its_adapter() -> None:
    sent = of_classes([(0.0, 40, 9), (5.0, 90, 3)], "aa")
    history = SessionContent(0)
    for request in sent:
        request.prefix = {"llm": history}
    served = adapted(VLLMV1(), sent, 1, enable_prefix_caching=True, block_size=16)
    assert served.requests[1].tasks[0].cached_tokens == 48  # of 40 + 9, of which the last was never computed
    summary = StageTokens(None)
    for request in served.requests:
        summary.ended(request.tasks[0])
    assert {"adapter_loads": 1, "prefix_cache_hits": 48}.items() <= summary.as_dict(1.0).items()


def test_the_adapter_of_one_whose_last_token_is_in_flight_makes_room() -> None:
    """As in vLLM: it is in no further step, so another may be in its place before its token is out."""
    sent = of_classes([(0.0, 10, 2), (0.01, 10, 2)], "ab")
    served = adapted(VLLMV1(), sent, 1, host=AHEAD)
    first, second = [request.tasks[0] for request in served.requests]
    assert second.started < first.finished


@settings(max_examples=25, deadline=None)
@given(
    workload=workloads,
    prefixes=st.lists(contents, min_size=1, max_size=8),
    names=st.lists(st.sampled_from("abcdz"), min_size=1, max_size=9),
    most=st.integers(1, 3),
    lookahead=st.sampled_from([0, 2]),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("name", ["anything", "vllm-v1", "sarathi"])
def test_the_invariants_with_drafts(
    name: str,
    caching: bool,
    workload: list,
    prefixes: list,
    names: list[str],
    most: int,
    lookahead: int,
    seed: int,
) -> None:
    policies = {"anything": Anything(seed), "vllm-v1": VLLMV1(), "sarathi": Sarathi(64)}
    rows = rows_of(workload)
    sent = of_classes(rows, [names[i % len(names)] for i in range(len(rows))])
    for request in sent:
        content = prefixes[request.id % len(prefixes)]
        request.prefix = None if content is None else {"llm": content}
    served = adapted(
        policies[name],
        sent,
        most,
        speculation=Speculation(2, (0.7, 0.7), lookahead, reads_states=lookahead > 0),
        enable_prefix_caching=caching,
        blocks=30,
        block_size=8,
        max_batched_tokens=96,
        max_sequences=20,
    )
    engine = served.loop.workers[0].engine
    assert engine.view.free_blocks == 30
    assert len(engine.loaded) <= most
    assert not {**engine.held, **engine.gained}
    spans = [(t.started, t.finished, t.adapter) for t in (r.tasks[0] for r in served.requests) if t.finished]
    if not any(r.tasks[0].preemptions for r in served.requests):
        for begin, *_ in spans:
            assert len({a for b, e, a in spans if b <= begin < e} - {None}) <= most


def test_a_policy_sees_adapters_and_cannot_exceed_them() -> None:
    seen: list[str | None] = []

    def decide(view, now: float) -> Step:
        seen.extend(task.adapter for task in view.waiting)
        assert len({task.adapter for task in view.running} - {None}) <= 1
        return Step([(task, task.pending) for task in view.waiting], ALL)

    served = adapted(Told(decide), of_classes([(0.0, 5, 4), (0.0, 5, 4)], "ab"), 1)
    assert {*seen} == {"adapter of a", "adapter of b"}
    first, second = [request.tasks[0] for request in served.requests]
    assert second.started >= first.finished


def test_all_steps_take_longer() -> None:
    slow, plain = AdapterSteps(Linear(gap=0.002), 1.25), Linear()
    assert slow.decode(3, 500) == pytest.approx(1.25 * plain.decode(3, 500))
    assert slow.prefill(100) == pytest.approx(1.25 * plain.prefill(100))
    constant, slope, _ = slow.straight(3, 500)
    assert constant + 500 * slope == pytest.approx(slow.decode(3, 500))
    assert slow.between(3) == 0.002


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"max_loras": -1}, "max_loras is -1"),
        ({"adapters": ADAPTERS}, "max_loras is 0"),
        ({"max_loras": 1, "keep_freed": True}, "what keep_freed does with adapters"),
        (
            {"max_loras": 1, "enable_prefix_caching": True, "host_blocks": 9},
            "what host_blocks does with adapters",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(more: dict, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        EngineLimits(10, **more)
