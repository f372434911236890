"""vLLM's own scheduler with LoRA adapters and our engine with them decide the same, step by step: with few and many
adapters, with its prefix cache and without, synchronously and with a step decided while the one before it runs."""

import itertools
import random

import pytest
from no_gpu import replay, replay_ahead, scheduler
from servetwin.core.llm.serving.worker import Host
from test_prefix_caching import SETTINGS, shared
from test_same_decisions import seconds, simulated

COUNT = 6
ADAPTERS = tuple((f"class {i}", f"adapter {i}") for i in range(1, COUNT + 1))  # class 0 has none


def adapted(count, rate, seed):
    """Prompts of which some begin alike, whatever adapter they have."""
    rng = random.Random(seed)
    return [a._replace(adapter=rng.randint(0, COUNT)) for a in shared(count, rate, seed)]


def both(folder, asked, settings, most, caching, ahead):
    """The steps of vLLM's scheduler, and ours; the times of tokens likewise."""
    vllm = scheduler(folder, **settings, caching=caching, asynchronous=ahead, max_loras=most)
    real, times, _ = (replay_ahead if ahead else replay)(vllm, asked, seconds)
    host = Host(lambda sequences: 0.0, 0.0, ahead=True) if ahead else None
    log = simulated(asked, settings, host, enable_prefix_caching=caching, max_loras=most, adapters=ADAPTERS)
    theirs = [(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real]
    return theirs, log.steps, times, log.times


def check(folder, count, name, most, caching, ahead):
    asked = adapted(count, 5.0, seed=3)
    theirs, ours, times, our_times = both(folder, asked, SETTINGS[name], most, caching, ahead)
    differ = [i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b]
    assert not differ, f"{len(differ)} of {len(theirs)} steps differ, first {theirs[differ[0]]} and {ours[differ[0]]}"
    assert our_times == times
    order = [i for pieces, *_ in theirs for i, _, c in pieces if c == 0]
    passed = sum(a > b for a, b in itertools.pairwise(order))
    return sum(len(lost) for *_, lost in theirs), passed


#: (settings, max_loras, prefix cache, whether steps are decided ahead)
SOME = [
    ("roomy", 1, False, False),
    ("roomy", 2, True, True),
    ("chunks", 2, True, False),
    ("chunks", 3, False, True),
    ("tight", 2, False, False),
    ("tight", 3, True, True),
    ("tighter", 3, True, False),
    ("tighter", 3, False, True),
]


@pytest.mark.parametrize(("name", "most", "caching", "ahead"), SOME)
def test_it_decides_as_vllm_does(folder, name, most, caching, ahead):
    preempted, passed = check(folder, 150, name, most, caching, ahead)
    assert passed > 4  # some went before others that had come sooner
    assert (preempted > 5) == (name in ("tight", "tighter"))


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_of_a_thousand_requests(folder, name, most, caching, ahead):
    check(folder, 1000, name, most, caching, ahead)
