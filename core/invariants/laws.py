"""The laws by number (docs/reference/laws.md), and the error that says that one does not hold."""

from __future__ import annotations

from ..errors import LawBroken

LAWS = {
    1: "every request ends exactly once",
    2: "time orders a request's way",
    3: "one batch in flight per worker",
    4: "a batch is within its limits",
    5: "no worker idles with work at hand unless its policy said so",
    6: "KV blocks are conserved",
    7: "iterations done are those asked for",
    10: "goodput counts met requests only",
    13: "an engine makes progress",
    14: "a device computes as long as time passes, unless overlap was measured",
}


def broken(law: int, what: str) -> LawBroken:
    return LawBroken(f"law {law} ({LAWS[law]}): {what}")
