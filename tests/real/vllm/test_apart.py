"""Two of vLLM's own schedulers with its NIXL connector, of which one prefills and the other decodes, and our engines
with these roles decide the same, step by step: with their prefix caches and without, synchronously and with a step
decided while the one before it runs, with adapters.

The scheduler's side of the connector is vLLM's own (`NixlPullConnectorScheduler`); what its workers would send is a
link that takes a time for each prompt here, and tells both sides when it is done.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

import pytest
from engines_apart import Pool, serve_apart
from no_gpu import Asked, _before, _made, _tokens, scheduler, vllm_request
from servetwin.policies.llm.vllm_v1 import VLLMV1
from test_adapters import ADAPTERS, adapted
from test_prefix_caching import shared, turns
from test_same_decisions import Steps, Times, request_of, seconds
from vllm.v1.outputs import KVConnectorOutput

PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}


def sending(tokens):
    return 0.004 + 2e-5 * tokens


@dataclass
class Side:
    """One of vLLM's schedulers, with up to *depth* steps in flight. *sent* and *came* are requests of which it has
    not heard yet that their KV has left, or has come."""

    vllm: Any
    depth: int
    queue: deque = field(default_factory=deque)
    free: float = 0.0  # when its device is done with all that it has
    steps: list = field(default_factory=list)
    lost: tuple = ()
    sent: list = field(default_factory=list)
    came: list = field(default_factory=list)
    fetches: list = field(default_factory=list)  # (id, tokens) whose KV is asked for by the last step
    awake: bool = False  # whether the oldest step is just over

    def __post_init__(self):
        connector = self.vllm.connector
        inner = connector.update_state_after_alloc

        def update(request, blocks, tokens):
            if (request.kv_transfer_params or {}).get("do_remote_prefill"):
                self.fetches.append((int(request.request_id), tokens))
            inner(request, blocks, tokens)

        connector.update_state_after_alloc = update

    def heard(self):
        """What its workers tell with a step."""
        sent, came = self.sent, self.came
        self.sent, self.came = [], []
        return KVConnectorOutput(finished_sending=sent or None, finished_recving=came or None)

    def decide(self, now, remote):
        """Schedule as long as there is room for steps in flight, if it waits for none (``step_with_batch_queue``).
        Those of *remote* decode from their first step on."""
        vllm = self.vllm
        if self.queue and not self.awake:
            return
        self.awake = False
        while len(self.queue) < self.depth and vllm.has_requests():
            before = _before(vllm)
            output = vllm.schedule()
            made, tokens = _made(vllm, output, before), _tokens(vllm, output)
            self.lost += made.preempted
            if not (made.prefill or made.decode):
                return
            took = seconds(joined := decoding(made, remote, before))
            self.steps.append((joined.prefill, len(joined.decode), joined.context, set(self.lost)))
            self.lost = ()
            self.free = max(self.free, now) + took
            self.queue.append((output, tokens, self.free))

    def over(self):
        """The oldest step in flight is over: what comes out."""
        output, tokens, _ = self.queue.popleft()
        self.awake = True
        tokens.kv_connector_output = self.heard()
        return [one for out in self.vllm.update_from_output(output, tokens).values() for one in out.outputs]

    def hear(self):
        """With nothing in flight it hears of KV all the same, as an engine does that runs steps without a model."""
        if self.sent or self.came:
            self.vllm._update_from_kv_xfer_finished(self.heard())


def decoding(made, remote, before):
    """*made*, where those whose KV came compute one token and count as those that decode."""
    new = [
        (i, n, c)
        for i, n, c in made.prefill
        if i in remote and n == 1 and c == remote[i] - 1 and not before[str(i)][0]
    ]
    rest = tuple(piece for piece in made.prefill if piece not in new)
    return made._replace(
        prefill=rest, decode=made.decode + tuple(i for i, _, _ in new), context=made.context + sum(c for *_, c in new)
    )


def replay(prefill, decode, asked, depths):
    """Both sides on one clock: their steps, when tokens came out, and the tokens that were sent of each."""
    p, d = Side(prefill, depths[0]), Side(decode, depths[1])
    given, prompts = {a.id: a for a in asked}, {a.id: a.prompt for a in asked}
    times, sizes, events, order = {a.id: [] for a in asked}, {}, [], count()
    link = [0.0]  # until when it is busy

    def at(when, what, *args):
        heappush(events, (when, next(order), what, args))

    def arrive(now, number):
        request = vllm_request(given[number]._replace(output=1))
        request.kv_transfer_params = dict(PREFILL)
        prefill.add_request(request)

    def end(now, side):
        for one in side.over():
            number = int(one.request_id)
            if side is d:
                times[number] += [now] * len(one.new_token_ids)
            elif one.kv_transfer_params:
                request = vllm_request(given[number])
                request.kv_transfer_params = dict(one.kv_transfer_params)
                decode.add_request(request)

    def handed(now, number):
        p.sent.append(str(number))
        d.came.append(str(number))

    for a in asked:
        at(a.arrival, arrive, a.id)
    while events:
        now = events[0][0]
        while events and events[0][0] == now:
            _, _, what, args = heappop(events)
            what(now, *args)
        for side in (p, d):
            if not side.queue:
                side.hear()
            known = len(side.queue)
            side.decide(now, prompts if side is d else {})
            for _, _, ends in list(side.queue)[known:]:
                at(ends, end, side)
            for number, tokens in side.fetches:
                sizes[number] = tokens
                link[0] = max(link[0], now) + sending(tokens)
                at(link[0], handed, number)
            side.fetches.clear()
    return p.steps, d.steps, times, sizes


class Same(NamedTuple):
    """What was the same in both: *steps* of the prefill side, and tokens that were *kept* from the link since the
    decode side had them."""

    steps: int
    kept: int


class BySide(Steps):
    """Steps by worker, and what became of the requests."""

    def __init__(self):
        super().__init__()
        self.by = {}
        self.found = {}

    def batch(self, batch):
        before = len(self.steps)
        super().batch(batch)
        self.by.setdefault(batch.worker.name, []).extend(self.steps[before:])

    def ended(self, request, now):
        super().ended(request, now)
        (task,) = request.tasks
        self.found[request.id] = task.prompt - (task.found or 0)


def both(folder, asked, *, caching, ahead=(False, False), blocks=(1000, 2000), budget=(512, 512), max_loras=0):
    """What vLLM's two schedulers do (as of `replay`), and what our engines do."""
    limits, theirs = [], []
    for side in (0, 1):
        plain = {"blocks": blocks[side], "max_batched_tokens": budget[side], "max_sequences": 64}
        own = {"max_loras": max_loras, "adapters": ADAPTERS} if max_loras else {}
        limits.append(
            {**plain, **own, "whole_prompt": True, "watermark": 0.0, "enable_prefix_caching": caching[side]}
        )
        theirs.append(
            scheduler(
                folder,
                **plain,
                caching=caching[side],
                asynchronous=ahead[side],
                max_loras=max_loras,
                connector="NixlConnector",
            )
        )
    played = replay(*theirs, asked, [1 + a for a in ahead])
    log = BySide()
    serve_apart(
        Pool([VLLMV1()], Times(), limits[0], ahead[0]),
        Pool([VLLMV1()], Times(), limits[1], ahead[1]),
        [request_of(a) for a in asked],
        seconds=sending,
        first_token="decode",
        recorder=log,
        most_events=10**7,
    )
    return played, log


def check(folder, asked, **settings):
    (p, d, times, sizes), log = both(folder, asked, **settings)
    for name, steps in (("prefill0", p), ("decode0", d)):
        ours = log.by[name]
        differ = [i for i, (a, b) in enumerate(zip(steps, ours, strict=False)) if a != b]
        assert not differ, (
            f"{name}: {len(differ)} of {len(steps)} ({differ[0]}): {steps[differ[0]]} {ours[differ[0]]}"
        )
        assert len(steps) == len(ours)
    assert log.times == times
    assert log.found == sizes
    return Same(len(p), sum(a.prompt for a in asked) - sum(sizes.values()))


#: Of the prefill side and of the decode side.
NONE, LEFT, RIGHT, BOTH = (False, False), (True, False), (False, True), (True, True)


@pytest.mark.parametrize("ahead", [NONE, BOTH])
@pytest.mark.parametrize(
    "caching",
    [  #: Of the prefill side and of the decode side.
        NONE,
        LEFT,
        BOTH,
    ],
)
@pytest.mark.parametrize("kind", [shared, turns])
def test_with_room_on_both_sides(folder, kind, caching, ahead):
    kept = check(folder, kind(150, 9.0, seed=1), caching=caching, ahead=ahead).kept
    assert (kept > 1000) == caching[1]


@pytest.mark.parametrize("ahead", [NONE, LEFT, BOTH])
@pytest.mark.parametrize("caching", [NONE, BOTH])
def test_with_little_memory_where_prompts_are_computed(folder, caching, ahead):
    """Prompts wait there until others have been sent, and what was found goes."""
    asked = turns(150, 20.0, seed=1)
    roomy, tight = (check(folder, asked, caching=caching, ahead=ahead, blocks=(b, 2000)) for b in (2000, 90))
    assert tight.steps > roomy.steps


@pytest.mark.parametrize("ahead", [NONE, BOTH])
@pytest.mark.parametrize("caching", [NONE, BOTH])
def test_with_adapters(folder, caching, ahead):
    kept = check(folder, adapted(150, 9.0, seed=3), caching=caching, ahead=ahead, max_loras=2).kept
    assert (kept > 1000) == caching[1]


def test_with_little_memory_where_they_decode_who_just_came_is_preempted_first(folder):
    """The difference that docs/guides/prefill-decode.md tells: no step before it differs. When two that decode and
    request 2 need a block more than there is, the KV of request 3 has just come. In vLLM it waits, and request 2
    is preempted; then it decodes with the others. Here it decodes at once, and is preempted itself."""
    prompts = [44, 46, 22, 36, 52, 51]
    asked = [Asked(i, round(0.02 * i, 3), prompt, 30) for i, prompt in enumerate(prompts)]
    (_, theirs, times, _), log = both(folder, asked, caching=NONE, blocks=(1000, 12))
    ours = log.by["decode0"]
    first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b)
    assert theirs[first - 1] == ours[first - 1] == ((), 3, 117, set())
    assert theirs[first : first + 2] == [((), 2, 97, {2}), ((), 3, 134, set())]
    assert ours[first : first + 2] == [((), 3, 120, {3}), ((), 3, 123, set())]
    assert [len(log.times[i]) for i in times] == [len(times[i]) for i in times] == [30] * 6
    # It costs the one who came and spares the one who ran.
    assert log.times[3][-1] > times[3][-1]
    assert log.times[2][-1] < times[2][-1]


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [NONE, LEFT, RIGHT, BOTH])
@pytest.mark.parametrize("caching", [NONE, LEFT, RIGHT, BOTH])
@pytest.mark.parametrize("kind", [shared, turns])
def test_of_a_thousand_requests(folder, kind, caching, ahead):
    check(folder, kind(1000, 9.0, seed=2), caching=caching, ahead=ahead, blocks=(120, 2000), budget=(128, 512))
