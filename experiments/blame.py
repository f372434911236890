"""Whose fault was it? What goes wrong inside a policy is told in one line, with the policy's own file and line."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from servetwin.core import Decision, Policy, ServeTwinError, Task
from servetwin.core.tokens import All, Step, TokenPolicy, TokenTask


@contextmanager
def policies_answer(policies: Sequence[Policy | TokenPolicy]) -> Iterator[None]:
    """Turn an error that *policies* raise, or that an answer of theirs causes, into a `ServeTwinError`; any other
    passes as it is, since it is a fault of ServeTwin."""
    try:
        yield
    except ServeTwinError:
        raise
    except Exception as error:
        told = _raised(policies, error) or _answered(error)
        if told is None:
            raise
        raise ServeTwinError(told) from error


def _raised(policies: Sequence[Any], error: Exception) -> str | None:
    files = {file for policy in policies for kind in type(policy).__mro__[:-1] for file in _files_of(kind)}
    files -= {inspect.getfile(base) for base in (Policy, TokenPolicy)}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            place = f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
            return f"the policy failed: {place}: {type(error).__name__}: {error}"
    return None


def _files_of(kind: type[Any]) -> set[str]:
    """The file that defines a class; of one that was typed in, what Python calls the places of its functions."""
    try:
        return {inspect.getfile(kind)}
    except (OSError, TypeError):
        return {f.__code__.co_filename for f in vars(kind).values() if inspect.isfunction(f)}


def _answered(error: Exception) -> str | None:
    """What is wrong with the decision that was being carried out, which the frames of the serving loop still hold."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_locals
        worker = names.get("worker", names.get("self"))
        policy = names.get("policy", getattr(worker, "policy", None))
        for name in ("decision", "step"):
            if name in names and isinstance(policy, Policy | TokenPolicy):
                wrong = _wrong(names[name], policy)
                if wrong:
                    return f"policy {type(policy).__name__}: {wrong}"
        trace = trace.tb_next
    return None


def _wrong(answer: object, policy: Policy | TokenPolicy) -> str | None:
    wanted, kind = (Step, TokenTask) if isinstance(policy, TokenPolicy) else (Decision, Task)
    if not isinstance(answer, wanted):
        return f"decide returned {answer!r} (right would be: a {wanted.__name__})"
    if isinstance(answer, Step):
        lists = {name: getattr(answer, name) for name in ("prefill", "decode", "preempt", "drop")}
    else:
        lists = {"run": answer.run, "drop": answer.drop}
    for name, given in lists.items():
        if isinstance(given, All):
            continue
        if not isinstance(given, Sequence):
            return f"{name} of its decision is {given!r} (right would be: a list of tasks)"
        tasks = [item[0] if name == "prefill" and isinstance(item, tuple) and item else item for item in given]
        for task in tasks:
            if not isinstance(task, kind):
                return f"{name} of its decision holds {task!r} (right would be: tasks of its view)"
        if len(set(tasks)) < len(tasks):
            return f"{name} of its decision holds {max(tasks, key=tasks.count)!r} twice"
    return None
