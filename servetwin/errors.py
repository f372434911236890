"""What goes wrong, in the words of Python: names of arguments where the command line has options."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Error(ValueError):
    """Something that was given is wrong: *what* it is, *where* (an argument, a key, a file and line; or None), and
    what would be *right* (or None). The message is all three."""

    what: str
    where: str | None
    right: str | None

    def __init__(self, what: str, *, where: str | None = None, right: str | None = None) -> None:
        self.what, self.where, self.right = what, where, right
        head, tail = f"{where}: " if where else "", f" (right would be: {right})" if right else ""
        super().__init__(f"{head}{what}{tail}")


class RunError(RuntimeError):
    """A run broke: a policy raised something (then that is its ``__cause__``) or answered what cannot be, the GPU or
    a server failed, or an invariant of the simulation did not hold."""


#: Options of the command line that are called otherwise in Python.
_ARGUMENTS = {
    "out": "folder",
    "device": "devices",
    "target-metric": "target",
    "set": "settings",
}
#: Those of real backends, which are keys of `run`'s argument *real*.
_REAL = {
    "device",
    "model",
    "weights",
    "eager",
    "compile",
    "sampler",
    "any-device",
    "slots",
    "processes",
    "url",
    "api-key-env",
    "asynchronous",
}

#: Commands that have a call of their own.
_CALLS = {"`servetwin run --out`": "`Result.save`", "`servetwin sweep`": "`Sweep.save`"}

_OPTION = re.compile(r"`[^`]*`|(?<![\w/.-])--(?P<name>[a-z][a-z-]*)(?:[ =](?P<value>[\w./:+-]+(?:=[\w./:+-]+)?))?")


def in_python(text: str) -> str:
    """*text* with options of the command line as arguments: ``--set rate`` is ``rate``, ``--find rate`` is
    ``find='rate'``. Commands, which stand in `backticks`, stay as they are, unless a call does the same."""
    return _OPTION.sub(_argument, text)


def _argument(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    if name is None:
        return _CALLS.get(found[0], found[0])
    if name == "set" and value is not None:
        return value
    argument = _ARGUMENTS.get(name, name.replace("-", "_"))
    if name == "backend" and value is not None:
        return f"backend={value!r}"
    if name in _REAL:
        shown = f"{value!r}" if value is not None else "True"
        plain = value is None and name not in ("any-device", "eager", "processes")
        return f"real[{argument!r}]" if plain else f"real={{{argument!r}: {shown}}}"
    if value is not None and value not in ("with", "to", "or"):
        return f"{argument}={value!r}"
    return argument if value is None else f"{argument} {value}"


def spoken(function: Callable[P, T]) -> Callable[P, T]:
    """Let *function* raise `Error` and `RunError` for what it raises of ServeTwin's own, and Ctrl-C as Python
    does."""

    @functools.wraps(function)
    def speaking(*args: P.args, **kwargs: P.kwargs) -> T:
        from servetwin.core import BadInput, ServeTwinError
        from servetwin.core.errors import Stopped

        try:
            return function(*args, **kwargs)
        except BadInput as bad:
            where, right = (in_python(text) if text else None for text in (bad.where, bad.right))
            where = re.sub(r"^experiment:\d+", "experiment", where) if where else None  # a dict has no lines
            raise Error(in_python(bad.what), where=where, right=right) from None
        except ServeTwinError as broken:
            raise RunError(in_python(str(broken))) from broken.__cause__
        except Stopped as stop:
            raise KeyboardInterrupt(str(stop)) from None

    return speaking


def needed(package: str, extra: str) -> ImportError:
    """The error where a *package* of the *extra* is not installed."""
    return ImportError(f"{package} is not installed (right would be: pip install '{extra}')", name=package)
