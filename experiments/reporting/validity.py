"""How far numbers can be trusted: what the profiles of experiments stand on, and where they were held against runs.

A profile is measured, imported from another tool or estimated. The simulation was validated by measured runs, which
cover some rates, cvs and SLOs, of some policies. A report says on which side of that its own settings lie.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from servetwin.core import BadInput, ServeTwinError

from ..spec.experiment import Experiment
from ..spec.loading import load_profiles
from ..validation.comparison import run_table
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


def section(experiments: Sequence[Experiment], settings: Iterable[Setting], more: Iterable[str] = ()) -> Section:
    """What the results of *experiments* stand on, at these *settings*; *more* is to be said too."""
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
    parts += [Note(_sentence(line)) for line in [*notes, *dict.fromkeys(more)]]
    parts += _ranges(experiments, list(settings))
    return Section("How far to trust this", parts)


def _distinct(experiments: Iterable[Experiment]) -> list[Experiment]:
    """One experiment for each system that is served: the notes about the others are the same."""
    return list({(e.name, repr(e.deployment), repr(e.policies), repr(e.time)): e for e in experiments}.values())


def _add_profiles(experiment: Experiment, rows: dict[str, list[str]], notes: dict[str, None]) -> None:
    from servetwin.profiles import verdict

    from ..assembly.build import policy_not_measured, time_shared

    for profile in load_profiles(experiment).values():
        data = profile.data
        basis = data.basis
        origin = "measured" if basis is None else f"{basis.kind}: {basis.source}; known error: {basis.known_error}"
        found = [verdict.short(data) or "", *verdict.beyond(data)]
        rows[profile.name] = [profile.name, origin, "; ".join(text for text in found if text) or "nothing"]
    notes |= dict.fromkeys([*time_shared(experiment), *policy_not_measured(experiment)])


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
    """The settings of the measured runs that come with ServeTwin of *workload*, or of one of the *profiles*."""
    _, runs = run_table.read(run_table.NEUSTREAM)
    found = [
        Setting(workload, r.policy, _known(r.rate), _known(r.cv), _known(r.slo_factor))
        for r in runs
        if r.workload == workload
    ]
    for folder in dict.fromkeys(profile.partition("/")[0] for profile in profiles):
        if folder and (run_table.NEUSTREAM.parent / folder).is_dir():
            found += _recorded(folder, workload, profiles)
    return tuple(dict.fromkeys(found))


def _recorded(folder: str, workload: str, profiles: Sequence[str]) -> Iterator[Setting]:
    """The settings of the recordings in a *folder* of measured runs."""
    for path in sorted((run_table.NEUSTREAM.parent / folder).rglob("*.json.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            recording: dict[str, Any] = json.load(file)
        if recording.get("profile") not in profiles and recording.get("workload") != workload:
            continue
        for run in recording.get("runs", ()):
            arrivals = run.get("experiment", {}).get("workload", {}).get("arrivals", {})
            policy = run.get("policy") or run.get("experiment", {}).get("policy", {}).get("name")
            if policy is not None:
                rate, cv = (run.get(key, arrivals.get(key)) for key in ("rate", "cv"))
                yield Setting(workload, policy, rate, cv, run.get("slo_factor"))


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def experiment_of(content: Any) -> Experiment | None:
    """The experiment that *content*, of a run's ``meta.json``, holds; None if it is of another version."""
    from pydantic import ValidationError

    try:
        return Experiment.model_validate(content)
    except (ValidationError, BadInput):
        return None
