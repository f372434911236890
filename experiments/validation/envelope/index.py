"""The facts of all recorded runs in one small file, so that a result is held against them without reading recordings.

    python -m servetwin.experiments.validation.envelope.index

writes ``experiments/measured/envelope.json`` anew, from the recordings and profiles that are there and from the gaps
in ``scoreboard.json``; tests hold it to them. It takes some ten seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

from ...registry.catalog import MEASURED
from ..comparison.run_table import NEUSTREAM
from .facts import Facts, Range, System

#: What is kept.
KEPT = MEASURED / "envelope.json"

#: Significant digits of what is kept.
DIGITS = 4


@dataclass(frozen=True)
class Recorded:
    """Recorded runs of one model on one kind of device, from one recording.

    *gap* is (mean, largest) of the simulation's absolute gaps in the recording, in percentage points of the requests,
    None where it is not on the scoreboard; *undated* that where nobody says when runs were made. *scored* is how many
    runs these are of.
    """

    source: str
    systems: frozenset[System]
    gap: Range | None
    undated: Range | None
    scored: int
    #: What is kept of the runs, by what they have in common.
    kept: tuple[tuple[dict[str, Any], list[str], list[Any]], ...]

    @cached_property
    def runs(self) -> tuple[Facts, ...]:
        """The facts of each run; made when they are wanted, for a result is held against one recording or a few."""
        found = []
        for said, names, rows in self.kept:
            for row in rows:
                ranges = {
                    name: (value, value) if not isinstance(value, list) else (value[0], value[1])
                    for name, value in zip(names, row, strict=True)
                }
                found.append(Facts(**said, ranges=ranges))
        return tuple(found)


@cache
def load() -> tuple[Recorded, ...]:
    """What is kept. Read once."""
    return read(json.loads(KEPT.read_text(encoding="utf-8")))


def read(content: dict[str, Any]) -> tuple[Recorded, ...]:
    """The recorded runs that *content* says, which `made` gives."""
    systems = [System(*entry) for entry in content["systems"]]
    found = []
    for source, entry in content["recordings"].items():
        by_system: dict[tuple[tuple[str, str], ...], list[tuple[dict[str, Any], list[str], list[Any]]]] = {}
        for setup, names, rows in entry["runs"]:
            own = tuple(systems[number] for number in setup["systems"])
            said = {**setup, "systems": own, "special": tuple(setup["special"])}
            kind = tuple(dict.fromkeys(system.kind for system in own))
            by_system.setdefault(kind, []).append((said, names, rows))
        gap, undated = (tuple(gap) if (gap := entry[key]) else None for key in ("gap", "undated"))
        for alike in by_system.values():
            used = frozenset(system for said, _, _ in alike for system in said["systems"])
            found.append(Recorded(source, used, gap, undated, entry["scored"], tuple(alike)))
    return tuple(found)


def made() -> dict[str, Any]:
    """What is to be kept, of the recordings that are here."""
    from ..scoreboard import digest, kept
    from .recorded import of, sources

    scores = kept()
    systems: dict[System, int] = {}
    recordings: dict[str, Any] = {}
    for source, paths in sources().items():
        runs = [facts for path in paths for facts in of(path)]
        own = scores.get(source)
        undated = scores.get(f"{NEUSTREAM.name}, dates unknown") if source == NEUSTREAM.name else own
        recordings[source] = {
            "gap": list(own.gap) if own else None,
            "undated": list(undated.gap) if undated else None,
            "digest": digest(source),
            "scored": own.runs if own else len(runs),
            "runs": packed(runs, systems),
        }
    return {"systems": [list(asdict(system).values()) for system in systems], "recordings": recordings}


def packed(runs: Sequence[Facts], systems: dict[System, int]) -> list[Any]:
    """Runs with the same words together, each with its numbers, once."""
    found: dict[str, tuple[dict[str, Any], list[str], dict[str, list[Any]]]] = {}
    for run in runs:
        setup = {**asdict(run), "systems": [systems.setdefault(system, len(systems)) for system in run.systems]}
        ranges = setup.pop("ranges")
        names = sorted(ranges)
        row = [_short(*ranges[name]) for name in names]
        key = json.dumps([setup, names], sort_keys=True)
        found.setdefault(key, (setup, names, {}))[2].setdefault(json.dumps(row), row)
    return [[setup, names, list(rows.values())] for setup, names, rows in found.values()]


def _short(low: float, high: float) -> Any:
    a, b = (float(f"{value:.{DIGITS}g}") for value in (low, high))
    return a if a == b else [a, b]


def as_text(content: dict[str, Any]) -> str:
    """The text of the file: a line for each setup, so that differences can be read."""
    lines = ["{", '"systems": [', ",\n".join(json.dumps(entry) for entry in content["systems"]), "],"]
    parts = []
    for source, entry in content["recordings"].items():
        head = ", ".join(
            f"{json.dumps(key)}: {json.dumps(entry[key])}" for key in ("digest", "gap", "undated", "scored")
        )
        runs = ",\n".join(json.dumps(run) for run in entry["runs"])
        parts.append(f'{json.dumps(source)}: {{{head}, "runs": [\n{runs}\n]}}')
    return "\n".join([*lines, '"recordings": {', ",\n".join(parts), "}", "}"]) + "\n"


if __name__ == "__main__":
    KEPT.write_text(as_text(made()), encoding="utf-8")
