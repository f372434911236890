"""Plays the parts that a profile is made of for so long as it may take: in rounds, and points in doubt once more.

What `step_cells.round_of` names is played again and again, so that what disturbs a device for a while disturbs some
spells of many points, and not all of any. After each round those decode points come again that have too few
undisturbed steps, whose two spells differ, or that agree with nobody beside them (`decode_points.doubtful`); the last
of the time is theirs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from .decode_points import doubtful, points
from .device_steps import Steps, all_samples
from .step_cells import Cells, Limits, Part, decode_again, round_of

#: The share of the time that is left for points in doubt.
LAST = 0.08


def play_rounds(
    play: Callable[[Part, float], Steps],
    cells: Cells,
    limits: Limits,
    seconds: float,
    *,
    graphs: int,
    memory: float,
    rng: random.Random,
    progress: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Steps]:
    """What *play* made of all parts in about so many *seconds*. It is given a part and until when, by *clock*, it may
    take. *graphs* is the largest CUDA graph in tokens, *memory* the seconds in which recent load fades."""
    played: list[Steps] = []
    until = clock() + seconds
    before_last = until - LAST * seconds

    def make(parts: Sequence[Part], end: float) -> None:
        for part in parts:
            if clock() < end:
                progress(part.kind)
                played.append(play(part, end))

    def again() -> list[Part]:
        decodes = [part for part in played if part.kind == "decode"]
        found = points(all_samples(decodes, graphs, memory), cells.contexts)
        return list(decode_again([(p.size, p.context) for p in doubtful(found)], cells, limits, rng))

    number = 0
    while clock() < before_last:
        parts = round_of(number, cells, limits, rng)
        if number:
            parts += again()
            rng.shuffle(parts)
        make(parts, before_last)
        number += 1
    while clock() < until:
        make(again() or round_of(number, cells, limits, rng), until)
        number += 1
    return played
