"""How far numbers can be trusted: what the profiles of experiments stand on, and where they were held against runs.

A profile is measured, imported from another tool or estimated. The simulation was validated by measured runs, which
cover some rates, cvs and SLOs, of some policies. A report says on which side of that its own settings lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from servetwin.core import BadInput, ServeTwinError

from ..spec.experiment import Experiment
from ..spec.loading import load_profiles
from ..validation.envelope import index, standing
from ..validation.envelope.facts import RATE
from .document import Note, Part, Section, Table, plain, plural

#: What is compared of a setting, and its name.
RANGES = (("rate", "rate, requests/s"), ("cv", "cv"), ("slo_factor", "SLO factor"))


class Setting(NamedTuple):
    """Where a run lies; None where it has no such number."""

    workload: str
    policy: str
    rate: float | None
    cv: float | None
    slo_factor: float | None


def section(
    experiments: Sequence[Experiment],
    settings: Iterable[Setting],
    more: Iterable[str] = (),
    points: Sequence[Experiment] = (),
) -> Section:
    """What the results of *experiments* stand on, at these *settings*; *more* is to be said too. *points* are the
    simulated experiments themselves, where they are known."""
    parts: list[Part] = []
    notes: dict[str, None] = {}
    rows: dict[str, list[str]] = {}
    for experiment in _distinct(experiments):
        try:
            _add_profiles(experiment, rows, notes)
        except ServeTwinError as error:
            notes[f"{experiment.name}: its profiles cannot be read here: {error}"] = None
    if rows:
        parts.append(Table(["profile", "its times", "noted in it"], list(rows.values())))
    parts += [Note(_sentence(line)) for line in [*_standing(points), *notes, *dict.fromkeys(more)]]
    parts += _ranges(experiments, list(settings))
    return Section("How far to trust this", parts)


def _standing(points: Sequence[Experiment]) -> list[str]:
    """Where *points* stand against recorded runs, in a line."""
    try:
        return [f"validity: {standing.summary(standing.of_all(points))}"] if points else []
    except ServeTwinError:  # a profile that is not there any more, of which is told besides
        return []


def _distinct(experiments: Iterable[Experiment]) -> list[Experiment]:
    """One experiment for each system that is served: the notes about the others are the same."""
    return list({(e.name, repr(e.deployment), repr(e.policies), repr(e.time)): e for e in experiments}.values())


def _add_profiles(experiment: Experiment, rows: dict[str, list[str]], notes: dict[str, None]) -> None:
    from servetwin.profiles import verdict

    from ..assembly import stated
    from ..assembly.build import policy_not_measured, time_shared

    profiles = load_profiles(experiment)
    for profile in profiles.values():
        data = profile.data
        basis = data.basis
        origin: str = verdict.origin(data)
        if basis is not None:
            origin = f"{origin}: {basis.source}; known error: {basis.known_error}"
        found = [verdict.short(data) or "", *verdict.beyond(data)]
        rows[profile.name] = [profile.name, origin, "; ".join(text for text in found if text) or "nothing"]
    notes |= dict.fromkeys(
        [
            *time_shared(experiment),
            *policy_not_measured(experiment),
            *stated.stands_on(experiment, profiles),
        ]
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


# -- the range of measured runs -------------------------------------------------------------------------


def _ranges(experiments: Sequence[Experiment], settings: Sequence[Setting]) -> list[Part]:
    """Whether *settings* lie within those of measured runs of the same workload, or with the same profiles."""
    found: dict[str, list[Setting]] = {}
    for experiment in _distinct(experiments):
        own = found.setdefault(experiment.name, [])
        own += measured_with(experiment.name, tuple(sorted(set(experiment.deployment.devices.values()))))
    rows, notes = [], []
    for workload in dict.fromkeys(s.workload for s in settings):
        own = list(dict.fromkeys(found.get(workload, ())))
        asked = [s for s in settings if s.workload == workload]
        if not own:
            notes.append(
                Note(
                    f"No recorded runs of {workload} come with ServeTwin: whether these settings lie within what was"
                    " validated cannot be told."
                )
            )
            continue
        policies = sorted({s.policy for s in asked} - {s.policy for s in own})
        if policies:
            notes.append(Note(f"No measured run of {workload} was under {', '.join(policies)}."))
        for key, label in RANGES:
            here, there = ([v for s in side if (v := getattr(s, key)) is not None] for side in (asked, own))
            if here and there:
                rows.append([workload, label, _span(here), _span(there), _where(here, there)])
    table = Table(
        ["workload", "setting", "here", "measured runs", ""],
        rows,
        "Whether these settings lie within those of the measured runs by which the simulation was validated",
    )
    return [*([table] if rows else []), *notes]


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return plain(low) if low == high else f"{plain(low)} to {plain(high)}"


def _where(here: Sequence[float], there: Sequence[float]) -> str:
    low, high = min(there), max(there)
    outside = sum(not (low - 1e-9 <= v <= high + 1e-9) for v in here)
    if not outside:
        return "inside"
    return "outside" if outside == len(here) else f"outside in {plural(outside, 'point')} of {len(here)}"


@cache
def measured_with(workload: str, profiles: tuple[str, ...]) -> tuple[Setting, ...]:
    """The settings of the recorded runs that come with ServeTwin of one of the *profiles*, as runs of *workload*."""
    found: dict[Setting, None] = {}
    for run in (run for recorded in index.load() for run in recorded.runs):
        if {system.profile for system in run.systems} & set(profiles):
            numbers = (run.ranges.get(name) for name in (RATE, "cv", "SLO factor"))
            found[Setting(workload, run.policy, *(span[0] if span else None for span in numbers))] = None
    return tuple(found)


def experiment_of(content: Any) -> Experiment | None:
    """The experiment that *content*, of a run's ``meta.json``, holds; None if it is of another version."""
    from pydantic import ValidationError

    try:
        return Experiment.model_validate(content)
    except (ValidationError, BadInput):
        return None
