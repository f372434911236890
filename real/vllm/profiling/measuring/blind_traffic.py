"""Requests at random: chat, long prompts, long answers, under several policies.

Steps of some loads (`MADE_OF`) are among those that a profile is made of: only requests at random bring together
sequences as unequal, and chunks as small beside them, as engines have. It is judged on those of others (`LOADS`),
with other lengths and rates, which it has not seen. What that does to recordings that were made before:
docs/reports/2026-11-h200-cached.md.

A policy of ours decides in each, as in the runs that are predicted: scheduling and launches take longer under one
than where vLLM decides by itself (docs/reports/2026-11-h200-full.md).

Rates are such that about so many sequences decode at a time as a load wants, by what steps were seen to take.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from servetwin.core.arithmetic import float_sum

from .device_steps import Sample, Steps, steps_of

#: Shares of a load's time after which what is left of it is dropped.
PATIENCE = 0.3
#: Tokens of a prompt at most.
LONGEST = 8000


@dataclass(frozen=True)
class Load:
    """Requests at random, whose gaps have the coefficient of variation *cv*, so many that about *batch* decode at a
    time; lengths are lognormal, by median and 90th percentile. *policy* None: vLLM decides. *budget* bounds the
    tokens of a step. *share* is that of the time."""

    policy: str | None
    params: dict[str, Any] | None
    budget: int
    batch: int
    cv: float = 1.0
    share: float = 1.0
    prompt: tuple[int, int] = (200, 800)
    output: tuple[int, int] = (90, 220)


#: What a profile is made of, beside steps of chosen compositions.
MADE_OF = (
    Load("vllm-v1", None, 8192, 32, prompt=(300, 1500), output=(100, 250)),
    Load("sarathi", {"chunk": 512}, 8192, 40, prompt=(300, 1500)),
    Load("vllm-v1", None, 2048, 64, cv=2.0, prompt=(1500, 4500)),
    Load("vllm-v1", None, 8192, 12, prompt=(1000, 4000), output=(40, 120)),
    Load("sarathi", {"chunk": 2048}, 8192, 64, prompt=(800, 3000)),
    Load("vllm-v1", None, 8192, 110, prompt=(400, 2500), output=(150, 350)),
)
#: What a profile is judged on.
LOADS = (
    Load("vllm-v1", None, 2048, 16),
    Load("sarathi", {"chunk": 512}, 8192, 28),
    Load("vllm", None, 8192, 24),
    Load("vllm-v1", None, 8192, 48, cv=4.0),
    Load("vllm-v1", None, 2048, 5, prompt=(2000, 6000), output=(30, 80)),
    Load("vllm-v1", None, 512, 20),
    Load("vllm-v1", None, 8192, 96, prompt=(100, 300), output=(200, 400)),
    Load("vllm-v1", None, 8192, 16, prompt=(1500, 3000)),
    Load("sarathi", {"chunk": 1024}, 8192, 40, prompt=(1200, 2500)),
)


def rate_for(load: Load, found: Sequence[Sample]) -> float:
    """Requests a second with which about as many decode at a time as *load* wants, by steps that were *found*."""
    alone = [s for s in found if s.alone]
    size = min((s.decode for s in alone if s.decode and not s.prompt), key=lambda n: abs(n - load.batch))
    each = float(np.median([s.seconds for s in alone if s.decode == size and not s.prompt]))
    whole = [s for s in alone if s.prompt and not s.decode and not s.pairs]
    most = max(s.tokens for s in whole)
    per_token = float(np.median([s.seconds / s.tokens for s in whole if 4 * s.tokens >= most]))
    prompt, output = (_mean(*lengths) for lengths in (load.prompt, load.output))
    return 1.0 / (output * each / load.batch + prompt * per_token)


def _mean(median: float, high: float) -> float:
    sigma = np.log(high / median) / 1.2816
    return float(median * np.exp(0.5 * sigma**2))


def play_load(
    engine: Any, clock: Any, load: Load, rate: float, seconds: float, rng: random.Random, kind: str = "traffic"
) -> Any:
    """Serve *load* for so many *seconds*: its steps, and what taking requests in took. *clock* watches launches."""
    from ...plan import Planned
    from ...scheduler import Settings
    from .compositions import Played

    scheduler, longest = engine.scheduler, engine.options.max_model_len
    now = 0.0
    planned: list[Planned] = []
    while now < seconds * (1.0 - PATIENCE):
        prompt = max(4, min(_drawn(rng, *load.prompt), LONGEST, longest * 3 // 4))
        output = max(2, min(_drawn(rng, *load.output), longest - prompt - 1))
        planned.append(Planned(len(planned), now, prompt, output))
        now += rng.gammavariate(1 / load.cv**2, load.cv**2 / rate)
    most = scheduler.max_num_scheduled_tokens
    scheduler.max_num_scheduled_tokens = min(load.budget, most)
    scheduler.keep_contexts = True
    if clock is not None:
        clock.take()
    try:
        run = engine.serve(planned, Settings(policy=load.policy, params=load.params), stop_after=seconds * PATIENCE)
    finally:
        scheduler.max_num_scheduled_tokens = most
        scheduler.keep_contexts = False
    launches = clock.take() if clock is not None else []
    played = Played(kind, 0.0, run.steps, launches[: len(run.steps)])
    return steps_of(played, {**asdict(load), "rate": round(rate, 3)}), list(run.intake)


def play_loads(
    engine: Any,
    clock: Any,
    found: Sequence[Sample],
    seconds: float,
    progress: Callable[[str], None],
    loads: Sequence[Load] = LOADS,
    kind: str = "traffic",
    seed: int = 7,
) -> tuple[list[Steps], list[float]]:
    """Serve all *loads* in about *seconds*: the steps by load, as parts of *kind*, and what taking requests in took.
    By "traffic" a profile is judged, of "requests" it is made."""
    rng = random.Random(seed)
    share = seconds / float_sum(load.share for load in loads)
    parts, intake = [], []
    for load in loads:
        rate = rate_for(load, found)
        policy = load.policy or "vLLM decides"
        progress(f"{kind}: {rate:.1f} requests a second, {policy}, {load.budget} tokens a step")
        steps, took = play_load(engine, clock, load, rate, share * load.share, rng, kind)
        parts.append(steps)
        intake += took
    return parts, intake


def _drawn(rng: random.Random, median: int, high: int) -> int:
    """A length whose median and 90th percentile are these."""
    return round(float(median * (high / median) ** (rng.gauss(0.0, 1.0) / 1.2816)))
