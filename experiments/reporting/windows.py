"""A run by windows of time: whether it kept up with its load, how fast its error budget went, and how long it took to
recover.

*Waiting* are requests that are in the queue of a worker or a router, or wait for a replica. With n requests that come
in a window, a window is

- *overloaded* if more come than are served: those who wait grow by more than a twentieth of n and by more than
  chance makes of it (2 standard deviations of a Poisson count, 2 sqrt(n)); who is dropped or fails counts as growth,
  and where nobody comes there is none;
- *backlogged* if it is not, and at each moment in it somebody waits (more than `few`);
- *stable* otherwise: the queue was empty at some moment.

`few` is 1, or a twentieth of the mean number that comes in a window: in a large fleet somebody always waits a moment,
and by Little's law so many wait where the mean wait is a twentieth of a window.

An *overload* begins when the queue was last empty, and is over when it is empty again (empty: no more than `few`);
each overloaded window has one: what was longest in it, and what it ended with. Where no more than that wait,
since requests are dropped or fail, it is the window. The time to recover is from its peak to its end. Requests may
miss their SLO outside of overloads: served at once, too slowly.

Where workers failed, a *fault* has a time to recover of its own: from its beginning to the first moment at which it
is over and noticed, and the queue is empty. Of one that lasts for ever it is enough that it is noticed.

The *burn rate* of a window is the share of its requests that missed, over the share that may (1 - objective): at 1
the budget lasts exactly (Google, The Site Reliability Workbook, 2018, ch. 5).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..validation.comparison.run_files import fault_lines, request_lines
from .timeline import Level, Timeline, level_of, read, with_ends

#: Of what comes in a window, the share by which a queue may grow, or that may wait, and nothing is said of it.
SHARE = 0.05
VERDICTS = ("stable", "backlogged", "overloaded")
#: So many faults are told in words, those from which it took longest to recover.
TOLD = 4
#: More windows than that are no answer.
MOST = 100_000
#: Nor are shorter ones, in seconds.
SHORTEST = 1e-6


@dataclass(frozen=True)
class Window:
    """What comes from *begin* to before *end*: *requests*, of which *met* met their SLO; *lost* are those who were
    dropped or failed in it, *waiting* who waits at its end. *burn* is the burn rate (None: no request, or no
    objective)."""

    begin: float
    end: float
    requests: int
    met: int
    lost: int
    waiting: int
    verdict: str
    burn: float | None

    @property
    def attainment(self) -> float | None:
        return self.met / self.requests if self.requests else None


@dataclass(frozen=True)
class Overload:
    """The queue was empty (no more than `few` waited) before *begin*, longest at *peak* (*waiting*), and empty again
    at *end* (None: it never was); of the *requests* that came in between, *missed* did not meet their SLO. Where no
    more than `few` ever waited, *begin* and *end* are those of windows in which requests were dropped or failed."""

    begin: float
    peak: float
    waiting: int
    end: float | None
    requests: int
    missed: int

    @property
    def recovery(self) -> float | None:
        """Seconds from its peak to its end."""
        return None if self.end is None else self.end - self.peak


@dataclass(frozen=True)
class Fault:
    """Of this *kind*, it befell *what* from *at* to *until* (None: for ever), and was *noticed* then (None: never, or
    it is of a kind that is not). The run had *recovered* then (None: it never did); until then *waiting* waited at
    most, and of the *requests* that came, *missed* did not meet their SLO."""

    kind: str
    what: str
    at: float
    until: float | None
    noticed: float | None
    waiting: int
    recovered: float | None
    requests: int
    missed: int

    @property
    def recovery(self) -> float | None:
        """Seconds from its beginning until the run had recovered."""
        return None if self.recovered is None else self.recovered - self.at

    def line(self, few: float) -> str:
        """In words."""
        lasts = "for ever" if self.until is None else f"until {self.until:.1f} s"
        over = "the run ended before it had recovered"
        if self.recovered is not None:
            over = f"down to {int(few)} at {self.recovered:.1f} s, {self.recovery:.1f} s after it began"
        among = f"{self.missed} of the {self.requests} requests that came meanwhile missed their SLO"
        name = f"fault at {self.at:.1f} s ({self.kind}, {self.what}, {lasts})"
        return f"{name}: {self.waiting} waited at most; {over}; {among}"


@dataclass(frozen=True)
class Windows:
    """A run by windows of *seconds* each. *budget* is how often its error budget was spent (None: no objective).
    *faults* are None where nothing could fail."""

    seconds: float
    few: float
    objective: float | None
    windows: tuple[Window, ...]
    overloads: tuple[Overload, ...]
    budget: float | None
    faults: tuple[Fault, ...] | None = None

    def lines(self) -> list[str]:
        """In words: how many windows are what, how each overload went, and the error budget."""
        counts = Counter(window.verdict for window in self.windows)
        told = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word]) or "no request was sent"
        lines = [f"windows of {self.seconds:g} s: {told}"]
        for one in self.overloads:
            most = f"overloaded from {one.begin:.1f} s on: {one.waiting} waited at most, at {one.peak:.1f} s"
            over = "it did not recover"
            if one.end is not None and one.waiting <= self.few:
                over = f"but requests were dropped or failed, until {one.end:.1f} s"
            elif one.end is not None:
                over = f"down to {int(self.few)} at {one.end:.1f} s, {one.recovery:.1f} s later"
            among = f"{one.missed} of the {one.requests} requests that came meanwhile"
            lines.append(f"{most}; {over}; {among} missed their SLO")
        lines += self._of_faults()
        missed = sum(window.requests - window.met for window in self.windows)
        if self.overloads and (others := missed - sum(one.missed for one in self.overloads)):
            lines.append(f"{others} of {missed} requests that missed their SLO came outside of overloads")
        if self.budget is not None and self.objective is not None:
            worst = max(self.windows, key=lambda window: window.burn or 0.0)
            spent = f"error budget ({100 * (1 - self.objective):g} % may miss): {100 * self.budget:.0f} % of it spent"
            fast = f"at most {worst.burn or 0.0:.1f} times as fast as it may, {worst.begin:g} to {worst.end:g} s"
            lines.append(f"{spent}; {fast}")
        return lines

    def _of_faults(self) -> list[str]:
        """Each fault in words; of many those that lasted longest, after a line for all."""
        faults = self.faults or ()
        if len(faults) <= TOLD:
            return [fault.line(self.few) for fault in faults]
        took = [fault.recovery for fault in faults if fault.recovery is not None]
        each = f" after {float_sum(took) / len(took):.1f} s on average, {max(took):.1f} s at most" if took else ""
        longest = sorted(faults, key=lambda fault: -math.inf if fault.recovery is None else -fault.recovery)[:TOLD]
        told = [fault.line(self.few) for fault in sorted(longest, key=lambda fault: fault.at)]
        return [f"{len(faults)} faults: the run recovered from {len(took)}{each}; the longest {TOLD}:", *told]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        said = asdict(self)
        said["windows"] = [{**asdict(w), "attainment": w.attainment} for w in self.windows]
        said["overloads"] = [{**asdict(o), "recovery": o.recovery} for o in self.overloads]
        if self.faults is not None:
            said["faults"] = [{**asdict(fault), "recovery": fault.recovery} for fault in self.faults]
        else:
            del said["faults"]
        return said


def check(seconds: float | None, objective: float | None, length: float = 0.0) -> None:
    """Raise `BadInput` if no run has such windows, or none that lasts *length* seconds at least, or such an objective
    leaves no budget."""
    if seconds is not None and not 0.0 < seconds < math.inf:
        raise BadInput(f"{seconds:g} s is no length of a window", where="--windows", right="seconds, above 0")
    if seconds is not None and (seconds < SHORTEST or length / seconds > MOST):
        what = f"{seconds:g} s makes more than {MOST} windows of {max(length, MOST * SHORTEST):g} s"
        raise BadInput(what, where="--windows", right=f"a length that makes {MOST} at most")
    if objective is not None and not 0.0 < objective < 1.0:
        what = f"{objective:g} leaves no error budget" if objective == 1.0 else f"{objective:g} is no share to hold"
        raise BadInput(what, where="--objective", right="above 0 and below 1: 0.99")


def of_run(folder: Path, seconds: float | None = None, objective: float | None = None) -> Windows:
    """The run in *folder*, simulated or real, by windows of *seconds* (None: some thirty of a round length), held to
    an *objective*: the share of requests that are to meet their SLO. Raises `BadInput`."""
    return of_records(request_lines(folder), read(folder), seconds, objective, faults_of(folder))


def faults_of(folder: Path) -> list[dict[str, Any]] | None:
    """The lines of ``faults.jsonl`` in *folder*; None if nothing could fail. Raises `BadInput`."""
    return fault_lines(folder) if (folder / "faults.jsonl").exists() else None


def of_records(
    records: Iterable[dict[str, Any]],
    line: Timeline,
    seconds: float | None = None,
    objective: float | None = None,
    faults: Sequence[dict[str, Any]] | None = None,
) -> Windows:
    """The same of the *records* of requests, the *line* of their run, and its *faults*."""
    requests = [(record["arrival"], record["outcome"], end) for record, end in with_ends(records)]
    check(seconds, objective)
    width = seconds if seconds is not None else neat(max(line.end, 1e-9) / 30)
    count = max(1, math.ceil(line.end / width))
    if not requests:
        return Windows(width, 1.0, objective, (), (), None)
    if count > MOST:
        what = f"{width:g} s makes {count} windows of {line.end:g} s"
        raise BadInput(what, where="--windows", right=f"a length that makes {MOST} at most")
    arrivals = np.array([arrival for arrival, _, _ in requests])
    met = np.array([outcome == "met" for _, outcome, _ in requests])
    gone = np.array([end for _, outcome, end in requests if outcome in ("dropped", "failed")])
    failed = np.array([end for _, outcome, end in requests if outcome == "failed"])
    edges = width * np.arange(count + 1)
    queue = _together(line)
    coming = np.histogram(arrivals, edges)[0]
    kept = np.histogram(arrivals[met], edges)[0]
    lost = np.histogram(gone, edges)[0] if gone.size else np.zeros(count, int)
    few = max(1.0, SHARE * len(requests) / max(1, math.ceil(arrivals.max() / width)))
    held = queue.at(edges)
    windows = []
    for i in range(count):
        n, growth = int(coming[i]), held[i + 1] - held[i] + lost[i]
        if n and growth > max(SHARE * n, 2.0 * math.sqrt(n)):
            verdict = "overloaded"
        else:
            verdict = "backlogged" if _least(queue, edges[i], edges[i + 1]) > few else "stable"
        burn = None if objective is None or not n else (1.0 - kept[i] / n) / (1.0 - objective)
        told = n, int(kept[i]), int(lost[i]), round(held[i + 1])
        windows.append(Window(float(edges[i]), float(edges[i + 1]), *told, verdict, burn))
    budget = None if objective is None else float((1.0 - met.mean()) / (1.0 - objective))
    overloads = sorted(_overloads(windows, queue, few, arrivals, met, failed), key=lambda one: one.begin)
    felt = None if faults is None else tuple(_felt(faults, line.end, queue, few, arrivals, met, failed))
    return Windows(width, few, objective, tuple(windows), tuple(overloads), budget, felt)


def neat(value: float) -> float:
    """The nearest of 1, 2, 5, 10, ... above *value*."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * times for times in (1.0, 2.0, 5.0, 10.0) if power * times >= value * (1.0 - 1e-9))


def _together(line: Timeline) -> Level:
    """Who waits anywhere."""
    known = [level for level in (*line.waiting.values(), line.held) if level.times.size]
    if not known:
        return level_of(np.zeros(0), np.zeros(0))
    changes = [np.diff(level.values, prepend=0.0) for level in known]
    return level_of(np.concatenate([level.times for level in known]), np.concatenate(changes))


def _least(queue: Level, begin: float, end: float) -> float:
    first, last = np.searchsorted(queue.times, (begin, end), side="left")
    inner = queue.values[first:last]
    return float(min(queue.at(np.array([begin]))[0], inner.min() if inner.size else math.inf))


def _overloads(
    windows: Sequence[Window], queue: Level, few: float, arrivals: np.ndarray, met: np.ndarray, failed: np.ndarray
) -> Iterator[Overload]:
    """What made *windows* overloaded: each stretch of time with more than *few* in the *queue* that was longest in
    one of them, or that one ended with; or the window itself, where few wait but requests are dropped or fail."""
    long = queue.values > few
    known: set[int] = set()
    losing: list[Window] = []
    for window in windows:
        if window.verdict != "overloaded":
            continue
        levels = _levels(queue, window.begin, window.end)
        places = {int(levels[np.argmax(queue.values[levels])]), int(levels[-1])} if levels.size else set()
        inside = sorted(place for place in places if long[place])
        if not inside:
            losing.append(window)
        for place in inside:
            before, after = np.flatnonzero(~long[:place]), np.flatnonzero(~long[place:])
            begins = int(before[-1]) + 1 if before.size else 0
            ends = place + int(after[0]) if after.size else len(long)
            if begins in known:
                continue
            known.add(begins)
            peak = begins + int(np.argmax(queue.values[begins:ends]))
            begin, end = float(queue.times[begins]), float(queue.times[ends]) if ends < len(long) else None
            if end is not None and (failed == end).any():
                end = None  # nobody waits any more because the run was cut off
            among = (arrivals >= begin) & (arrivals < (math.inf if end is None else end))
            longest = float(queue.times[peak]), round(queue.values[peak])
            yield Overload(begin, *longest, end, int(among.sum()), int((among & ~met).sum()))
    yield from _losses(losing, queue)


def _felt(
    lines: Sequence[dict[str, Any]],
    over: float,
    queue: Level,
    few: float,
    arrivals: np.ndarray,
    met: np.ndarray,
    failed: np.ndarray,
) -> Iterator[Fault]:
    """Each fault of *lines*, in order of time, in a run that ended at *over*. (A device has a line for each worker; a
    pause of one that was down was none.)"""
    by_fault: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for said in lines:
        if said["kind"] != "pause" or not said.get("while_down"):
            by_fault.setdefault((said["kind"], said["what"], said["at"]), []).append(said)
    order = np.argsort(arrivals, kind="stable")
    came, missed = arrivals[order], np.concatenate([[0], np.cumsum(~met[order])])
    short, cut_off = np.flatnonzero(queue.values <= few), set(failed.tolist())
    for (kind, what, _), same in by_fault.items():
        at = min(said["at"] for said in same)
        ends = [said["until"] for said in same]
        until = None if None in ends else max(ends)
        seen = [said["noticed"] for said in same if said.get("noticed") is not None]
        noticed = max(seen) if seen else None
        recovered = None
        known = [when for when in (until, noticed) if when is not None]
        if known and max(known) <= over:
            recovered = max(at, *known)
            if queue.at(np.array([recovered]))[0] > few:
                after = short[np.searchsorted(queue.times[short], recovered, side="right") :]
                recovered = float(queue.times[after[0]]) if after.size else None
                if recovered in cut_off:
                    recovered = None  # nobody waits any more because the run was cut off
        levels = _levels(queue, at, over if recovered is None else recovered)
        longest = round(float(queue.values[levels].max())) if levels.size else 0
        first, last = np.searchsorted(came, (at, math.inf if recovered is None else recovered), side="left")
        yield Fault(
            kind, what, at, until, noticed, longest, recovered, int(last - first), int(missed[last] - missed[first])
        )


def _levels(queue: Level, begin: float, end: float) -> np.ndarray:
    """The places in *queue* of the levels that it has from *begin* to *end*."""
    first, last = np.searchsorted(queue.times, (begin, end), side="right")
    return np.arange(max(int(first) - 1, 0), int(last))


def _losses(losing: Sequence[Window], queue: Level) -> Iterator[Overload]:
    """An overload for each row of windows in which few wait, but requests are dropped or fail."""
    rows: list[list[Window]] = []
    for window in losing:
        if rows and rows[-1][-1].end == window.begin:
            rows[-1].append(window)
        else:
            rows.append([window])
    for row in rows:
        begin, end = row[0].begin, row[-1].end
        levels = _levels(queue, begin, end)
        place = int(levels[np.argmax(queue.values[levels])]) if levels.size else None
        at = begin if place is None else max(begin, float(queue.times[place]))
        waiting = 0 if place is None else round(queue.values[place])
        requests, met = sum(w.requests for w in row), sum(w.met for w in row)
        yield Overload(begin, at, waiting, end, requests, requests - met)
