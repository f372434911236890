"""Overrides: keys of an experiment and what they are set to, by ``--set`` or by an option of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Override = tuple[str, Any]

#: Short names for the keys that are varied most.
SHORT = {
    "rate": "workload.arrivals.rate",
    "cv": "workload.arrivals.cv",
    "slo": "slo.factor",
    "slo_factor": "slo.factor",
    "prefill_slo": "slo.prefill",
    "decode_slo": "slo.decode",
    "requests": "workload.requests",
    "policy": "policy.name",
    "step_delta": "policy.params.step_delta",
    "replicas": "deployment.replicas",
    "router": "deployment.router",
}

#: Of these, what is a key of its own as well, whose mapping stands there.
_WHOLE = ("policy", "slo")

#: What is chosen by name and has parameters of its own, beside policies.
CHOSEN = (("deployment", "autoscaler"), ("deployment", "router"), ("deployment", "handover", "router"))


class ByOption(str):
    """A key that the user set by an *option* of its own: ``--policy`` sets the key ``policy``."""

    __slots__ = ("option",)
    option: str

    def __new__(cls, key: str, option: str | None = None) -> ByOption:
        found = super().__new__(cls, key)
        found.option = option or f"--{key}"
        return found


def full_key(key: str, value: Any) -> str:
    """*key* in full, which may be short, where it is set to *value*: a policy by name is ``policy.name``, a mapping
    of all its keys is ``policy``."""
    return key if isinstance(value, dict) and key in _WHOLE else SHORT.get(key, key)


def said(key: str) -> str:
    """What the user wrote to set *key*."""
    return key.option if isinstance(key, ByOption) else f"--set {key}"


def in_order(given: Iterable[tuple[tuple[str | int, ...], Any, str]]) -> list[tuple[tuple[str | int, ...], Any, str]]:
    """Overrides *given* as key, value and what was typed, so that a router or an autoscaler is named before its
    parameters are set: another name forgets those of the one before."""
    found: list[tuple[tuple[str | int, ...], Any, str]] = []
    for key, value, shown in given:
        place = key[:-1] if key[-1] == "name" else key
        at = len(found)
        if place in CHOSEN and isinstance(value, str):
            at = next((i for i, one in enumerate(found) if one[0][: len(place) + 1] == (*place, "params")), at)
            if place == key:  # a router by its name alone, which has no place for parameters
                value = {"name": value}
        found.insert(at, (key, value, shown))
    return found


def takes(node: Any, path: tuple[str | int, ...], depth: int) -> bool:
    """Whether *node*, the content at *path* up to *depth*, takes the key that follows though it is not there: keys of
    these mappings are names, which are checked later. Makes room for the parameters of what was named just now."""
    above, part = path[:depth], path[depth]
    if above in CHOSEN and part == "params" and isinstance(node, dict):
        node["params"] = {}
        return True
    of_parameters = above[:-1] in CHOSEN and above[-1:] == ("params",)
    by_name = above == ("deployment", "routers") or above[-2:] == ("lora", "adapters")
    return isinstance(node, dict) and depth + 1 == len(path) and (of_parameters or by_name)
