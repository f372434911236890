"""Loads that change over time: what is expected by a time, when so much is expected, and the times of arrivals.

Let L(t) be the requests that are expected by t, the integral of the rate. Gaps with mean 1 are drawn, and request i
comes when L has reached the sum of the first i + 1 of them. With exponential gaps (cv 1) that is a Poisson process
with this rate (E. Cinlar, Introduction to Stochastic Processes, 1975, section 4.7: L(arrival) is a Poisson process of
rate 1), with gaps of cv 0 requests come when 1, 2, 3, ... are expected, and between, or with larger cv, bursts keep
their shape in requests rather than in seconds. One gap is drawn per request, whatever the rates: loads that differ in
their rate alone have the same requests at other times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import TYPE_CHECKING

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..spec.keys.schedule import Schedule, Wave

if TYPE_CHECKING:
    from .trace_reader import TraceFile

#: Newton's steps, or halvings where these lead out, at most; some five are needed.
MOST_STEPS = 200
#: A pattern in which fewer requests are expected has no shape that could be seen.
RAREST = 0.01
#: A wave hides a pattern if it does so as often as that, or for all of a period, which has this many at most.
MANY, MOST_CYCLES = 1000, 100_000
#: The most requests that are counted before a load that ends is sent, and the most windows of a trace.
MOST, MOST_WINDOWS = 2e8, 1_000_000


@dataclass(frozen=True)
class Piece:
    """From *start* to before *end* the rate is *level* + *slope* * (t - start), times what the wave says."""

    start: float
    end: float
    level: float
    slope: float = 0.0


class Load:
    """The rate over time that *schedule* gives; *trace* is what it follows, if it does.

    Raises `BadInput` if it follows a trace that lasts no time, or too long to begin anew, and if no request would
    ever come, or none after some time though no end is said; *where* it stands.
    """

    def __init__(self, schedule: Schedule, trace: TraceFile | None = None, where: str = "workload.arrivals") -> None:
        self.wave, self.every = schedule.wave, schedule.every
        self.until = math.inf if schedule.until is None else schedule.until
        rate, points = schedule.rate, [(at, factor) for at, factor in schedule.points or [[0.0, 1.0]]]
        if schedule.window is not None:
            assert trace is not None
            end = _end_of(trace, schedule.window)
            if self.every is None:
                self.until = min(self.until, end)
            elif self.every <= trace.span:
                what = f"it begins anew after {self.every:g} s, and the trace goes on until {end:g} s"
                raise BadInput(what, where=f"{where}.every", right=f"{end:.10g}, or workload.trace: {{end: ...}}")
            else:
                end = min(end, self.every)
            points, of_trace = _followed(trace, schedule.window, end)
            if self.every is not None and end < self.every:
                points.append((end, 0.0))  # until it begins anew
            rate = of_trace if rate is None else rate
        assert rate is not None
        ramps = schedule.between == "ramps"
        spikes = [(s.at, s.at + s.seconds, s.factor) for s in schedule.spikes]
        self._pattern = _pieces(points, ramps, spikes, rate, self.every)
        comes = [piece.level > 0.0 or piece.slope > 0.0 for piece in self._pattern if piece.start < self.until]
        if not any(comes):
            raise BadInput("its rate is 0 all the time", where=where, right="a factor above 0")
        if self.every is None and math.isinf(self.until) and not comes[-1]:
            at = f"from {self._pattern[-1].start:g} s on its rate is 0, and it has no end"
            raise BadInput(at, where=where, right="until: ..., every: ..., or a last factor above 0")
        self._check_size(where)

    def _check_size(self, where: str) -> None:
        """Raise `BadInput` if requests are so rare that a pattern is over before one comes, or too many to count."""
        if self.every is not None:
            each = float_sum((p.end - p.start) * (p.level + 0.5 * p.slope * (p.end - p.start)) for p in self._pattern)
            if self.wave is not None and each >= RAREST:
                each = self._each_with(self.wave, self.every)
            if each < RAREST:
                what = f"{each:.1g} requests are expected in each {self.every:g} s, after which it begins anew"
                raise BadInput(what, where=f"{where}.every", right="a longer time, or a higher rate")
        if math.isfinite(self.until):
            cycles = self.until / self.every if self.every is not None else 1.0
            bounded = (p for p in self._pattern if p.start < self.until)
            sent = float_sum((min(p.end, self.until) - p.start) * max(p.level, 0.0) for p in bounded)
            whole = sent * max(1.0, cycles)
            if whole > MOST:
                right = f"{MOST:.0e} at most, or workload.requests and no end"
                raise BadInput(f"some {whole:.0e} requests would come", where=f"{where}.until", right=right)

    def _each_with(self, wave: Wave, every: float) -> float:
        """How many requests are expected in each *every* seconds of the many first in which *wave* may hide the
        pattern; a lower bound, once that is enough."""
        cycles, total = max(MANY, math.ceil(wave.period / every)), 0.0
        if cycles > MOST_CYCLES:
            return RAREST  # so short a pattern meets all of the wave
        for piece in self.pieces():
            if piece.start >= cycles * every or total >= RAREST * cycles:
                break
            total += self._mass(piece, piece.end)
        return total / cycles

    def pieces(self) -> Iterator[Piece]:
        """The pieces one after the other, as long as requests may come; the last may have no end."""
        for cycle in count():
            shift = cycle * (self.every or 0.0)
            for piece in self._pattern:
                start, end = piece.start + shift, piece.end + shift
                if start >= self.until:
                    return
                yield Piece(start, end, piece.level, piece.slope) if cycle else piece
            if self.every is None:
                return

    def expected(self, begin: float, end: float) -> float:
        """How many requests are expected from *begin* to before *end*: the integral of the rate."""
        end, total = min(end, self.until), 0.0
        for piece in self.pieces():
            if piece.start >= end:
                break
            low, high = max(begin, piece.start), min(end, piece.end)
            if low < high:
                total += self._mass(piece, high) - self._mass(piece, low)
        return total

    def when(self, number: float) -> float:
        """The time by which *number* requests are expected; infinite if there never are as many."""
        return next(self.times(iter([number])), math.inf)

    def times(self, sums: Iterator[float]) -> Iterator[float]:
        """The times by which as many are expected as *sums* say, which never fall, before `until`."""
        pieces = self.pieces()
        piece, below, at = next(pieces), 0.0, 0.0
        mass = self._mass(piece, piece.end)
        for wanted in sums:
            while wanted - below > mass or mass <= 0.0:
                below += mass
                following = next(pieces, None)
                if following is None:
                    return
                piece = following
                mass = self._mass(piece, piece.end)
            at = self._reached(piece, wanted - below, at)
            if at >= self.until:
                return
            yield at

    def _mass(self, piece: Piece, at: float) -> float:
        """What is expected in *piece* by *at*."""
        if math.isinf(at):
            return math.inf if piece.level > 0.0 else 0.0
        x = at - piece.start
        total = x * (piece.level + 0.5 * piece.slope * x)
        if self.wave is not None and (piece.level or piece.slope):
            total += self._of_wave(self.wave, piece, x) - self._of_wave(self.wave, piece, 0.0)
        return max(0.0, total)

    @staticmethod
    def _of_wave(wave: Wave, piece: Piece, x: float) -> float:
        """An antiderivative of (level + slope x) * amplitude * sin(angle) at *x* seconds after the piece's start."""
        turn = 2.0 * math.pi / wave.period
        angle = _angle(wave, piece.start + x)
        level = piece.level + piece.slope * x
        return wave.amplitude * (-level * math.cos(angle) / turn + piece.slope * math.sin(angle) / turn**2)

    def _reached(self, piece: Piece, wanted: float, after: float) -> float:
        """When *wanted* requests are expected in *piece*, whose mass is at least that; not before *after*."""
        level, slope = piece.level, piece.slope
        if self.wave is None:
            root = math.sqrt(max(0.0, level * level + 2.0 * slope * wanted))
            # The form of the quadratic's root in which nothing is cancelled.
            return min(piece.end, piece.start + (2.0 * wanted / (level + root) if wanted > 0.0 else 0.0))
        wave, low = self.wave, max(piece.start, after)
        high = piece.end
        if math.isinf(high):  # of constant level: the wave is behind by no more than this
            high = piece.start + wanted / level + wave.amplitude * wave.period
        size = (abs(level) + abs(slope) * wave.period) * wave.period + wanted  # of what is added up
        at = low
        for _ in range(MOST_STEPS):
            over = self._mass(piece, at) - wanted
            low, high = (low, at) if over > 0.0 else (at, high)
            rate = (level + slope * (at - piece.start)) * (1.0 + wave.amplitude * math.sin(_angle(wave, at)))
            # What is added up is known to its last digits only: nearer than this there is nothing to be found.
            if high - low <= 4.0 * math.ulp(at) or abs(over) <= 4.0 * (math.ulp(size) + rate * math.ulp(at)):
                return at
            step = at - over / rate if rate > 0.0 else math.inf
            at = step if low < step < high else 0.5 * (low + high)
        return at


def _angle(wave: Wave, at: float) -> float:
    return 2.0 * math.pi * math.fmod(at / wave.period + wave.phase, 1.0)


def _pieces(
    points: Sequence[tuple[float, float]],
    ramps: bool,
    spikes: Sequence[tuple[float, float, float]],
    rate: float,
    every: float | None,
) -> list[Piece]:
    last = math.inf if every is None else every
    edges = {at for at, _ in points} | {at for begin, end, _ in spikes for at in (begin, end)}
    cuts = [*sorted(at for at in edges if at < last), last]
    found, place, hit = [], 0, 0
    spikes = sorted(spikes)
    for begin, end in pairwise(cuts):
        while place + 1 < len(points) and points[place + 1][0] <= begin:
            place += 1
        at, factor = points[place]
        slope = 0.0
        if ramps and place + 1 < len(points):
            then, other = points[place + 1]
            slope = (other - factor) / (then - at)
        while hit < len(spikes) and spikes[hit][1] <= begin:
            hit += 1
        of_spike = spikes[hit][2] if hit < len(spikes) and spikes[hit][0] <= begin else 1.0
        times = rate * of_spike
        found.append(Piece(begin, end, times * (factor + slope * (begin - at)), times * slope))
    return found


def _end_of(trace: TraceFile, window: float) -> float:
    """When *trace*, in windows of *window* seconds, ends: a mean gap after its last request, for that is the time
    that this stands for, but no later than the window does in which it comes."""
    if trace.span <= 0.0:
        what = "all its requests come at once: they have no rate over time"
        raise BadInput(what, where=trace.where, right="a trace that lasts, or no workload.arrivals.window")
    windows = int(trace.span // window) + 1
    if windows > MOST_WINDOWS:
        what = f"{window:g} s makes {windows} windows of {trace.span:g} s"
        raise BadInput(what, where="workload.arrivals.window", right=f"a length that makes {MOST_WINDOWS} at most")
    return min(trace.span * trace.count / (trace.count - 1), windows * window)


def _followed(trace: TraceFile, window: float, end: float) -> tuple[list[tuple[float, float]], float]:
    """Of *trace*, which lasts until *end*: the factors by window, the last of which ends with it, and its mean
    rate."""
    counts = Counter(int((entry.arrival - trace.first) // window) for entry in trace)
    mean, windows = trace.count / end, max(counts) + 1
    points, before = [], None
    for place in range(windows):
        length = window if place + 1 < windows else end - place * window
        factor = counts[place] / (length * mean)
        if factor != before:
            points.append((place * window, factor))
        before = factor
    return points, mean


def schedule_times(load: Load, gaps: Iterator[float] | None) -> Iterator[float]:
    """The arrivals of *load*, of *gaps* with mean 1; None: one whenever one more is expected."""
    return load.times(map(float, count(1)) if gaps is None else _sums(gaps))


def _sums(gaps: Iterator[float]) -> Iterator[float]:
    total = 0.0
    for gap in gaps:
        total += gap
        yield total
