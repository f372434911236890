"""Finding a router by what the user calls it, as policies are found (`policy_registry`): by name (a file in
servetwin.policies.routing, or an entry point of the group "servetwin.routers"), ``my_router.py``,
``my_router.py:Nearest``, or ``package.module:Nearest``."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from servetwin.core import BadInput
from servetwin.core.routing import Router
from servetwin.policies import routing

from ..provenance import policy_code
from . import policy_registry
from .catalog import suggest
from .policy_errors import policy_is_made

GROUP = "servetwin.routers"
RIGHT = "one subclass of servetwin.core.routing.Router"


@cache
def _ours() -> dict[str, str]:
    """The routers that come with ServeTwin: name -> module."""
    found = [m.name for m in pkgutil.iter_modules(routing.__path__) if not m.name.startswith("_")]
    return {name: f"{routing.__name__}.{name}" for name in found}


@cache
def router_names() -> list[str]:
    """The routers that are known by name: ours, and those that installed packages offer."""
    return sorted({*_ours(), *policy_registry.offered(GROUP)})


def code_of(name: str) -> policy_code.Code:
    """The router that *name* means, with the code that it was loaded from. Raises `BadInput` if there is none."""
    place, _, attribute = name.partition(":")
    told = f"router {attribute}"  # one file may hold a policy and a router
    if place.endswith(".py"):
        path = Path(place).resolve()
        load = policy_registry.load_policy_file
        return policy_code.code_of("file", str(path), told, lambda: _router_in(load(path), attribute, place))
    module, inner, where = (place, attribute, place) if attribute else (*_known(name), name)
    load_module = policy_registry.import_policy_module
    return policy_code.code_of("module", module, told, lambda: _router_in(load_module(module), inner, where))


@cache
def _known(name: str) -> tuple[str, str]:
    """The module, and the name in it, of a router that is known by name."""
    plain = name.replace("-", "_")
    if name not in router_names() and plain not in _ours():
        right = f"{suggest(name, router_names())}; or a file, my_router.py; or package.module:Class"
        raise BadInput(f"unknown router {name!r}", right=right)
    return policy_registry.offered(GROUP).get(name) or (_ours()[plain], "")


def _router_in(module: ModuleType, attribute: str, where: str) -> type[Router]:
    own = {
        n: c
        for n, c in vars(module).items()
        if inspect.isclass(c) and issubclass(c, Router) and c is not Router and not n.startswith("_")
    }
    if attribute:
        if attribute not in own:
            right = suggest(attribute, own) if own else RIGHT
            raise BadInput(f"there is no router {attribute!r} there", where=where, right=right)
        return own[attribute]
    here = [c for c in own.values() if c.__module__ == module.__name__]
    if len(here) != 1:
        found = (
            f"are {len(here)} routers there: {', '.join(c.__name__ for c in here)}" if here else "is no router there"
        )
        raise BadInput(f"there {found}", where=where, right=f"{where}:{here[0].__name__}" if here else RIGHT)
    return here[0]


def complete(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """*params* of the router of that name with the defaults filled in. Raises `BadInput` if there is no such router,
    `servetwin.experiments.registry.policy_registry.WrongParameter` at a parameter that does not fit."""
    kind = code_of(name).policy
    full = policy_registry.complete(kind, params, "router")
    policy_registry.try_out(kind, full)
    return full


def make(name: str, params: Mapping[str, Any]) -> Router:
    """A new router object. Raises `PolicyFault` if it cannot be made."""
    kind = code_of(name).policy
    with policy_is_made(kind):
        router: Router = kind(**params)
    return router


def draws(name: str) -> bool:
    """Whether the router of that name draws at random, as it says itself."""
    return bool(code_of(name).policy.draws)


def describe(name: str) -> tuple[str, dict[str, str]]:
    """The first line of the router's documentation, and its parameters with type and default."""
    return policy_registry.describe_class(code_of(name).policy)
