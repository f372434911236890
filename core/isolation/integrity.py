"""Whether ServeTwin's own modules and classes are as they were: a policy, like any code, could put others in place.

Looked at where a user's policy is loaded and made, and from the start of its run to the end. What was changed is put
back, so that the next run in this process is none the worse.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

from ..errors import PolicyFault
from ..llm.policy import TokenPolicy
from ..policy import Policy, PolicyBase
from ..routing import Router
from ..scaling.autoscaler import Autoscaler
from .code_inspection import writes_in

_TOP = __name__.partition(".")[0]

#: What `copy`, `typing` and `abc` keep of their own in a class, and what is there to be switched.
_ASIDE = frozenset(
    ["__slotnames__", "__annotations__", "__doc__", "__abstractmethods__", "_abc_impl", "__parameters__", "BOOKED"]
)
#: What pydantic completes in some of its classes when they are first used.
_COMPLETED = ("__pydantic_", "__signature__")
#: Whether somebody who makes many short runs looks around all of them, so that none does for itself.
HELD = False
#: What policies are made of.
_BASES = (PolicyBase, Policy, TokenPolicy, Router, Autoscaler)
#: Where those that come along are, and as what.
_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "policies", "")
_POLICIES = f"{_TOP}.policies."
#: What in a class has a way of its own of being asked for, and runs no code of anybody's.
_SLOTS = (MemberDescriptorType, GetSetDescriptorType)
_FOREIGN = object()  # stands for a name that was not there


def comes_along(policy: type) -> bool:
    """Whether all code of the class *policy* is of this package, `servetwin.policies`, and as its files say: it needs
    no look. What another program has put in its place does, and so do its subclasses elsewhere."""
    kinds = [kind for kind in policy.__mro__[:-1] if kind not in _BASES]
    seen: set[str] = set()
    return all(
        _is_of(kind, sys.modules.get(kind.__module__)) and _is_as_read(kind.__module__, seen) for kind in kinds
    )


def _is_of(kind: type, module: ModuleType | None) -> bool:
    return (
        module is not None
        and module.__name__.startswith(_POLICIES)
        and os.path.abspath(module.__file__ or "").startswith(_FOLDER)
        and vars(module).get(kind.__qualname__) is kind
    )


def _is_as_read(name: str, seen: set[str]) -> bool:
    """Whether all functions in the policies' module of that *name*, and in those that it takes something from, are
    those of their files."""
    if name in seen:
        return True
    seen.add(name)
    module = sys.modules.get(name)
    if module is None:
        return False
    known = _read(module.__file__ or "")
    for thing in [*vars(module).values()]:
        home = getattr(thing, "__module__", None) or ""
        if home == name:
            members = vars(thing).values() if isinstance(thing, type) else (thing,)
            if not all(_told(code) in known for member in members for code in _codes(member)):
                return False
        elif home.startswith(_POLICIES):
            if not _is_as_read(home, seen):
                return False
        elif isinstance(thing, FunctionType) and home.partition(".")[0] not in (_TOP, *sys.stdlib_module_names):
            return False
    return True


def _codes(member: object) -> Iterator[CodeType | None]:
    """The code of what a class or module has; None for what could be called, and has none."""
    parts = (member.fget, member.fset, member.fdel) if isinstance(member, property) else (member,)
    for part in parts:
        function = part.__func__ if isinstance(part, staticmethod | classmethod) else part
        if isinstance(function, FunctionType):
            yield function.__code__
        elif not isinstance(function, (type, *_SLOTS)) and (callable(function) or hasattr(function, "__get__")):
            yield None


def _told(code: CodeType | None) -> object:
    """What *code* does, wherever it says that it stands."""
    if code is None:
        return None
    constants = tuple([_told(c) if isinstance(c, CodeType) else (type(c), c) for c in code.co_consts])
    return code.co_name, code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars


@cache
def _read(file: str) -> frozenset[object]:
    """What all code in *file* does (`_told`), none if it cannot be read."""
    try:
        with open(file, "rb") as source:
            waiting = [compile(source.read(), file, "exec", dont_inherit=True)]
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    found = set()
    while waiting:
        code = waiting.pop()
        found.add(_told(code))
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(found)


def _matters(name: str, thing: object) -> bool:
    return name not in _ASIDE and (
        callable(thing)
        or isinstance(thing, ModuleType | frozenset | tuple)
        or (name.isupper() and isinstance(thing, int | float | str))
    )


@contextmanager
def held() -> Iterator[Intact]:
    """Within this, runs do not look by themselves: whoever makes them looks at what this gives when they are over."""
    global HELD
    before, HELD = HELD, True
    try:
        yield Intact()
    finally:
        HELD = before


class Intact:
    """What this package's modules, classes and functions are now."""

    def __init__(self) -> None:
        self.modules: list[tuple[ModuleType, dict[str, Any]]] = []
        self.kinds: list[tuple[type, dict[str, Any]]] = []
        self.functions: list[tuple[FunctionType, Any, Any, Any]] = []
        for name, module in list(sys.modules.items()):
            if name != _TOP and not name.startswith(_TOP + "."):
                continue
            members = dict(vars(module))
            self.modules.append((module, {n: thing for n, thing in members.items() if _matters(n, thing)}))
            for thing in members.values():
                if isinstance(thing, type) and thing.__module__ == name:
                    held = dict(vars(thing))
                    self.kinds.append((thing, held))
                    self._note(held.values())
                elif isinstance(thing, FunctionType) and thing.__module__ == name:
                    self._note((thing,))

    def _note(self, things: Iterable[object]) -> None:
        for thing in things:
            if isinstance(thing, FunctionType):
                self.functions.append((thing, thing.__code__, thing.__defaults__, thing.__kwdefaults__))

    def changed(self) -> list[tuple[str, str]]:
        """(what, name of the attribute) of all that is not as it was; puts it back."""
        found: list[tuple[str, str]] = []
        for module, before in self.modules:
            now = vars(module)
            for name, thing in before.items():
                if now.get(name, _FOREIGN) is not thing:
                    found.append((f"{module.__name__}.{name}", name))
                    setattr(module, name, thing)
            for name in [n for n in now if n not in before and n in _BUILTIN and callable(now[n])]:
                found.append((f"{module.__name__}.{name}", name))
                delattr(module, name)
        for kind, before in self.kinds:
            current = vars(kind)
            if current == before:
                continue
            for name in {*before, *current} - _ASIDE:
                if current.get(name, _FOREIGN) is before.get(name, _FOREIGN) or name.startswith(_COMPLETED):
                    continue
                found.append((f"{kind.__module__}.{kind.__qualname__}.{name}", name))
                if name in before:
                    type.__setattr__(kind, name, before[name])
                else:
                    type.__delattr__(kind, name)
        for function, *parts in self.functions:
            for name, part in zip(("__code__", "__defaults__", "__kwdefaults__"), parts, strict=True):
                if getattr(function, name) is not part:
                    found.append((f"{function.__module__}.{function.__qualname__}.{name}", name))
                    setattr(function, name, part)
        return found


_BUILTIN = frozenset(n for n in vars(builtins) if not n.startswith("_"))


@contextmanager
def intact(file: str) -> Iterator[None]:
    """Within this the code of *file*, a policy, runs for the first time. Raises `PolicyFault` if it has changed
    something of ServeTwin."""
    changed = Intact().changed
    try:
        yield
    finally:
        found = changed()
    if found:
        what, name = found[0]
        line = writes_in(file, name)
        at = os.path.basename(file) + (f":{line}" if line else "")
        raise PolicyFault(f"policy {at}: it wrote {what}, which policies may only read")
