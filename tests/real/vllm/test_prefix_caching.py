"""vLLM's own scheduler with its prefix cache on and our engine with it decide the same, step by step.

Both get the same requests on the same clock: prompts of shared beginnings, an engine with few blocks that preempts,
prompts in chunks, histories that grow as in chats, blocks of 16 and of 32 tokens, synchronously and with a step
decided while the one before it runs. By default some hundred requests of each; the slow ones are of a thousand.
"""

import random

import pytest
from no_gpu import Asked, replay, replay_ahead, scheduler
from servetwin.core.llm.serving.worker import Host
from test_same_decisions import seconds, simulated

#: Engine settings: with room to spare, with prompts in chunks, with too little memory, with few sequences.
SETTINGS = {
    "roomy": {"blocks": 2000, "max_batched_tokens": 2048, "max_sequences": 64},
    "chunks": {"blocks": 1000, "max_batched_tokens": 128, "max_sequences": 64},
    "tight": {"blocks": 220, "max_batched_tokens": 256, "max_sequences": 64},
    "tighter": {"blocks": 130, "max_batched_tokens": 256, "max_sequences": 64},
}


def shared(count, rate, seed, groups=6):
    """Prompts of some groups with a system prompt of their own, of lengths that are no multiples of blocks; some are
    no longer than it, and many come together."""
    rng = random.Random(seed)
    systems = [rng.randint(20, 400) for _ in range(groups)]
    now, asked = 0.0, []
    for i in range(count):
        if rng.random() < 0.7:
            now += rng.expovariate(rate * 0.7)
        group = rng.randrange(groups + 1)
        size = systems[group] if group < groups else 1
        asked.append(
            Asked(i, now, rng.randint(8, 600), rng.randint(1, 160), (group,) if group < groups else (), size)
        )
    return asked


def turns(count, rate, seed, chats=12):
    """Chats whose prompts hold all that was asked before, in contents of 40 tokens; answers count as new."""
    rng = random.Random(seed)
    now, asked, fresh = 0.0, [], 0
    histories = [[] for _ in range(chats)]
    for i in range(count):
        now += rng.expovariate(rate)
        chat = rng.randrange(chats)
        if len(histories[chat]) > 18:
            histories[chat] = []
        new = rng.randint(1, 4)
        histories[chat] += range(fresh, fresh + new)
        fresh += new
        asked.append(Asked(i, now, 40 * len(histories[chat]), rng.randint(1, 160), tuple(histories[chat]), 40))
    return asked


def both(folder, asked, settings, size, ahead):
    """The steps of vLLM's scheduler, and ours."""
    limits = {**settings, "blocks": settings["blocks"] * 16 // size}
    vllm = scheduler(folder, **limits, caching=True, block_size=size, asynchronous=ahead)
    real, times, _ = (replay_ahead if ahead else replay)(vllm, asked, seconds)
    host = Host(lambda sequences: 0.0, 0.0, ahead=True) if ahead else None
    log = simulated(asked, limits, host, block_size=size, enable_prefix_caching=True)
    theirs = [(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real]
    return theirs, log.steps, times, log.times


def check(folder, asked, name, size, ahead):
    theirs, ours, times, our_times = both(folder, asked, SETTINGS[name], size, ahead)
    differ = [i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b]
    assert not differ, f"{len(differ)} of {len(theirs)} steps differ, first {theirs[differ[0]]} and {ours[differ[0]]}"
    assert len(theirs) == len(ours)
    assert our_times == times
    lost = {i for _, _, _, who in theirs for i in who}
    return theirs, lost


#: (settings, requests, block size, whether steps are decided ahead): each value of each at least twice.
SOME = [
    ("roomy", shared, 16, False),
    ("chunks", shared, 32, True),
    ("chunks", turns, 16, False),
    ("tight", turns, 32, True),
    ("tighter", shared, 16, True),
    ("tighter", shared, 32, False),
    ("tighter", turns, 16, True),
    ("tighter", turns, 32, False),
]


@pytest.mark.parametrize(("name", "kind", "size", "ahead"), SOME)
def test_it_decides_as_vllm_does(folder, name, kind, size, ahead):
    theirs, lost = check(folder, kind(200, 5.0, seed=1), name, size, ahead)
    assert (len(lost) > 10) == (name in ("tight", "tighter"))
    # Some are admitted with what others left there, and of those that were preempted some find their own again.
    found = [(i, c) for pieces, *_ in theirs for i, _, c in pieces if c and c % size == 0]
    assert len(found) > 40
    if name == "tighter":
        assert any(i in lost for i, _ in found)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("kind", [shared, turns])
@pytest.mark.parametrize("name", SETTINGS)
def test_of_a_thousand_requests(folder, name, kind, size, ahead):
    theirs, lost = check(folder, kind(1000, 5.0, seed=2), name, size, ahead)
    print(
        f"{name} {kind.__name__} {size} {'ahead' if ahead else 'in turn'}: {len(theirs)} steps, {len(lost)} preempted"
    )
