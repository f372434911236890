"""The points that a profile's table of decode steps is made of: batches of equally long sequences, size by context.

A point is measured in spells, steps on end, some time apart. Within a spell steps agree to a few tenths of a per
cent, and spells differ from each other by one to two: a device is in one state now and in another in a minute, and
what disturbs it lasts for all of a spell. So a point is what its *undisturbed* steps, those that did not wait for the
host, say in the median of a spell, and the median of its spells. ``python -m
servetwin.real.vllm.profiling.measuring.decode_points FILE`` asks a recording (`step_files`) how far a single spell is
off from what the others of its point say, by estimator. In six recordings of an H200 the median of undisturbed steps
is off by 0.5 to 1.3 % on average, the mean likewise; the least of them is 0.2 to 0.5 % too low; and with those that
waited it is 4.6 instead of 1.0 % where the host was slowest.

Points with fewer than `FEW` such steps, and those that agree with nobody beside them, are in `doubtful`: they are
measured again, in a spell of their own.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import step_files
from .device_steps import Sample, all_samples
from .step_cells import CONTEXTS

#: Undisturbed steps that a point has at least, and spells in which a point that stands out is measured at most.
FEW, MOST_SPELLS = 5, 5
#: The share by which a point may be above the larger batch beside it or below the smaller one, and by which two
#: spells may differ before a third decides.
NOISE = 0.03


@dataclass
class Point:
    """A batch of *size* sequences of about *context* tokens each: its *spells*, the undisturbed steps of each, and
    those steps that waited for the host (*waited*)."""

    size: int
    context: int
    spells: list[list[Sample]] = field(default_factory=list)
    waited: list[Sample] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How many are undisturbed."""
        return sum(map(len, self.spells))

    @property
    def medians(self) -> list[float]:
        """Seconds of a step by spell."""
        return [float(np.median([s.seconds for s in spell])) for spell in self.spells if spell]

    @property
    def seconds(self) -> float:
        """Seconds of a step; nan if all waited."""
        return float(np.median(self.medians)) if self.steps else float("nan")

    @property
    def each(self) -> float:
        """Tokens of a sequence, of the steps that count."""
        return float(np.median([s.context / s.decode for spell in self.spells for s in spell]))


def nearest(each: float, contexts: Sequence[int] = CONTEXTS) -> int:
    """Which of *contexts* is the nearest to so many tokens a sequence, by their ratio."""
    return contexts[int(np.argmin(np.abs(np.log(np.array(contexts, dtype=float) / max(each, 1.0)))))]


def points(samples: Iterable[Sample], contexts: Sequence[int] = CONTEXTS) -> dict[tuple[int, int], Point]:
    """Of the steps of parts of kind "decode", in their order: by size and context."""
    found: dict[tuple[int, int], Point] = {}
    before: tuple[int, int] | None = None
    began = 0.0
    for s in samples:
        if s.kind != "decode" or s.prompt or not s.decode:
            before = None
            continue
        at = s.decode, nearest(s.context / s.decode, contexts)
        point = found.setdefault(at, Point(*at))
        if at != before or s.began < began:  # the clock of a part begins anew
            point.spells.append([])
        before, began = at, s.began
        if s.alone:
            (point.waited if s.waited else point.spells[-1]).append(s)
    return found


def doubtful(found: Mapping[tuple[int, int], Point]) -> list[Point]:
    """Those to measure again: of too few undisturbed steps, of two spells that differ, and those above the larger or
    below the smaller batch beside, at the same context. What stands out after `MOST_SPELLS` is how the device is."""
    by_context: dict[int, list[Point]] = {}
    for (_, context), point in sorted(found.items()):
        by_context.setdefault(context, []).append(point)
    out = []
    for row in by_context.values():
        known = [point for point in row if point.steps]
        for i, point in enumerate(known):
            if len(point.spells) >= MOST_SPELLS:
                continue
            middle, medians = point.seconds, point.medians
            low = known[i - 1].seconds if i else 0.0
            high = known[i + 1].seconds if i + 1 < len(known) else float("inf")
            off = middle > high * (1.0 + NOISE) or middle < low * (1.0 - NOISE)
            apart = len(medians) == 2 and max(medians) > min(medians) * (1.0 + NOISE)
            if point.steps < FEW or apart or (off and len(medians) < MOST_SPELLS):
                out.append(point)
        out += [point for point in row if not point.steps and len(point.spells) < MOST_SPELLS]
    return out


#: What may be made of the steps of a spell.
ESTIMATORS: Mapping[str, Callable[[Any], Any]] = {
    "median": np.median,
    "mean": np.mean,
    "least": np.min,
    "lower quartile": lambda seconds: np.quantile(seconds, 0.25),
}


def spells_apart(samples: Sequence[Sample], estimator: Callable[[Any], Any], *, waited: bool) -> list[float]:
    """Errors, as shares, of each spell of points of three and more by *estimator*: of what the medians of the others
    say. With *waited* steps that waited for the host count like all others."""
    if waited:
        samples = [dataclasses.replace(s, waited=False) for s in samples]
    errors = []
    for point in points(samples).values():
        spells = [[s.seconds for s in spell] for spell in point.spells if len(spell) >= 3]
        if len(spells) < 3:
            continue
        for i, spell in enumerate(spells):
            others = [float(np.median(one)) for j, one in enumerate(spells) if j != i]
            errors.append(float(estimator(spell)) / float(np.median(others)) - 1.0)
    return errors


def main(arguments: Sequence[str]) -> Iterator[str]:
    """What is printed of the recordings that *arguments* name."""
    for name in arguments:
        graphs = max(step_files.engine_of(Path(name))["graphs"], default=0)
        samples = all_samples(step_files.read(Path(name)), graphs, 0.05)
        for waited in (False, True):
            for called, estimator in ESTIMATORS.items():
                errors = 100 * np.array(spells_apart(samples, estimator, waited=waited))
                if len(errors):
                    off = np.abs(errors)
                    yield (
                        f"{name}, {'all' if waited else 'undisturbed'}: {called} {np.median(errors):+.2f} %, off by "
                        f"{off.mean():.2f} % on average, {np.quantile(off, 0.95):.2f} at p95 ({len(errors)} spells)"
                    )


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        sys.stdout.write(line + "\n")
