"""What two runs tell of replicas that come and go, of workers that fail, and of models that share cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: By the part of a summary, what is compared of it: key, label, digits.
COMPARED: dict[str, tuple[tuple[str, str, int], ...]] = {
    "fleet": (
        ("mean_replicas", "replicas, mean", 3),
        ("most_replicas", "replicas, at most", 0),
        ("replica_hours", "replica-hours", 4),
        ("starts", "starts", 0),
        ("waited_for_a_replica", "waits for a replica", 0),
    ),
    "faults": (
        ("failures", "failures", 0),
        ("mean_availability", "availability, mean", 4),
        ("mean_seconds_to_notice", "seconds until a failure was noticed, mean", 3),
        ("visits_lost", "visits lost", 0),
        ("visits_retried", "visits sent again", 0),
        ("requests_retried", "requests sent again", 0),
        ("gave_up", "requests given up", 0),
        ("out_of_memory", "batches that did not fit into memory", 0),
        ("lost_device_seconds", "seconds of computing lost", 3),
    ),
    "placement": (
        ("swaps", "swaps of weights", 0),
        ("seconds_swapping", "seconds of swapping", 3),
    ),
}


def figures(
    first: Mapping[str, Any], second: Mapping[str, Any], pair: Callable[[float | None, float | None], Any]
) -> dict[str, dict[str, Any]]:
    """What both summaries tell, by part; those parts that one of them has."""
    found = {}
    for part, told in COMPARED.items():
        a, b = (_part_of(summary, part) for summary in (first, second))
        if a or b:
            found[part] = {key: pair(a.get(key), b.get(key)) for key, *_ in told}
    return found


def _part_of(summary: Mapping[str, Any], part: str) -> dict[str, Any]:
    told = summary.get(part)
    if told is None:
        return {}
    if part != "fleet":
        return dict(told)
    mean, lasted = told.get("mean_replicas"), summary.get("duration")
    hours = None if mean is None or lasted is None else mean * lasted / 3600.0
    return {**told, "replica_hours": hours}
