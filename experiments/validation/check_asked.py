"""``servetwin check`` of a router or an autoscaler: their contracts (`servetwin.core.testing.asked_contract`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from servetwin.core import BadInput
from servetwin.core.testing.asked_contract import Kept, hold_autoscaler, hold_router

from ..registry import autoscaler_registry, policy_registry, router_registry

#: What is checked beside policies: where each kind is found, and what holds it to its contract.
KINDS: dict[str, tuple[ModuleType, Callable[[Callable[[], Any], str], Kept]]] = {
    "router": (router_registry, hold_router),
    "autoscaler": (autoscaler_registry, hold_autoscaler),
}


def kind_of(name: str) -> str | None:
    """Which of `KINDS` *name* means; None: a policy, or nothing that there is."""
    try:
        policy_registry.find_policy(name)
    except BadInput:
        for kind, (registry, _) in KINDS.items():
            try:
                registry.code_of(name)
            except BadInput:
                continue
            return kind
    return None


def check(kind: str, name: str, settings: Sequence[tuple[str, Any]] = ()) -> list[str]:
    """Hold what *name* means, a router or an autoscaler, to its contract; gives lines for people. *settings* are its
    parameters, as ("router.params.choices", 3). Raises `PolicyFault` (a
    `servetwin.core.testing.contract.ContractBroken`) if it does what it may not, `BadInput` at settings of anything
    else, or that do not fit."""
    registry, hold = KINDS[kind]
    stem, given = f"{kind}.params.", {}
    for key, value in settings:
        if not key.startswith(stem) or not key.removeprefix(stem):
            what = f"this {kind} is checked on a system of its own"
            raise BadInput(what, where=key, right=f"{stem}NAME, a parameter")
        given[key.removeprefix(stem)] = value
    params = registry.complete(name, given)
    kept = hold(partial(registry.make, name, params), name)
    asked = ", ".join(map(str, kept.asked))
    return [
        f"{kept.name}: no fault found",
        f"  three workers, {len(kept.asked)} runs: asked {asked} times, the same again",
    ]
