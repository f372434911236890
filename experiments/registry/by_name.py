"""Finding a router or an autoscaler by what the user calls it, as policies are found (`policy_registry`): by name (a
file of ours, or an entry point), ``mine.py``, ``mine.py:Class``, or ``package.module:Class``."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from servetwin.core import BadInput

from ..provenance import policy_code
from . import policy_registry
from .catalog import suggest
from .policy_errors import policy_is_made

T = TypeVar("T")


class ByName(Generic[T]):
    """Subclasses of *base*, called *called* in messages ("router"): those in the modules of *package*, and those that
    installed packages offer in the *group* of entry points."""

    def __init__(self, base: type[T], package: ModuleType, group: str, called: str) -> None:
        self.base, self.package, self.group, self.called = base, package, group, called
        self.right = f"one subclass of {base.__module__}.{base.__name__}"
        self._known = lru_cache(maxsize=None)(self._find)

    @cached_property
    def _ours(self) -> dict[str, str]:
        """Those that come with ServeTwin: name -> module."""
        found = [m.name for m in pkgutil.iter_modules(self.package.__path__) if not m.name.startswith("_")]
        return {name: f"{self.package.__name__}.{name}" for name in found}

    @cached_property
    def _names(self) -> list[str]:
        return sorted({*self._ours, *policy_registry.offered(self.group)})

    def names(self) -> list[str]:
        """Those that are known by name: ours, and those that installed packages offer."""
        return self._names

    def code_of(self, name: str) -> policy_code.Code:
        """What *name* means, with the code that it was loaded from. Raises `BadInput` if there is nothing."""
        place, _, attribute = name.partition(":")
        told = f"{self.called} {attribute}"  # one file may hold a policy and a router
        if place.endswith(".py"):
            path = Path(place).resolve()
            load = policy_registry.load_policy_file
            return policy_code.code_of("file", str(path), told, lambda: self._in(load(path), attribute, place))
        module, inner, where = (place, attribute, place) if attribute else (*self._known(name), name)
        load_module = policy_registry.import_policy_module
        return policy_code.code_of("module", module, told, lambda: self._in(load_module(module), inner, where))

    def _find(self, name: str) -> tuple[str, str]:
        """The module, and the name in it, of what is known by name."""
        plain = name.replace("-", "_")
        if name not in self._names and plain not in self._ours:
            right = f"{suggest(name, self._names)}; or a file, my_{self.called}.py; or package.module:Class"
            raise BadInput(f"unknown {self.called} {name!r}", right=right)
        return policy_registry.offered(self.group).get(name) or (self._ours[plain], "")

    def _in(self, module: ModuleType, attribute: str, where: str) -> type[T]:
        own = {
            n: c
            for n, c in vars(module).items()
            if inspect.isclass(c) and issubclass(c, self.base) and c is not self.base and not n.startswith("_")
        }
        if attribute:
            if attribute not in own:
                right = suggest(attribute, own) if own else self.right
                raise BadInput(f"there is no {self.called} {attribute!r} there", where=where, right=right)
            return own[attribute]
        here = [c for c in own.values() if c.__module__ == module.__name__]
        if len(here) != 1:
            several = f"are {len(here)} {self.called}s there: {', '.join(c.__name__ for c in here)}"
            found = several if here else f"is no {self.called} there"
            raise BadInput(f"there {found}", where=where, right=f"{where}:{here[0].__name__}" if here else self.right)
        return here[0]

    def complete(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """*params* of what has that name with the defaults filled in. Raises `BadInput` if there is nothing of that
        name, `servetwin.experiments.registry.policy_registry.WrongParameter` at a parameter that does not fit."""
        kind = self.code_of(name).policy
        full = policy_registry.complete(kind, params, self.called)
        policy_registry.try_out(kind, full)
        return full

    def make(self, name: str, params: Mapping[str, Any]) -> T:
        """A new object. Raises `PolicyFault` if it cannot be made."""
        kind = self.code_of(name).policy
        with policy_is_made(kind):
            made: T = kind(**params)
        return made

    def describe(self, name: str) -> tuple[str, dict[str, str]]:
        """The first line of its documentation, and its parameters with type and default."""
        return policy_registry.describe_class(self.code_of(name).policy)
