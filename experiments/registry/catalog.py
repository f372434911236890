"""Names that users type, and what they may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from servetwin.core import BadInput

HERE = Path(__file__).parents[1]
WORKLOADS = HERE / "workloads"
FIGURES = HERE / "figures"
MEASURED = HERE / "measured"
LISTS = HERE / "lists"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that *name* looks like most, if any is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def suggest(name: str, known: Iterable[str]) -> str:
    """What would have been right instead of *name*."""
    known = list(known)
    match = closest(name, known)
    return match if match is not None else "one of " + ", ".join(known)


def unknown(kind: str, name: str, known: Iterable[str], where: str | None = None) -> BadInput:
    """The error for a name that is not known."""
    return BadInput(f"unknown {kind} {name!r}", where=where, right=suggest(name, known))


def source_of(text: str) -> str | Path:
    """What a user calls an experiment: a path if it looks like one, else a workload's name."""
    return Path(text) if "/" in text or text.endswith((".yaml", ".yml")) else text


def workload_names() -> list[str]:
    """The workloads that come with ServeTwin."""
    return sorted(p.stem for p in WORKLOADS.glob("*.yaml"))


def list_names() -> list[str]:
    """The lists of lengths that come with ServeTwin."""
    return sorted(p.stem for p in LISTS.glob("*.yaml"))


def figure_names() -> list[str]:
    """The sweeps behind published figures that come with ServeTwin."""
    return sorted(p.stem for p in FIGURES.glob("*.yaml"))


def recording_of(text: str) -> Path:
    """A recording that a user names: a file, or what stands below ``experiments/measured`` of this installation."""
    path = Path(text)
    ours = MEASURED / text.removeprefix("experiments/measured/")
    return ours if not path.exists() and ours.exists() else path
