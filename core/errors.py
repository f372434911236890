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


def brief(error: BaseException) -> str:
    """What *error*, of somebody's code that was imported, says in a line."""
    line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}{line}"


class InvariantBroken(ServeTwinError):
    """An invariant (docs/reference/invariants.md) did not hold in a run: a fault of ServeTwin or of a policy."""


#: The invariants by number.
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
    15: "nothing runs on what is down, and nobody is served twice at once",
}


def broken(invariant: int, what: str) -> InvariantBroken:
    """The error that says that the invariant of this number does not hold."""
    return InvariantBroken(f"invariant {invariant} ({INVARIANTS[invariant]}): {what}")


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
