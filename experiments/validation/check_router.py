"""``servetwin check ROUTER``: the contract of routers (`servetwin.core.testing.router_contract`)."""

from __future__ import annotations

from functools import partial

from servetwin.core import BadInput
from servetwin.core.testing.router_contract import hold_router

from ..registry import policy_registry, router_registry


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


def check(name: str) -> list[str]:
    """Hold the router that *name* means to its contract; gives lines for people. Raises `PolicyFault` (a
    `servetwin.core.testing.contract.ContractBroken`) if it does what it may not."""
    params = router_registry.complete(name, {})
    kept = hold_router(partial(router_registry.make, name, params), name)
    asked = ", ".join(map(str, kept.asked))
    return [
        f"{kept.router}: no fault found",
        f"  three workers, {len(kept.asked)} runs: asked {asked} times, the same again",
    ]
