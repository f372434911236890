"""What the parameters of a policy may be."""

from __future__ import annotations

from .errors import BadInput


def at_least(least: float, policy: str, **given: float | None) -> None:
    """Raise `BadInput` at the first of the parameters *given* of *policy* that is less than *least*; None passes."""
    for name, value in given.items():
        if value is not None and not value >= least:
            raise BadInput(f"{name} is {value:g}", where=policy, right=f"{least:g} or more")


def above(least: float, policy: str, **given: float | None) -> None:
    """Likewise, at the first that is not more than *least*."""
    for name, value in given.items():
        if value is not None and not value > least:
            raise BadInput(f"{name} is {value:g}", where=policy, right=f"more than {least:g}")
