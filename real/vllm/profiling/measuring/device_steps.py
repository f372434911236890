"""What engine steps took on the device, from events on its stream and the host's clock.

With asynchronous scheduling the host hears of a step late: it is launching the next one then, and a launch piece by
piece takes longer than many a step. So what a step takes is read off the device: from the end of the step before, or
from when it was launched far enough to begin, to its own end. `samples` makes that of the steps of a part, and says
of which steps nothing can be learned since the device waited for the host.

No vLLM is needed here: recorded steps (`step_files`) are read the same way.
"""

from __future__ import annotations

from collections import Counter
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
#: Seconds that the device is at work after the host has launched the last layer of a step, where it waited for that,
#: and for each sequence, whose token is drawn then: less is no step that ran by itself.
BEHIND, BEHIND_EACH = 1.3e-3, 6e-6
#: Likewise after the host has launched the sampling of a step.
SAMPLING = 6e-4
#: What passes of a launch before the device has something to do, where that is not one graph: what launching one of
#: as many sequences takes, and so many seconds; and where there are no graphs, such a share of it.
FIRST, FIRST_SHARE = 1e-3, 0.25
#: How a step is launched: as one graph, as graphs piece by piece, or kernel by kernel.
Launching = Literal["graph", "pieces", "kernels"]


@dataclass
class Steps:
    """Steps of one part, in order; times in seconds on the host's clock. *chunks* holds (tokens, context before) by
    step, *contexts* those of all that decode. *launched* and *sampled* are from when the executor was called until
    the step and its sampling were launched, *device* and *idle* what the events tell (`compositions.Launch`), in
    seconds; empty where nobody watched. Where processes of their own launch, *told* are the seconds until they had
    been told and *held* those that they were still at the step before (`launch_clock.Launch`); empty elsewhere."""

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
    told: Floats = field(default_factory=lambda: np.zeros(0))
    held: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def apart(self) -> bool:
        """Whether processes of their own launched the steps."""
        return bool(np.isfinite(self.told).any())

    def __len__(self) -> int:
        return len(self.start)


@dataclass
class Sample:
    """One step: what it computes, and the *seconds* that it took on the device (nan: not known). *launched* are the
    seconds from when the scheduler was asked (at *began* on the part's clock, which took *scheduling*) until it was
    launched, *sampled* those from the call of the executor until its sampling was launched too, *density* the tokens
    computed per second just before. *alone*: it did not wait for its launch, or for no longer than is taken off.
    *held* are the seconds for which processes of their own that launch were still at the step before, which are not
    in *launched* and *sampled*, and *told* those until they had been told of this one (nan: the host launches).
    *left* sequences decoded in the step before and do not in this, *back* do in this and did not in that, with
    *back_tokens* of context in all."""

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
    scheduling: float = 0.0
    sampled: float = 0.0
    began: float = 0.0
    left: int = 0
    back: int = 0
    back_tokens: int = 0
    told: float = float("nan")
    held: float = 0.0
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
        of("told"),
        np.nan_to_num(of("held")),
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


def lines_through(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Constant and slope of a line through the medians of *points* whose place is about the same (an octave), that
    rises."""
    near: dict[int, list[tuple[float, float]]] = {}
    for x, y in points:
        near.setdefault(int(max(x, 1)).bit_length(), []).append((x, y))
    some = [np.median(np.array(found), axis=0) for found in near.values() if len(found) >= 5]
    if len(some) < 2:
        return (float(np.median([y for _, y in points])) if points else 0.0), 0.0
    x, y = np.array(some).T
    weights = 1.0 / y
    rows = np.column_stack((np.ones(len(x)), x)) * weights[:, None]
    constant, slope = np.linalg.lstsq(rows, y * weights, rcond=None)[0]
    return (float(constant), float(slope)) if slope > 0 else (float(np.median(y)), 0.0)


def launch_line(parts: Sequence[Steps], graphs: int) -> tuple[float, float] | None:
    """Seconds until a step is launched as one graph, a constant and for each sequence; None if none is."""
    points = [
        (float(len(steps.contexts[i])), float(steps.launched[i]))
        for steps in parts
        for i in range(len(steps))
        if not steps.chunks[i] and 0 < len(steps.contexts[i]) <= graphs and np.isfinite(steps.launched[i])
    ]
    return lines_through(points) if points else None


def samples(steps: Steps, graphs: int, memory: float, line: tuple[float, float] | None) -> Iterator[Sample]:
    """The steps of a part, from its second on. *graphs* is the largest graph in tokens, *memory* the seconds in which
    density fades, *line* is as of `launch_line`."""
    over, density = ends(steps), Density(memory)
    watched, apart = np.isfinite(steps.device).any(), steps.apart
    for i in range(len(steps)):
        contexts = steps.contexts[i]
        decode = len(contexts)
        tokens = sum(n for n, _ in steps.chunks[i]) + decode
        how = launching(tokens, tokens - decode, graphs)
        told, held = (float(steps.told[i]), float(steps.held[i])) if apart else (float("nan"), 0.0)
        asked = steps.scheduled[i] + held
        launched = asked + (steps.launched[i] if watched else 0.0)
        before = over[i - 1] if i else np.nan
        waited, began = False, max(before, steps.start[i])
        behind = BEHIND + BEHIND_EACH * (decode + len(steps.chunks[i]))
        if watched and how == "graph":  # it begins when all of it is launched
            waited = not launched < before - 1e-4
            began = max(before, launched - 2e-4)
        elif watched:
            spent = FIRST_SHARE * steps.launched[i]
            if line is not None:
                spent = min(line[0] + line[1] * (decode + len(steps.chunks[i])) + FIRST, steps.launched[i])
            first = asked + spent
            # The sampling comes last, and a host that is slow there is no proof that the device was late.
            last = asked + steps.sampled[i] if np.isfinite(steps.sampled[i]) else launched
            waited = not (first < before and over[i] - launched > behind and over[i] - last > SAMPLING)
            began = max(before, first)
        seconds = over[i] - began
        usable = not waited or (how == "graph" and tokens <= graphs) or over[i] - launched > 3 * behind
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
                float(launched - held - steps.start[i]),
                bool(waited),
                density.at(float(began)),
                float(steps.scheduled[i] - steps.start[i]),
                float(steps.sampled[i]) if np.isfinite(steps.sampled[i]) else float(steps.launched[i]),
                float(steps.start[i]),
                *_regrouped(steps, i),
                told,
                held,
            )
        if np.isfinite(over[i]) and np.isfinite(seconds) and seconds > 0.0:
            density.add(float(began), float(over[i]), tokens)


def _regrouped(steps: Steps, i: int) -> tuple[int, int, int]:
    """How many sequences of the step before step *i* do not decode in it, and how many do that were not there, with
    their tokens of context: who decoded then has one token more by now, and who was a prompt has that."""
    decoded = Counter((steps.contexts[i - 1] + 1).tolist())
    prompts = Counter(float(n + c) for n, c in steps.chunks[i - 1])
    now = Counter(steps.contexts[i].tolist())
    back = now - decoded - prompts
    return (decoded - now).total(), back.total(), int(sum(context * count for context, count in back.items()))


def all_samples(parts: Sequence[Steps], graphs: int, memory: float) -> list[Sample]:
    """Of all *parts*."""
    line = launch_line(parts, graphs)
    return [sample for part in parts for sample in samples(part, graphs, memory, line)]
