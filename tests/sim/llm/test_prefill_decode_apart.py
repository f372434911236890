"""Prefill and decode on engines apart: by hand, and under the invariants whatever policies do."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
from engines import Anything, Linear, SteppingTokens, requests
from engines_apart import Pool, serve_apart
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core.llm import CumulativeSLO, PromptContent, TokenRequest
from servetwin.core.llm.prefix_cache import SessionContent
from servetwin.policies.llm.andes import Andes
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.fastserve import FastServe
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.orca import Orca
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.sjf import SJF
from servetwin.policies.llm.slack_admission import SlackAdmission
from servetwin.policies.llm.slos_serve import SLOsServe
from servetwin.policies.llm.srpt_llm import SRPTLLM
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.policies.llm.vtc import VTC
from servetwin.policies.routing.central import Central
from servetwin.policies.routing.jsq import JSQ
from servetwin.policies.routing.least_loaded import LeastLoaded
from servetwin.policies.routing.round_robin import RoundRobin

SLO = CumulativeSLO(3.0, 1.5, 0.0438, 1.05e-6, Linear().prefill)
POLICIES = [
    VLLM, VLLMV1, Sarathi, Orca, SJF, VTC, EDFLLM, FastServe, Andes, NeuStreamLLM, SlackAdmission, SLOsServe, SRPTLLM
]  # fmt: skip


def predicted(rows) -> list[TokenRequest]:
    """Requests of *rows*; most begin as others do, and two of three have an adapter."""
    sent = requests(*rows, limit=40)
    for request in sent:
        request.predicted = {"llm": 1 + 7 * request.id % 40}
        if request.id % 4:
            request.prefix = {"llm": PromptContent((request.id % 3,), 40 + 30 * (request.id % 3))}
        request.class_name = f"class {request.id % 3}"
    return sent


ADAPTERS = (("class 0", "adapter 0"), ("class 1", "adapter 1"))


@st.composite
def worlds(draw):
    dice = random.Random(draw(st.integers(0, 10**6)))
    size = draw(st.sampled_from([1, 4, 16]))
    adapts = draw(st.booleans())

    def pool(many: int) -> Pool:
        limits = {
            "blocks": draw(st.sampled_from([18, 40, 80, 1000])) * 16 // size,
            "block_size": size,
            "watermark": draw(st.sampled_from([0.0, 0.01])),
            "max_sequences": draw(st.sampled_from([1, 3, 64])),
            "headroom": draw(st.sampled_from([0, 1])),
            "preemption": draw(st.sampled_from(["recompute", "swap"])),
            "enable_prefix_caching": draw(st.booleans()),
            **({"max_loras": draw(st.sampled_from([1, 2])), "adapters": ADAPTERS} if adapts else {}),
        }
        ahead = draw(st.booleans())
        if ahead or adapts or limits["enable_prefix_caching"]:
            limits["preemption"] = "recompute"
        kind = draw(st.sampled_from([*POLICIES, Anything, Anything]))
        policies = [kind(dice.randint(0, 99)) if kind is Anything else kind() for _ in range(many)]
        return Pool(policies, Linear(d0=draw(st.sampled_from([0.01, 0.04]))), limits, ahead)

    rows, now = [], 0.0
    for _ in range(draw(st.integers(1, 25))):
        now += dice.choice([0.0, 0.0, 0.01, 0.1, 1.0])
        rows.append((now, dice.choice([288, dice.randint(1, 300)]), dice.choice([1, 2, 5, 40])))  # 288 fill 18 blocks
    prefill = pool(draw(st.integers(1, 2)))
    return {
        "prefill": prefill,
        "decode": pool(draw(st.integers(1, 3))),
        "sent": predicted(rows),
        "slo": SLO,
        "seconds": draw(st.sampled_from([lambda n: 0.0, lambda n: 0.002 + n * 1e-4, lambda n: n * 1e-2])),
        "router": draw(st.sampled_from([Central, JSQ, LeastLoaded, RoundRobin]))(),
        "link": draw(st.sampled_from(["prefill", "decode", "pair", "shared", "unlimited"])),
        "overlap": prefill.ahead or draw(st.booleans()),
        "first_token": draw(st.sampled_from(["prefill", "decode"])),
        "stop_at": draw(st.sampled_from([None, None, 0.3, 2.0])),
    }


@given(worlds())
@settings(max_examples=120)
def test_no_run_breaks_an_invariant(world) -> None:
    serve_apart(**world)  # raises InvariantBroken otherwise


#: Prompts of n tokens take 10 ms + n * 0.1 ms, decode steps 20 ms.
PLAIN = Linear(c0=0.01, c1=1e-4, d0=0.02, d1=0.0)


def apart(sent, *, decodes: int = 1, prefill=None, decode=None, **more):
    limits = {"prefill": prefill or {}, "decode": decode or {}}
    return serve_apart(
        Pool([VLLMV1()], PLAIN, limits["prefill"]),
        Pool([VLLMV1() for _ in range(decodes)], PLAIN, limits["decode"]),
        sent,
        **more,
    )


def test_one_request_by_hand() -> None:
    """Prefill 20 ms, 500 ms on the way, four decode steps of 20 ms."""
    task = apart(requests((1.0, 100, 5)), seconds=lambda n: n * 5e-3).visit(0)
    assert task.times() == pytest.approx([1.02, 1.54, 1.56, 1.58, 1.60])
    assert (task.prefilled, task.sent, task.handed) == pytest.approx((1.02, 1.02, 1.52))
    assert (task.prefilled_by.name, task.worker.name) == ("prefill0", "decode0")


def test_the_first_token_may_come_from_the_decode_engine() -> None:
    """Then all five tokens are steps there."""
    task = apart(requests((1.0, 100, 5)), seconds=lambda n: n * 5e-3, first_token="decode").visit(0)
    assert task.times() == pytest.approx([1.54, 1.56, 1.58, 1.60, 1.62])
    assert task.first_token == pytest.approx(1.54)


def test_a_single_token_is_not_handed_over_unless_it_comes_from_there() -> None:
    here = apart(requests((0.0, 100, 1)), seconds=lambda n: 0.5).visit(0)
    there = apart(requests((0.0, 100, 1)), seconds=lambda n: 0.5, first_token="decode").visit(0)
    assert (here.finished, here.handed, here.worker.name) == (pytest.approx(0.02), None, "prefill0")
    assert (there.finished, there.handed) == pytest.approx((0.54, 0.52))


@pytest.mark.parametrize(
    ("link", "decodes", "came"),
    [
        ("prefill", 2, [0.1, 0.3, 0.2]),
        ("shared", 2, [0.1, 0.3, 0.2]),
        ("decode", 2, [0.1, 0.1, 0.2]),
        ("pair", 2, [0.1, 0.1, 0.2]),
        ("pair", 1, [0.1, 0.2, 0.3]),
        ("unlimited", 1, [0.1, 0.1, 0.1]),
    ],
)
def test_a_link_sends_one_prompt_at_a_time(link: str, decodes: int, came: list[float]) -> None:
    """All three stand at 40 ms and take 100 ms each, by turns to the decode engines; the first of these, which gets
    the first and the third, asks first."""
    sent = requests(*[(0.0, 100, 2)] * 3)
    run = apart(sent, decodes=decodes, seconds=lambda n: 0.1, link=link, router=RoundRobin())
    assert [run.visit(i).handed - 0.04 for i in range(3)] == pytest.approx(came)


@pytest.mark.parametrize(("overlap", "second"), [(True, 0.06 + 0.02), (False, 0.52 + 0.02)])
def test_sending_overlaps_with_computing_or_not(overlap: bool, second: float) -> None:
    """The second request comes while the first is computed, for 20 ms, and sent, for 500 ms."""
    run = apart(requests((0.0, 100, 3), (0.06, 100, 3)), seconds=lambda n: 0.5, overlap=overlap)
    assert run.visit(1).first_token == pytest.approx(second)


def test_an_engine_that_sends_for_nobody_any_more_goes_on_when_that_is_over() -> None:
    """The first request breaks at 300 ms, while its KV is on its way, until 520 ms; then the second is computed."""
    sent = requests((0.0, 100, 3), (0.06, 100, 3))
    run = apart(sent, seconds=lambda n: 0.5, overlap=False, fails=[(0.3, 0)])
    assert [request.outcome for request in sent] == ["failed", "met"]
    assert run.visit(0).handed is None
    assert run.visit(1).first_token == pytest.approx(0.52 + 0.02)


def test_what_finds_no_room_stays_where_it_was_prefilled() -> None:
    """The decode engine has memory for one request, the prefill engine for two: the third prompt has to wait until
    the first has been decoded, and the second is on its way."""
    run = apart(
        requests((0.0, 64, 11), (0.0, 64, 11), (0.0, 64, 11)),
        prefill={"blocks": 8, "watermark": 0.0},
        decode={"blocks": 5, "watermark": 0.0},
        seconds=lambda n: 0.1,
    )
    first, second, third = [run.visit(i) for i in range(3)]
    both = 0.01 + 128e-4
    assert (first.prefilled, second.prefilled) == pytest.approx((both, both))
    assert first.handed == pytest.approx(both + 0.1)
    assert third.prefilled == pytest.approx(first.handed + 0.01 + 64e-4)  # as soon as the first has left
    assert second.sent == pytest.approx(first.finished)
    assert third.sent == pytest.approx(second.finished)


def test_late_binding_goes_where_room_is_first() -> None:
    """Two decode engines with a place each; the first request takes long. By turns the third waits for it, in a
    central queue it takes the place that is free first."""
    rows = requests((0.0, 100, 100), (0.1, 100, 5), (0.2, 100, 5))
    place = {"max_sequences": 1}
    early = apart(rows, decodes=2, decode=place, router=RoundRobin())
    late = apart(requests((0.0, 100, 100), (0.1, 100, 5), (0.2, 100, 5)), decodes=2, decode=place, router=Central())
    assert early.visit(2).sent == pytest.approx(early.visit(0).finished)
    assert early.visit(2).worker.name == early.visit(0).worker.name
    assert late.visit(2).worker.name == late.visit(1).worker.name
    assert late.visit(2).finished < 0.5


def test_who_is_preempted_is_computed_anew_where_it_decodes() -> None:
    run = apart(requests((0.0, 64, 40), (0.0, 64, 40)), decode={"blocks": 10, "watermark": 0.0})
    assert sum(run.visit(i).preemptions for i in range(2)) == 1
    victim = next(run.visit(i) for i in range(2) if run.visit(i).preemptions)
    computed = [chunk for _, chunks, _ in run.log.steps for chunk in chunks if chunk[0] == victim.id]
    assert [tokens for _, tokens in computed] == [64, 64 + 17]  # of the last one no KV stood
    assert victim.prefilled_by.name == "prefill0"


def test_unlike_devices() -> None:
    """A device that prefills twice as fast, and one that decodes twice as fast."""
    prefill, decode = Linear(c0=0.005, c1=5e-5, d0=1.0), Linear(c0=1.0, c1=1.0, d0=0.01, d1=0.0)
    run = serve_apart(Pool([VLLMV1()], prefill), Pool([VLLMV1()], decode), requests((0.0, 100, 4)))
    assert run.visit(0).times() == pytest.approx([0.01, 0.02, 0.03, 0.04])


def test_the_policies_of_the_two_pools_may_differ() -> None:
    """Shortest prompt first on one side only."""
    sent = requests((0.0, 300, 2), (0.001, 200, 2), (0.002, 100, 2))
    one = {"max_sequences": 1}
    run = serve_apart(Pool([SJF()], PLAIN, one), Pool([VLLM()], PLAIN), predicted_by_prompt(sent))
    assert sorted(range(3), key=lambda i: run.visit(i).prefilled) == [0, 2, 1]


def predicted_by_prompt(sent: list[TokenRequest]) -> list[TokenRequest]:
    for request in sent:
        request.predicted = {"llm": request.tokens["llm"][0]}
    return sent


def test_prefill_alone_is_an_m_d_1_queue() -> None:
    """Where decode is never short. Each wait by Lindley's recursion, their mean by Pollaczek and Khinchine."""
    dice, many, service, load = random.Random(8), 3000, 0.02, 0.4
    arrivals, now = [], 0.0
    for _ in range(many):
        now += dice.expovariate(load / service)
        arrivals.append(now)
    run = serve_apart(
        Pool([VLLM()], PLAIN, {"max_sequences": 1}),
        Pool([VLLM()], PLAIN, {"blocks": 10**6, "max_sequences": 10**4, "max_batched_tokens": 10**5}),
        requests(*[(at, 100, 2) for at in arrivals]),
        seconds=lambda n: 1.0,
        link="unlimited",
    )
    free, waits = 0.0, []
    for at in arrivals:
        waits.append(max(free - at, 0.0))
        free = max(free, at) + service
    waited = [run.visit(i).first_token - at - service for i, at in enumerate(arrivals)]
    assert waited == pytest.approx(waits, abs=1e-9)
    assert sum(waits) / many == pytest.approx(service * load / (2 * (1 - load)), rel=0.1)


@given(worlds())
@settings(max_examples=15)
def test_a_run_repeats_and_steps_as_one_event_equal_steps_one_by_one(world) -> None:
    def run(stepping: bool):
        pools = {}
        for role in ("prefill", "decode"):
            policies = [VLLM() if isinstance(p, Anything) else copy.deepcopy(p) for p in world[role].policies]
            wrapped = [SteppingTokens(p) if stepping else p for p in policies]
            pools[role] = replace(world[role], policies=wrapped)
        return serve_apart(**{**world, **pools, "sent": copy.deepcopy(world["sent"]), "router": RoundRobin()}).log

    again, whole, single = run(False), run(False), run(True)
    assert whole.records == again.records == single.records
    assert whole.steps == again.steps
    assert sorted(whole.steps) == sorted(single.steps)


@pytest.mark.parametrize("first_token", ["prefill", "decode"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_that_fills_the_engine_that_decodes(policy, first_token: str) -> None:
    """A token that has come out already needs room as well; there is none, and that is said of the request."""
    few = {"blocks": 16, "block_size": 16, "watermark": 0.0}
    sent, pools = predicted([(0.0, 256, 10), (0.1, 100, 10)]), (Pool([policy()], PLAIN), Pool([policy()], PLAIN, few))
    run = serve_apart(*pools, sent, slo=SLO, seconds=lambda n: 0.5, first_token=first_token)
    assert all(request.outcome is not None for request in run.sent)
    if first_token == "prefill":
        assert run.sent[0].reason == "its 257 tokens do not fit into decode0"


CACHING = {"enable_prefix_caching": True}


def alike(*rows):
    """Requests whose prompts all begin with the same 96 tokens."""
    sent = requests(*rows)
    for request in sent:
        request.prefix = {"llm": PromptContent(("system",), 96)}
    return sent


def test_prompts_find_what_others_left_on_either_side() -> None:
    """Prompts of 100 tokens take 20 ms; whoever finds 96 of them computes four, in 10.4 ms, and has four sent."""
    sent = alike((0.0, 100, 3), (1.0, 100, 3))
    run = apart(sent, prefill=CACHING, decode=CACHING, seconds=lambda n: n * 1e-3)
    first, second = run.visit(0), run.visit(1)
    assert (first.prefilled, first.handed - first.sent, first.found) == pytest.approx((0.02, 0.1, 0))
    assert (second.prefilled, second.handed - second.sent, second.found) == pytest.approx((1.0104, 0.004, 96))
    assert (first.cached_tokens, second.cached_tokens) == (0, 96)
    assert run.log.records[1]["stages"][0]["handover"]["found"] == 96


def test_blocks_can_be_found_while_they_are_sent() -> None:
    """The second prompt begins as the first does, which is still on its way."""
    run = apart(alike((0.0, 100, 3), (0.05, 100, 3)), prefill=CACHING, seconds=lambda n: 0.5)
    assert (run.visit(0).handed, run.visit(1).prefilled) == pytest.approx((0.52, 0.0604))
    assert run.visit(1).found is None


def test_what_is_all_there_takes_no_link() -> None:
    """Of 96 tokens nothing is to be sent; the link is busy with another prompt meanwhile."""
    sent = requests((0.0, 96, 2), (1.0, 100, 2), (1.001, 96, 2))
    for request in (sent[0], sent[2]):
        request.prefix = {"llm": PromptContent(("system",), 96)}
    run = apart(sent, prefill=CACHING, decode=CACHING, seconds=lambda n: 0.5)
    last = run.visit(2)
    assert last.found == 96
    assert last.handed == last.sent < run.visit(1).handed


def test_a_next_turn_has_only_what_is_new_sent() -> None:
    """With its answers: the decode side has the first turn's prompt, and all of what it generated but the last."""
    first, second = requests((0.0, 100, 30), (2.0, 200, 5))
    first.prefix = {"llm": SessionContent(1)}
    second.prefix = {"llm": SessionContent(1)}
    run = apart([first, second], prefill=CACHING, decode=CACHING, seconds=lambda n: n * 1e-3)
    later = run.visit(1)
    assert (later.cached_tokens, later.found) == (96, 128)  # of blocks of 16: of 100, and of 100 + 29
    assert later.handed - later.sent == pytest.approx(0.072)


def test_deciding_ahead_hides_what_lies_between_two_steps() -> None:
    """Alone it changes nothing on either side: the token that a prompt gives is the last one there."""
    run = serve_apart(
        Pool([VLLMV1()], PLAIN, ahead=True),
        Pool([VLLMV1()], PLAIN, ahead=True),
        requests((1.0, 100, 5)),
        seconds=lambda n: n * 5e-3,
    )
    assert run.visit(0).times() == pytest.approx([1.02, 1.54, 1.56, 1.58, 1.60])


@pytest.mark.parametrize("ahead", [False, True])
def test_adapters_that_come_wait_for_a_place(ahead: bool) -> None:
    """One at a time: the KV of the second request comes while the first decodes, and waits until that ends."""
    sent = requests((0.0, 100, 11), (0.0, 100, 3))
    for number, request in enumerate(sent):
        request.class_name = f"class {number}"
    one = {"max_loras": 1, "adapters": ADAPTERS}
    pool = Pool([VLLMV1()], PLAIN, one, ahead)
    run = serve_apart(pool, replace(pool, policies=[VLLMV1()]), sent, seconds=lambda n: 0.1)
    first, second = run.visit(0), run.visit(1)
    assert second.handed < first.finished
    assert second.times()[1] == pytest.approx(first.finished + 0.02)
