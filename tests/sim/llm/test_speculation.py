"""Speculative decoding: tokens a step against the closed form, runs against a small model of vLLM's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from engines import Anything, Linear, Served, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import EngineLimits, SessionContent, TokenRequest
from servetwin.core.llm.metrics import StageTokens
from servetwin.core.llm.speculation import Speculation
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.profiles.llm.speculative_steps import SpeculativeSteps, StatedDrafts
from test_engine_invariants import rows as rows_of
from test_engine_invariants import workloads
from test_prefix_caching import contents


def by_hand(
    sent: Sequence[TokenRequest], speculation: Speculation, times: Linear, *, blocks: int, size: int, budget: int
) -> dict[int, list[float]]:
    """When each token comes out under vLLM's V1 scheduler, request by request and step by step."""
    k, ahead = speculation.drafts, speculation.lookahead
    prompt = {r.id: r.tokens["llm"][0] for r in sent}
    asked = {r.id: r.outputs["llm"] for r in sent}
    dice = {r.id: speculation.dice(r.id, "llm") for r in sent}
    out: dict[int, list[float]] = {r.id: [] for r in sent}
    computed, held = dict.fromkeys(prompt, 0), dict.fromkeys(prompt, 0)
    coming, waiting, running = [(r.arrival, r.id) for r in sent], [], []
    now = 0.0
    while coming or waiting or running:
        while coming and coming[0][0] <= now:
            waiting.append(coming.pop(0)[1])
        left, step, preempted = budget, {}, False

        def free() -> int:
            return blocks - sum(held.values())

        def known(i: int) -> int:
            return prompt[i] + len(out[i])

        place = 0
        while place < len(running):
            i = running[place]
            decodes = known(i) - computed[i] == 1 and out[i]
            new = 1 + k if decodes else min(known(i) - computed[i], left)
            if not new:
                break
            need = -(-(computed[i] + new + ahead) // size)
            while i in running and need - held[i] > free():
                last = running.pop()
                left += step.pop(last, 0)
                computed[last] = held[last] = 0
                waiting.insert(0, last)
                preempted = True
            if i not in running:
                break
            held[i], step[i] = max(held[i], need), new
            left -= new
            place += 1
        while waiting and left > 0 and not preempted:
            i = waiting[0]
            new = min(known(i), left)
            need = -(-(new + ahead) // size)
            if need > free():
                break
            running.append(waiting.pop(0))
            held[i], step[i] = need, new
            left -= new
        if not step:
            if not coming:
                assert not waiting
                break
            now = coming[0][0]
            continue
        decoding = [i for i in step if out[i] and known(i) - computed[i] == 1]
        prefill = [i for i in step if i not in decoding]
        now += SpeculativeSteps(times, k, StatedDrafts(0.0, 0.0)).step(
            sum(step[i] for i in prefill), 0.0, 0.0, len(decoding), sum(computed[i] for i in decoding)
        )
        for i in step:
            if i in decoding:
                count = min(1 + dice[i](), asked[i] - len(out[i]))
                computed[i] += count
            else:
                computed[i] += step[i]
                count = int(computed[i] == known(i))
            out[i] += [now] * count
            if len(out[i]) == asked[i]:
                running.remove(i)
                held[i] = 0
    return out


def simulated(sent: Sequence[TokenRequest], speculation: Speculation, times: Linear, policy=None, **limits) -> Served:
    steps = SpeculativeSteps(times, speculation.drafts, StatedDrafts(0.0, 0.0))
    return serve(policy or VLLMV1(), sent, times=steps, speculation=speculation, **limits)  # type: ignore[arg-type]


rows = st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=14)


@settings(max_examples=40, deadline=None)
@given(
    rows,
    st.integers(1, 5),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.booleans(),
    st.sampled_from([(400, 16), (34, 4), (30, 8)]),
)
def test_a_run_is_that_of_vllms_rules(
    rows: list, drafts: int, p: float, model: bool, memory: tuple[int, int]
) -> None:
    sent = requests(*sorted(rows))
    speculation = Speculation(drafts, (p,) * drafts, lookahead=drafts if model else 0, seed=3)
    blocks, size = memory
    hand = by_hand(sent, speculation, Linear(), blocks=blocks, size=size, budget=96)
    served = simulated(
        sent, speculation, Linear(), blocks=blocks, block_size=size, max_batched_tokens=96, max_sequences=14
    )
    assert {i: tokens for i, (tokens,) in served.log.tokens.items()} == {
        i: pytest.approx(tokens, abs=1e-9) for i, tokens in hand.items()
    }


@pytest.mark.parametrize("policy", [VLLM, lambda: Sarathi(64), lambda: VLLMV1(chunked=False)])
@pytest.mark.parametrize("blocks", [30, 400])
def test_policies_that_speculate_run_under_the_invariants(policy, blocks: int) -> None:
    sent = requests(*[(0.1 * i, 20 + i, 30) for i in range(12)])
    served = simulated(
        sent,
        Speculation(3, (0.9, 0.8, 0.7), 3),
        Linear(),
        policy(),
        blocks=blocks,
        block_size=8,
        max_batched_tokens=96,
    )
    assert [len(tokens) for (tokens,) in served.log.tokens.values()] == [30] * 12


@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_policy_does_the_invariants_hold(seed: int) -> None:
    sent = requests(*[(0.05 * i, 1 + 7 * i % 40, 1 + 5 * i % 30) for i in range(14)])
    simulated(
        sent, Speculation(2, (0.7, 0.7), 2 * (seed % 2)), Linear(), Anything(seed), blocks=25, block_size=8,
        max_batched_tokens=96, max_sequences=20,
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    workload=workloads,
    prefixes=st.lists(contents, min_size=1, max_size=8),
    speculation=st.builds(
        Speculation, st.just(2), st.just((0.7, 0.7)), st.sampled_from([0, 2]), st.just(1), st.booleans()
    ),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("name", ["anything", "vllm-v1", "sarathi", "vllm"])
def test_the_invariants_with_a_prefix_cache(
    name: str, workload: list, prefixes: list, speculation: Speculation, seed: int
) -> None:
    policies = {"anything": Anything(seed), "vllm-v1": VLLMV1(), "sarathi": Sarathi(64), "vllm": VLLM()}
    sent = requests(*rows_of(workload))
    for request in sent:
        content = prefixes[request.id % len(prefixes)]
        request.prefix = None if content is None else {"llm": content}
    limits = {"blocks": 30, "block_size": 8, "max_batched_tokens": 96, "max_sequences": 20}
    served = simulated(sent, speculation, Linear(), policies[name], enable_prefix_caching=True, **limits)
    engine = served.loop.workers[0].engine
    assert engine.cache.free == engine.view.free_blocks == 30
    assert not {**engine.held, **engine.gained, **engine.tables}


def test_what_the_last_step_gave_is_not_found_again() -> None:
    """A session's next turn finds full blocks of what was known when the last step was decided: the four tokens
    that this gave were never known to a later one."""
    sent = requests((0.0, 8, 9), (9.0, 40, 2))
    history = SessionContent(0)
    for request in sent:
        request.prefix = {"llm": history}
    made = Speculation(3, (1.0,) * 3)
    served = simulated(sent, made, Linear(), enable_prefix_caching=True, block_size=4, blocks=99)
    assert served.requests[1].tasks[0].cached_tokens == 12  # known: 8 + 5; all 16 computed would be four blocks


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_tokens_a_step_are_those_of_the_closed_form(p: float) -> None:
    """(1 - p^(k+1)) / (1 - p), Leviathan et al. (2023), equation 1."""
    drafts = 4
    served = simulated(requests((0.0, 8, 6_001)), Speculation(drafts, (p,) * drafts), Linear(), blocks=3000)
    steps = sum(decode for _, _, decode in served.log.steps)
    expected = (1 - p ** (drafts + 1)) / (1 - p)
    spread = drafts / math.sqrt(steps)  # more than the deviation of the mean
    assert 6_000 / steps == pytest.approx(expected, abs=2 * spread)
    task = served.requests[0].tasks[0]
    assert task.drafted == drafts * steps
    assert 1 + task.accepted / steps == pytest.approx(expected, abs=2 * spread)


def test_rates_by_position() -> None:
    served = simulated(requests((0.0, 8, 5001)), Speculation(3, (1.0, 0.5, 0.0)), Linear(), blocks=1000)
    counts = [round(1 + n) for n in _gains(served)]
    assert set(counts[:-1]) == {2, 3}
    assert sum(counts) / len(counts) == pytest.approx(2.5, abs=0.05)


def _gains(served: Served) -> list[int]:
    (tokens,) = served.log.tokens[0]
    moments = sorted(set(tokens[1:]))
    return [tokens.count(at) - 1 for at in moments]


def test_what_is_accepted_does_not_depend_on_who_else_is_served() -> None:
    speculation = Speculation(4, (0.7,) * 4, seed=5)
    row = (0.0, 10, 60)
    alone = simulated(requests(row), speculation, Linear())
    among = simulated(requests(row, (0.01, 30, 50), (0.02, 30, 50)), speculation, Linear())
    assert _gains(alone) == _gains(among)


def test_certain_drafts_come_out_at_one_moment() -> None:
    """Latencies count moments: four tokens at once are one output, as in vLLM's benchmark."""
    served = simulated(requests((0.0, 10, 13)), Speculation(3, (1.0,) * 3), Linear(d1=0.0))
    (tokens,) = served.log.tokens[0]
    assert [tokens.count(at) for at in sorted(set(tokens))] == [1, 4, 4, 4]
    step = Linear(d1=0.0).step(3, None, 0.0, 1, 0.0)
    summary = StageTokens(None)
    summary.ended(served.requests[0].tasks[0])
    said = summary.as_dict(1.0)
    assert said["mean_itl_ms"] == pytest.approx(1000 * step)
    assert said["mean_tpot_ms"] == pytest.approx(1000 * step / 4)
    assert (said["spec_decode_num_drafts"], said["spec_decode_num_draft_tokens"]) == (3, 9)
    assert said["mean_acceptance_length"] == 4.0


def test_a_step_takes_its_drafts_through_the_weights_and_its_context_once() -> None:
    times = Linear(c0=0.01, c1=1e-3, d0=0.012, d1=1e-6)
    steps = SpeculativeSteps(times, 3, StatedDrafts(0.002, 0.0005))
    drafting = 0.002 + 0.0005 * 5
    assert steps.decode(5, 1000) == pytest.approx(max(0.01 + 1e-3 * 20, 0.012 + 1e-6 * 1000) + drafting)
    assert steps.step(100, None, 0.0, 5, 1000) == pytest.approx(0.01 + 1e-3 * 120 + drafting)
    assert steps.prefill(100) == pytest.approx(0.01 + 1e-3 * 100 + 0.002)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Speculation(2, (0.5,)), "2 drafts and 1 probabilities"),
        (lambda: Speculation(1, (1.5,)), "probabilities, from 0 to 1"),
        (lambda: EngineLimits(10, num_speculative_tokens=-1), "num_speculative_tokens is -1"),
        (lambda: EngineLimits(10, num_speculative_tokens=1, headroom=1), "what headroom does"),
        (lambda: EngineLimits(10, num_speculative_tokens=1, keep_freed=True), "what keep_freed does"),
    ],
)
def test_other_numbers_are_refused(made, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        made()
