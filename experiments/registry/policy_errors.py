"""Whose fault was it? What goes wrong inside a policy is told in one line, with the policy's own file and line."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servetwin.core import BadInput, Request, ServeTwinError, Task
from servetwin.core.errors import PolicyFault, Stopped
from servetwin.core.invariants.watchdog import watched
from servetwin.core.isolation.answers import write_fault
from servetwin.core.isolation.code_inspection import by_its_own_word, named, own, raised_at
from servetwin.core.isolation.integrity import comes_along
from servetwin.core.policy import PolicyBase
from servetwin.profiles.llm.step_table import BEYOND


@contextmanager
def policies_answer(policies: Sequence[Any]) -> Iterator[None]:
    """Turn an error that *policies* raise, or that an answer of theirs causes, into a `ServeTwinError`; any other
    passes as it is, since it is a fault of ServeTwin. So does what a signal raises while a policy is asked."""
    inner = [own(policy) for policy in policies]
    try:
        with watched(inner):
            yield
    except ServeTwinError as error:
        told = _in_our_words(inner, error)
        if told is not None:
            raise PolicyFault(told) from error
        # What serves for real tells the error that ended the run in its own words, which do not name the policy.
        told = _raised(inner, error.__cause__) if isinstance(error.__cause__, Exception) else None
        if told is None or isinstance(error, PolicyFault) or isinstance(error.__cause__, ServeTwinError):
            raise
        raise PolicyFault(told) from error
    except Stopped as error:
        told = _in_our_words(inner, error)
        if told is None:
            raise
        raise PolicyFault(told) from error
    except BaseException as error:
        told = _raised(inner, error)
        if told is None and isinstance(error, AttributeError) and isinstance(error.obj, Task | Request):
            told = str(
                write_fault(inner, f"(or deleted) {error.name} of a {type(error.obj).__name__}", error.name or "")
            )
        if told is None:
            raise
        raise PolicyFault(told) from error


@contextmanager
def policy_is_made(kind: type[Any]) -> Iterator[None]:
    """Likewise, of an error that the making of a policy of this class raises. (What is wrong with its parameters it
    may say itself.)"""
    try:
        with watched([] if inspect.isabstract(kind) else [PolicyBase.__new__(kind)]):
            yield
    except (ServeTwinError, Stopped):
        raise
    except BaseException as error:
        told = _raised([object.__new__(kind)], error)
        if told is None:
            raise
        raise PolicyFault(told) from error


def _raised(policies: Sequence[object], error: BaseException) -> str | None:
    at = raised_at(policies, error)
    if at is None or (isinstance(error, KeyboardInterrupt) and not by_its_own_word(error)):
        return None
    policy, file, line, function = at
    try:
        text = " ".join(str(error).split())
    except Exception:  # it is the policy's own, and fails here too
        text = ""
    if isinstance(error, BadInput):  # the policy asked for it, whatever its user's files could say
        for advice in (f", {BEYOND}", ", or hold: true"):
            text = text.replace(advice, "")
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    kind = getattr(type(policy), "CALLED", "policy")
    return f"{named(policy, (file, line))}: the {kind} failed: {Path(file).name}:{line}, in {function}: {what}"


def _in_our_words(policies: Sequence[object], error: BaseException) -> str | None:
    """What is to be told if an error of ServeTwin's was raised by a user's policy, or by what it called."""
    theirs = [policy for policy in policies if not comes_along(type(policy))]
    names = tuple(named(policy).split(" (")[0] for policy in theirs)
    if isinstance(error, PolicyFault) and str(error).startswith(names):
        return None  # it names the one that is at fault already
    return _raised(theirs, error) if theirs else None
