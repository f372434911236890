"""Where a run stands against those that were recorded: as they were, or what is not.

A setting counts as recorded if there were runs of the same model on the same device by the same profile, with the
same placement, engine options and policy, and if each number lies between the lowest and the highest of those runs.
Load is what is asked of a worker, in steps or output tokens per second, so it stands for how far from the knee a run
is. What the program says of a run that is like recorded ones is how far off the simulation is on those
(``scoreboard.json``); of others nobody knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from servetwin.core import BadInput

from ...spec.experiment import Experiment
from . import index
from .facts import RATE, REQUESTS, Asked, Facts, Range, of_experiment
from .index import Recorded
from .keys import in_words

#: By how much of itself a number may lie beyond the recorded ones, by how its name begins; what is drawn varies.
TOLERANCES = {
    "mean ": 0.1,
    "longest ": 0.1,
    "each ": 0.1,
    "declared ": 0.1,
    "spread ": 0.25,
    "load ": 0.1,
    "cv": 0.1,
    "KV blocks": 0.05,
}
TOLERANCE = 0.01
#: So many times as many requests as were recorded may be sent (in overload what waits grows with each), or fewer.
MANY = 10
#: Runs whose mean lengths are within this share of those asked for count as runs of such lengths.
ALIKE = 0.25
#: What an engine does by a key that few who read of it have set.
ENGINE = {"whole_prompt": "memory for all of a prompt before it begins (engine.whole_prompt)"}
#: So many of what is outside are told in a line.
MOST = 4


@dataclass(frozen=True)
class Standing:
    """Where a result stands against the recorded runs by which the simulation was validated.

    *validated*: it is as they were; else *outside* says in words what is not, the most general first. *recording*
    names the nearest ones (a folder or file below ``experiments/measured``; None: none are of this model on this
    device), *mean_gap* and *largest_gap* how far off the simulation is on them, in percentage points of the requests
    (None: not on the scoreboard).
    """

    validated: bool
    outside: tuple[str, ...]
    recording: str | None = None
    mean_gap: float | None = None
    largest_gap: float | None = None

    def __str__(self) -> str:
        return self.said(MOST)

    def said(self, most: int | None = None) -> str:
        """In a line, with so many of what is outside, or all of it."""
        told = "; ".join(self.outside[:most])
        if most is not None and len(self.outside) > most:
            told += f"; and {len(self.outside) - most} more that are not as recorded (all with --json)"
        if self.recording is None:
            return f"outside what was validated: {told}"
        if not self.validated:
            return f"outside what was validated ({self.recording}): {told}"
        if self.mean_gap is None:
            return f"inside what was recorded ({self.recording}), which is not on the scoreboard"
        off = f"off by {self.mean_gap:.2f} points on average, {self.largest_gap:.2f} at most"
        return f"inside what was validated ({self.recording}: the simulation is {off})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        gap = None if self.mean_gap is None else {"mean": self.mean_gap, "largest": self.largest_gap}
        found = {"validated": self.validated, "outside": list(self.outside), "recording": self.recording}
        return {**found, "gap_points": gap}


def of(experiment: Experiment, known: dict[str, Asked] | None = None) -> Standing:
    """Where a simulated run of *experiment* stands; *known* is as in `of_experiment`. Raises `BadInput` as that
    would."""
    return standing(of_experiment(experiment, known=known))


class Standings(list[Standing]):
    """Where each of several results stands."""

    def line(self, what: str = "points") -> str:
        """In a line, of so many of *what*."""
        return f"validity: {summary(self, what)}"

    def as_dicts(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [one.as_dict() for one in self]


def of_all(experiments: Iterable[Experiment]) -> Standings:
    """Likewise of each of *experiments*; those that differ in their seed alone stand alike."""
    known: dict[str, Standing] = {}
    asked: dict[str, Asked] = {}
    found = Standings()
    for experiment in experiments:
        key = experiment.model_copy(update={"seed": 0}).digest()
        if key not in known:
            known[key] = of(experiment, asked)
        found.append(known[key])
    return found


def strictly(find: str) -> tuple[Callable[[Experiment], None], Callable[[Sequence[Experiment]], None]]:
    """What refuses of a search for *find* what is outside: its experiments before it begins, and its answers."""
    return lambda experiment: refuse([but_for(experiment, find)]), lambda experiments: refuse(of_all(experiments))


def but_for(experiment: Experiment, sought: str) -> Standing:
    """As `of`, whatever the experiment says of the quantity that is *sought* (rate, slo or replicas)."""
    facts = of_experiment(experiment)
    begins = {"rate": ("load ", RATE), "slo": ("SLO", "decode SLO"), "replicas": ("replicas", "load ", RATE)}[sought]
    ranges = {name: span for name, span in facts.ranges.items() if not name.startswith(begins)}
    return standing(replace(facts, ranges=ranges))


class Look:
    """What a sweep shows its points to before they run, for *stands*: where each of them stands. Where it is
    *strict*, raises `BadInput` if one is outside."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.stands = Standings()

    def __call__(self, experiments: Iterable[Experiment]) -> None:
        self.stands = of_all(experiments)
        if self.strict:
            refuse(self.stands)


def standing(facts: Facts) -> Standing:
    """Where a run with these *facts* stands."""
    every = index.load()
    digests = {system.digest for system in facts.systems}
    known = [r for r in every if digests <= {system.digest for system in r.systems}]
    first: list[str] = []
    if not known:
        kinds = {system.kind for system in facts.systems}
        known = [r for r in every if kinds <= {system.kind for system in r.systems}]
        first = [_other_profile(facts, every)]
    if not known:
        return Standing(False, (_other_system(facts, every),))
    found = [(first + list(_beside(facts, recorded.runs)), recorded) for recorded in known]
    outside, nearest = min(found, key=lambda f: (len(f[0]), f[1].gap is None, -len(f[1].runs)))
    gap = nearest.gap if facts.dated else nearest.undated
    mean, largest = gap if gap is not None else (None, None)
    return Standing(not outside, tuple(dict.fromkeys(outside)), nearest.source, mean, largest)


def _other_profile(facts: Facts, every: Sequence[Recorded]) -> str:
    named = {system.profile for recorded in every for system in recorded.systems}
    digests = {system.digest for recorded in every for system in recorded.systems}
    others = [system.profile for system in facts.systems if system.digest not in digests]
    changed = [name for name in others if name in named]
    if changed:
        return f"profile {', '.join(changed)} (not as it is of the recorded runs)"
    return f"profile {', '.join(others) or 'of each device'} (no recorded runs by it)"


def _other_system(facts: Facts, every: Sequence[Recorded]) -> str:
    kinds = {system.kind for recorded in every for system in recorded.systems}
    models = {model for model, _ in kinds}
    if not facts.systems:
        return "no device"
    unknown = [system for system in facts.systems if system.kind not in kinds] or list(facts.systems)
    system = unknown[0]
    if len(facts.systems) > 1 and system.kind in kinds:
        return "no recorded runs of " + " and ".join(f"{s.model} on {s.device}" for s in facts.systems) + " together"
    model = system.kind[0]
    also = f" (recorded on {', '.join(sorted(d for m, d in kinds if m == model))})" if model in models else ""
    return f"no recorded runs of {system.model} on {system.device}{also}"


# -- beside recorded runs -------------------------------------------------------------------------------


def _beside(facts: Facts, runs: Sequence[Facts]) -> Iterator[str]:
    """What of *facts* is not as in *runs*, in words."""
    left = list(runs)

    def those(has: Callable[[Facts], bool]) -> bool:
        nonlocal left
        alike = [run for run in left if has(run)]
        left = alike or left
        return bool(alike)

    if not those(lambda run: run.placement == facts.placement):
        yield f"modules on workers as {facts.placement} (recorded: {_listed(run.placement for run in left)})"
    for name, value in facts.engine.items():
        if not those(lambda run, name=name, value=value: run.engine.get(name) == value):  # type: ignore[misc]
            called = ENGINE.get(name, name)
            yield f"{called} {_plain(value)} (recorded: {_listed(_plain(r.engine.get(name)) for r in left)})"
    if not those(lambda run: run.pipeline == facts.pipeline):
        yield f"pipeline {facts.pipeline} (recorded: {_listed(run.pipeline for run in left)})"
    if not those(lambda run: _words(run, facts) == set(facts.special)):
        yield from _special(facts, left)
    same_policy = those(lambda run: run.policy == facts.policy)
    if not same_policy:
        so = (
            " so" if any(run.policy == facts.policy for run in runs) else ""
        )  # the rest was recorded under others only
        yield f"policy {facts.policy} (recorded{so}: {_listed(run.policy for run in left)})"
    elif not those(lambda run: run.params == facts.params):
        recorded = "; ".join(dict.fromkeys(_said(run.params) for run in left))
        yield f"{facts.policy} with {_said(facts.params)} (recorded: {recorded})"
    lengths = [name for name in facts.ranges if name.startswith("mean ")]
    those(lambda run: all(name in run.ranges and _alike(facts.ranges[name], run.ranges[name]) for name in lengths))
    if left:
        dropped = set.intersection(*(_limits(run) for run in left)) - _limits(facts)
        yield from (f"without {name.removesuffix(', ms')}" for name in sorted(dropped))
    loads = any(name.startswith("load ") for name in facts.ranges)
    for name, asked in facts.ranges.items():
        if name == RATE and loads:
            continue
        there = [run.ranges[name] for run in left if name in run.ranges]
        if not there:
            yield f"{name} {_span(asked)} (none recorded)"
        elif not _within(name, asked, _whole(there)):
            yield f"{name} {_span(asked)} (recorded: {_span(_whole(there))})"


def _words(run: Facts, facts: Facts) -> set[str]:
    """What is special of the recorded *run*. That it was cut off at its end does not count where nothing is cut."""
    cut = "system.stop_after "
    cuts = any(word.startswith(cut) for word in facts.special)
    return {word for word in run.special if cuts or not word.startswith(cut)}


def _special(facts: Facts, runs: Sequence[Facts]) -> Iterator[str]:
    recorded = {word for run in runs for word in _words(run, facts)}
    new = [word for word in facts.special if word not in recorded]
    yield from new
    always = set.intersection(*(_words(run, facts) for run in runs)) - set(facts.special)
    yield from (f"without {word}" for word in sorted(always))
    if not new and not always:
        yield " with ".join(facts.special) or f"without {' or '.join(sorted(recorded))}"


def _limits(run: Facts) -> set[str]:
    return {name for name in run.ranges if name.endswith(" limit, ms")}


def _alike(asked: Range, there: Range) -> bool:
    return abs(asked[0] - there[0]) <= ALIKE * there[0]


def _whole(there: Sequence[Range]) -> Range:
    return min(low for low, _ in there), max(high for _, high in there)


def _within(name: str, asked: Range, there: Range) -> bool:
    if name == REQUESTS:
        return asked[1] <= MANY * there[1]
    slack = next((share for begin, share in TOLERANCES.items() if name.startswith(begin)), TOLERANCE)
    return there[0] * (1.0 - slack) <= asked[0] and asked[1] <= there[1] * (1.0 + slack)


def _span(span: Range) -> str:
    low, high = (f"{value:.0f}" if value >= 1000.0 else f"{value:.3g}" for value in span)
    return low if low == high else f"{low} to {high}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _said(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {in_words(value)}" for name, value in sorted(params.items())) or "its defaults"


def _listed(names: Iterable[str]) -> str:
    several = list(dict.fromkeys(names))
    return ", ".join(several[:MOST]) + (f" and {len(several) - MOST} more" if len(several) > MOST else "")


# -- several results ------------------------------------------------------------------------------------


def summary(found: Sequence[Standing], what: str = "points") -> str:
    """The standings of several results in a line."""
    different = list(dict.fromkeys(found))
    if len(different) == 1:
        return str(different[0])
    within = sum(one.validated for one in found)
    line = f"{within} of {len(found)} {what} inside what was validated"
    counted = Counter(_kind(text) for one in found for text in dict.fromkeys(one.outside))
    told = "; ".join(f"{text} ({count})" for text, count in counted.most_common(MOST))
    recordings = _listed(sorted({one.recording for one in found if one.recording is not None}))
    where = f" ({recordings})" if recordings else ""
    return f"{line}{where}" + (f"; outside: {told}" if told else "")


def _kind(text: str) -> str:
    """What is outside, without the values."""
    name = text.partition(" (recorded")[0]
    words = name.split()
    numbers = [i for i, word in enumerate(words) if word.replace(".", "").isdigit()]
    return " ".join(words[: numbers[0]]) if numbers and "," not in name else name


def refuse(found: Iterable[Standing]) -> None:
    """Raise `BadInput` if one of the standings *found* is outside."""
    for one in found:
        if not one.validated:
            raise BadInput(one.said(), where="--strict", right="what was recorded, or no --strict")
