"""``servetwin check ROUTER``: the contract of routers (`servetwin.core.testing.router_contract`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from servetwin.core import BadInput
from servetwin.core.testing.router_contract import hold_router

from ..registry import policy_registry, router_registry

#: Where a parameter of the router stands.
STEM = "router.params."


def is_router(name: str) -> bool:
    """Whether *name* means a router, and no policy."""
    try:
        policy_registry.find_policy(name)
    except BadInput:
        try:
            router_registry.code_of(name)
        except BadInput:
            return False
        return True
    return False


def check(name: str, settings: Sequence[tuple[str, Any]] = ()) -> list[str]:
    """Hold the router that *name* means to its contract; gives lines for people. *settings* are its parameters, as
    ("router.params.choices", 3). Raises `PolicyFault` (a `servetwin.core.testing.contract.ContractBroken`) if it does
    what it may not, `BadInput` at settings of anything else, or that do not fit."""
    given = {}
    for key, value in settings:
        if not key.startswith(STEM) or not key.removeprefix(STEM):
            raise BadInput("a router is checked on a system of its own", where=key, right=f"{STEM}NAME, a parameter")
        given[key.removeprefix(STEM)] = value
    params = router_registry.complete(name, given)
    kept = hold_router(partial(router_registry.make, name, params), name)
    asked = ", ".join(map(str, kept.asked))
    return [
        f"{kept.router}: no fault found",
        f"  three workers, {len(kept.asked)} runs: asked {asked} times, the same again",
    ]
