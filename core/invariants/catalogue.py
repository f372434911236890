"""The invariants by number (docs/reference/invariants.md), and the error that says that one does not hold."""

from __future__ import annotations

from ..errors import InvariantBroken

INVARIANTS = {
    1: "every request ends exactly once",
    2: "time stamps of a request are in order",
    3: "one batch in flight per worker",
    4: "a batch is within its limits",
    5: "no worker idles with work at hand unless its policy said so",
    6: "KV blocks are conserved",
    7: "iterations done are those asked for",
    10: "goodput counts met requests only",
    13: "an engine makes progress",
    14: "a device computes as long as time passes, unless overlap was measured",
}


def broken(invariant: int, what: str) -> InvariantBroken:
    return InvariantBroken(f"invariant {invariant} ({INVARIANTS[invariant]}): {what}")
