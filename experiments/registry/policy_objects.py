"""Policies that a program gives as Python objects: classes, also of a notebook or made in a function, and factories.

Within `offering` they are known by the names that it gives them, beside those of
`servetwin.experiments.registry.policy_registry`. They are what they are in this process: no other process can be told
of them, so points that they serve run here, one after another, and as their code cannot be read again, their rows
are not kept."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeGuard

from servetwin.core import BadInput, Policy
from servetwin.core.llm import TokenPolicy

from ..provenance.policy_code import Code

#: Why rows of such a policy are not kept.
DOUBT = "it was given as an object, whose code cannot be read again"

_offered: ContextVar[Mapping[str, Code] | None] = ContextVar("policies given as objects", default=None)


@contextmanager
def offering(policies: Mapping[str, type[Any]]) -> Iterator[None]:
    """Within this, *policies* (classes by name) are known; before what else these names mean."""
    codes = {name: Code(policy, doubts={DOUBT: None}, text=text_of(policy)) for name, policy in policies.items()}
    token = _offered.set({**(_offered.get() or {}), **codes})
    try:
        yield
    finally:
        _offered.reset(token)


def offered(name: str) -> Code | None:
    """The policy object that is known by *name* here, if there is one."""
    return (_offered.get() or {}).get(name)


def is_policy(kind: object) -> TypeGuard[type[Any]]:
    """Whether *kind* is a class of policies."""
    return inspect.isclass(kind) and issubclass(kind, Policy | TokenPolicy)


def text_of(policy: type[Any]) -> str:
    """The source of a class, as far as Python knows it; of a notebook's cell too."""
    made = getattr(policy, "made_by", policy)
    try:
        return inspect.getsource(made)
    except (OSError, TypeError):
        return ""


def class_of(factory: Callable[[], Any], where: str) -> type[Any]:
    """A class that takes no parameters, whose objects are those that *factory* makes. Raises `BadInput` if it makes
    no policies, or the same one twice: each worker of each run needs its own."""
    one, other = factory(), factory()
    kind = type(one)
    if not is_policy(kind):
        raise BadInput(f"{factory!r} gives {one!r}", where=where, right="a new policy at each call")
    if one is other:
        raise BadInput(f"{factory!r} gives the same policy twice", where=where, right="a new one at each call")

    def fill(namespace: dict[str, Any]) -> None:
        # What `__new__` gives is of the class *kind* itself, so Python does not call `experiments` on it.
        namespace["__new__"] = lambda _: factory()
        namespace["__init__"] = lambda _: None
        namespace["__module__"], namespace["__doc__"] = kind.__module__, kind.__doc__
        namespace["made_by"] = staticmethod(factory)

    return types.new_class(kind.__name__, (kind,), exec_body=fill)
