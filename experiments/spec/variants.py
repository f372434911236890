"""What an experiment file offers by name: deployments, and variants of the whole experiment.

``deployments`` maps names to keys of the deployment, and ``deployment: NAME``, or ``deployment: {name: NAME, ...}``,
chooses one, for whatever policy. ``variants`` maps names to settings of the experiment, and ``variant: NAME`` chooses
one: a system as somebody measured it, say, with its policy, its deployment and the end of its runs.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ..registry.catalog import suggest
from .overrides import said

Tree = dict[str, Any]
Key = tuple[str | int, ...]
#: An override: its key, the value, and the key as it was typed.
Given = tuple[Key, Any, str]

NAMES_OF_DEPLOYMENT: tuple[Key, ...] = (("deployment",), ("deployment", "name"))


@dataclass
class Layer:
    """One file's say, or that of a variant in it (then *prefix* is where it stands there)."""

    data: Tree
    where: str
    text: str
    base: Path
    deployments: Tree = field(default_factory=dict)
    variants: Tree = field(default_factory=dict)
    variant: str | None = None
    sessions: list[Tree] = field(default_factory=list)
    prefix: Key = ()


def check_layer(data: Any, where: str) -> None:
    """Raise `BadInput` unless the content *data* of a file offers and chooses by name as a file may."""
    if not isinstance(data, dict):
        raise BadInput("there is no mapping of keys to values", where=where, right="name: ..., pipeline: ..., ...")
    if "by_policy" in data:
        what = "by_policy is no key any more: a policy must not fare by its name"
        right = "deployments: {NAME: {...}} and deployment: NAME, or variants: {NAME: {...}} and variant: NAME"
        raise BadInput(what, where=where, right=right)
    offered = {"deployments": "{shared: {workers: [...]}}", "variants": "{measured: {system: {...}}}"}
    for key, example in offered.items():
        found = data.get(key)
        if found is not None and not (isinstance(found, dict) and all(isinstance(x, dict) for x in found.values())):
            raise BadInput(f"{key} does not map names to settings", where=where, right=f"{key}: {example}")
    variant, sessions = data.get("variant"), data.get("sessions") or []
    if variant is not None and not isinstance(variant, str):
        raise BadInput(f"variant is {reprlib.repr(variant)}", where=where, right="the name of one of the variants")
    deployments = {str(name): keys for name, keys in (data.get("deployments") or {}).items()}
    for name, keys in deployments.items():
        if "name" in keys:
            raise BadInput(f"deployments.{name} has a key 'name'", where=where, right="no key 'name' there")
    own = data.get("deployment")
    chosen = own.get("name") if isinstance(own, dict) else None
    if isinstance(own, dict) and isinstance(chosen, str) and chosen in deployments:  # what is no name is told later
        twice = [key for key in own if key in deployments[chosen]]
        if twice:
            what = f"deployment and deployments.{chosen} both say {twice[0]}"
            raise BadInput(what, where=where, right="one of them")
    known = {"from", "to", "variant", "set"}
    if not isinstance(sessions, list) or not all(isinstance(s, dict) and s.keys() <= known for s in sessions):
        raise BadInput("sessions does not fit", where=where, right="sessions: [{from, to, variant, set}]")


@dataclass(frozen=True)
class Chosen:
    """What a chain of files and the overrides choose by name. *layers* are the files with what the chosen variant
    says in its place; *by_hand*: an override chooses the deployment, which outdoes all files."""

    layers: list[Layer]
    policy: str | None
    deployment: str | None
    by_hand: bool


def choose(chain: Sequence[Layer], given: Sequence[Given]) -> Chosen:
    """The variant, the policy and the deployment that *chain*, or else the overrides *given*, choose.

    What a variant says comes right after its file, or after all files if an override asks for it. Raises `BadInput`
    if there is none of a name.
    """
    variant, where, last = None, "", False
    for layer in chain:
        if layer.variant is not None:
            variant, where = layer.variant, f"{layer.where}: variant"
    for value, where in _asked(given, ("variant",)):
        if value is not None and not isinstance(value, str):
            raise BadInput(f"{value!r} is no variant", where=where, right="a name")
        variant, last = value, True
    if variant is not None:
        _known("variant", variant, [name for layer in chain for name in layer.variants], where)
    layers: list[Layer] = []
    after: list[Layer] = []
    for layer in chain:
        layers.append(layer)
        if variant is not None and variant in layer.variants:
            own = layer.variants[variant]
            own_layer = replace(layer, data=own, deployments={}, sessions=[], prefix=("variants", variant))
            (after if last else layers).append(own_layer)
    layers += after

    policy = None
    for layer in layers:
        own_policy = layer.data.get("policy")
        if isinstance(own_policy, dict) and isinstance(own_policy.get("name"), str):
            policy = own_policy["name"]
    for key, value, shown in given:
        if key == ("policy", "name"):
            if not isinstance(value, str):
                raise BadInput(f"{value!r} is no policy", where=said(shown), right="a name")
            policy = value
        elif key == ("policy",) and isinstance(value, dict) and isinstance(value.get("name"), str):
            policy = value["name"]

    deployment, where, by_hand = None, "", False
    for layer in layers:
        placed = layer.data.get("deployment")
        if isinstance(placed, dict) and "name" in placed:
            deployment, where = placed["name"], f"{layer.where}: deployment"
    for value, asked in _asked(given, *NAMES_OF_DEPLOYMENT):
        deployment, where, by_hand = value, asked, True
    if deployment is not None:
        known = [name for layer in layers for name in layer.deployments]
        if not isinstance(deployment, str):
            raise BadInput(f"{reprlib.repr(deployment)} is no name of a deployment", where=where, right="a name")
        if known or by_hand:  # else it is what a resolved experiment was called
            _known("deployment", deployment, known, where)
    return Chosen(layers, policy, deployment, by_hand)


def _asked(given: Sequence[Given], *keys: Key) -> list[tuple[Any, str]]:
    return [(value, said(shown)) for key, value, shown in given if key in keys and not isinstance(value, dict)]


def _known(kind: str, name: str, known: Iterable[str], where: str) -> None:
    known = list(dict.fromkeys(known))
    if name not in known:
        right = suggest(name, known) if known else f"{kind}s: {{{name}: {{...}}}} in the file"
        raise BadInput(f"unknown {kind} {name!r}", where=where, right=right)
