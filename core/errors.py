"""The errors that reach a user."""

from __future__ import annotations


class ServeTwinError(Exception):
    """Anything that ServeTwin tells a user in one line; the command line exits with `exit_code`."""

    exit_code = 1


class BadInput(ServeTwinError):
    """Something that the user wrote is wrong: the message says what, where, and what would be right."""

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, right: str | None = None) -> None:
        self.what, self.where, self.right = what, where, right
        super().__init__(
            "".join([f"{where}: " if where else "", what, f" (right would be: {right})" if right else ""])
        )


class InvariantBroken(ServeTwinError):
    """An invariant (docs/reference/invariants.md) did not hold in a run: a fault of ServeTwin or of a policy."""


class PolicyFault(InvariantBroken):
    """A policy did what it may not, or answered with what is no answer: the message names policy, file and line."""

    exit_code = 2


class Stopped(BaseException):
    """A signal ended what was under way: *exit_code* is the command line's, 128 and the signal's number.

    As `KeyboardInterrupt` it is no `Exception`, so that nobody takes it for trouble of a run and goes on.
    """

    def __init__(self, how: str, exit_code: int = 130) -> None:
        self.exit_code = exit_code
        super().__init__(how)
