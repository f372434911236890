"""What engine steps took on the device, from events on its stream and the host's clock.

With asynchronous scheduling the host hears of a step late: it is launching the next one then, and a launch piece by
piece takes longer than many a step. So what a step takes is read off the device: from the end of the step before, or
from when it was launched far enough to begin, to its own end. `samples` makes that of the steps of a part, and says
of which steps nothing can be learned since the device waited for the host.

No vLLM is needed here: recorded steps (`step_files`) are read the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from servetwin.profiles.llm.recent_load import Density

if TYPE_CHECKING:
    from .compositions import Played

Floats = Any  # numpy arrays of floats

#: Steps on either side among which the one is sought whose end the host heard at once: that ties the clocks.
NEAR = 30
#: Seconds that the device is at work after the host has launched the last of a step, where it waited for that: less
#: is no step that ran by itself.
BEHIND = 1.3e-3
#: The share of a launch that passes before the device has something to do: with graphs piece by piece, and without.
FIRST = {"pieces": 0.45, "kernels": 0.25}
#: How a step is launched: as one graph, as graphs piece by piece, or kernel by kernel.
Launching = Literal["graph", "pieces", "kernels"]


@dataclass
class Steps:
    """Steps of one part, in order; times in seconds on the host's clock. *chunks* holds (tokens, context before) by
    step, *contexts* those of all that decode. *launched* and *sampled* are from when the executor was called until
    the step and its sampling were launched, *device* and *idle* what the events tell (`compositions.Launch`), in
    seconds; empty where nobody watched."""

    kind: str
    info: dict[str, Any]
    start: Floats
    scheduled: Floats
    after: Floats
    end: Floats
    chunks: list[list[tuple[int, int]]]
    contexts: list[Floats]
    launched: Floats
    sampled: Floats
    device: Floats
    idle: Floats

    def __len__(self) -> int:
        return len(self.start)


@dataclass
class Sample:
    """One step: what it computes, and the *seconds* that it took on the device (nan: not known). *launched* are the
    seconds from when the scheduler was asked until it was launched, *density* the tokens computed per second just
    before. *alone*: it did not wait for its launch, or for no longer than is taken off."""

    kind: str
    chunks: list[tuple[int, int]]
    decode: int
    context: int
    longest: int
    seconds: float
    alone: bool
    launching: Launching
    launched: float
    waited: bool
    density: float = 0.0
    tokens: int = field(init=False)
    prompt: int = field(init=False)
    squares: int = field(init=False)
    pairs: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = sum(n for n, _ in self.chunks)
        self.tokens = self.prompt + self.decode
        self.squares = sum(n * n for n, _ in self.chunks)
        self.pairs = sum(n * c for n, c in self.chunks)


def steps_of(played: Played, info: dict[str, Any] | None = None) -> Steps:
    """The steps of a part that was just played."""
    logs, launches = played.steps, played.launches
    lost = [float("nan")] * (len(logs) - len(launches))

    def of(name: str, scale: float = 1.0) -> Floats:
        return np.array([*(scale * getattr(launch, name) for launch in launches), *lost], dtype=float)[: len(logs)]

    def times(name: str) -> Floats:
        return np.array([getattr(step, name) for step in logs], dtype=float)

    return Steps(
        played.kind,
        info or {},
        times("start"),
        times("scheduled"),
        times("after"),
        times("end"),
        [[(n, c) for _, n, c in step.prefill] for step in logs],
        [np.array(sorted(step.contexts), dtype=float) for step in logs],
        of("launched"),
        of("sampled"),
        of("device", 1e-3),
        of("idle", 1e-3),
    )


def ends(steps: Steps) -> Floats:
    """When each step was over on the device, on the host's clock: events tell the time between them, and the host
    heard of some at once. On a device without events, when the host heard."""
    if not np.isfinite(steps.device).any():
        return steps.end.copy()
    gaps = np.where(np.isfinite(steps.idle) & (steps.idle < 1e3), np.maximum(steps.idle, 0.0), 0.0)
    if len(gaps):
        gaps[0] = 0.0
    at = np.cumsum(gaps + steps.device)
    late = steps.end - at
    found = np.empty_like(at)
    for i in range(len(at)):
        near = late[max(0, i - NEAR) : i + NEAR + 1]
        found[i] = at[i] + (np.nanmin(near) if np.isfinite(near).any() else np.nan)
    return found


def launching(tokens: int, prompt: int, graphs: int) -> Launching:
    """How a step is launched, with graphs of up to so many tokens."""
    return "kernels" if tokens > graphs else "pieces" if prompt else "graph"


def samples(steps: Steps, graphs: int, memory: float) -> Iterator[Sample]:
    """The steps of a part, from its second on. *graphs* is the largest graph in tokens, *memory* the seconds in which
    density fades."""
    over, density = ends(steps), Density(memory)
    watched = np.isfinite(steps.device).any()
    for i in range(len(steps)):
        contexts = steps.contexts[i]
        decode = len(contexts)
        tokens = sum(n for n, _ in steps.chunks[i]) + decode
        how = launching(tokens, tokens - decode, graphs)
        launched = steps.scheduled[i] + (steps.launched[i] if watched else 0.0)
        before = over[i - 1] if i else np.nan
        waited, began = False, max(before, steps.start[i])
        if watched and how == "graph":  # it begins when all of it is launched
            waited = not launched < before - 1e-4
            began = max(before, launched - 2e-4)
        elif watched:
            first = steps.scheduled[i] + FIRST[how] * steps.launched[i]
            waited = not (first < before and over[i] - launched > BEHIND)
            began = max(before, first)
        seconds = over[i] - began
        usable = not waited or (how == "graph" and tokens <= graphs) or over[i] - launched > 3 * BEHIND
        if i and np.isfinite(seconds) and seconds > 0.0 and tokens:
            yield Sample(
                steps.kind,
                steps.chunks[i],
                decode,
                int(contexts.sum()),
                int(contexts.max()) if decode else 0,
                float(seconds),
                bool(usable),
                how,
                float(launched - steps.start[i]),
                bool(waited),
                density.at(float(began)),
            )
        if np.isfinite(over[i]) and np.isfinite(seconds) and seconds > 0.0:
            density.add(float(began), float(over[i]), tokens)


def all_samples(parts: Sequence[Steps], graphs: int, memory: float) -> list[Sample]:
    """Of all *parts*."""
    return [sample for part in parts for sample in samples(part, graphs, memory)]
