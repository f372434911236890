"""Policies that are made in another process: found there by name, and the same there as here."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from servetwin.core import BadInput

from . import policy_objects, policy_registry

#: Makes a policy of a name and parameters, in whichever process it is called.
Maker = Callable[[str, Mapping[str, Any]], Any]


def maker_of(name: str) -> tuple[str, Maker]:
    """What to call the policy *name* in another process, and the function that makes it there.

    Raises `BadInput` if there it could not be found: a class of a notebook, of a script, or made in a function. In
    the other process the function raises it if what it finds is not what it was here.
    """
    given = policy_objects.offered(name)
    if given is not None:
        kind: type[Any] = given.policy
        return _place_of(kind), partial(_make_class, compiled(kind))
    place, colon, attribute = name.partition(":")
    full = f"{Path(place).resolve()}{colon}{attribute}" if place.endswith(".py") else name
    return full, partial(_make_named, policy_registry.code_digest(name))


def _make_named(digest: str, name: str, params: Mapping[str, Any]) -> Any:
    if policy_registry.code_digest(name) != digest:
        raise BadInput("its code has changed since the run was planned", where=name, right="to run it again")
    return policy_registry.make(name, params)


def _make_class(digest: str, name: str, params: Mapping[str, Any]) -> Any:
    module, _, attribute = name.partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    if compiled(kind) != digest:
        what = "the class that its module holds is not the one that was given"
        raise BadInput(what, where=f"policy {name}", right="a class as its file says it, without later changes")
    with policy_objects.offering({name: kind}):
        return policy_registry.make(name, params)


def _place_of(kind: type[Any]) -> str:
    """``module:Class``, by which another process finds the class *kind*."""
    module, name = kind.__module__, kind.__qualname__
    found = sys.modules.get(module)
    why = None
    if hasattr(kind, "made_by"):
        why = "it is made by a function"
    elif module == "__main__":
        why = "it is defined in a notebook or script"
    elif "." in name or not isinstance(there := getattr(found, name, None), type):
        why = f"it is no name of the module {module}"
    elif there is not kind and compiled(there) != compiled(kind):  # imported anew, it is another object
        why = f"the class that the module {module} holds is not the same"
    else:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin != getattr(found, "__file__", None):
            why = f"there is no module {module} to import"
    if why is not None:
        what = f"an engine's process cannot find the class {kind.__name__}: {why}"
        right = f'a file ("my_policy.py:{kind.__name__}"), a class of a module, or backend="vllm"'
        raise BadInput(what, where="policy", right=right)
    return f"{module}:{name}"


def compiled(kind: type[Any]) -> str:
    """A hash of the code and the plain values of the class *kind* and of those that it inherits from."""
    found = hashlib.sha256()
    for one in kind.__mro__[:-1]:
        if one.__module__.startswith("servetwin.core."):
            continue
        for key, value in sorted(vars(one).items()):
            if isinstance(value, staticmethod | classmethod):
                value = value.__func__
            if isinstance(value, FunctionType):
                text = "\n".join(_code_lines(value.__code__)) + repr(value.__defaults__)
            elif key.startswith("__") or not isinstance(value, bool | int | float | str | tuple | type(None)):
                continue
            else:
                text = repr(value)
            found.update(f"{one.__qualname__}.{key}: {text}\n".encode())
    return found.hexdigest()


def _code_lines(code: CodeType) -> Iterator[str]:
    yield f"{code.co_name} {code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_lines(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        else:
            yield repr(constant)
