"""What an experiment file offers by name: deployments, and variants of the whole experiment.

``deployments`` maps names to keys of the deployment, and ``deployment: NAME``, or ``deployment: {name: NAME, ...}``,
chooses one, for whatever policy. ``variants`` maps names to settings of the experiment, and ``variant: NAME`` chooses
one: a system as somebody measured it, say, with its policy, its deployment and the end of its runs.
"""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from .catalog import suggest
from .overrides import said

Tree = dict[str, Any]
Key = tuple[str | int, ...]


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


def take(data: Tree, where: str) -> tuple[Tree, Tree, str | None]:
    """Take the named deployments, the variants and the chosen variant out of a file's *data*. Raises `BadInput`."""
    if "by_policy" in data:
        what = "by_policy is no key any more: a policy must not fare by its name"
        right = "deployments: {NAME: {...}} and deployment: NAME, or variants: {NAME: {...}} and variant: NAME"
        raise BadInput(what, where=where, right=right)
    deployments = _named(data, "deployments", "{shared: {workers: [...]}}", where)
    variants = _named(data, "variants", "{measured: {system: {...}}}", where)
    variant = data.pop("variant", None)
    if variant is not None and not isinstance(variant, str):
        raise BadInput(f"variant is {reprlib.repr(variant)}", where=where, right="the name of one of the variants")
    for tree in (data, *variants.values()):
        if isinstance(tree.get("deployment"), str):
            tree["deployment"] = {"name": tree["deployment"]}
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
    return deployments, variants, variant


def _named(data: Tree, key: str, example: str, where: str) -> Tree:
    found = data.pop(key, None)
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(x, dict) for x in found.values()):
        raise BadInput(f"{key} does not map names to settings", where=where, right=f"{key}: {example}")
    return {str(name): tree for name, tree in found.items()}


def with_variant(chain: Sequence[Layer], asked: Sequence[tuple[Any, str]]) -> list[Layer]:
    """*chain* with what the chosen variant says: of a file's right after that file, or after all files if it is
    *asked* for besides (value, and as it was typed). Raises `BadInput` if there is none of that name."""
    chosen, where, last = None, "", False
    for layer in chain:
        if layer.variant is not None:
            chosen, where = layer.variant, f"{layer.where}: variant"
    for value, shown in asked:
        if value is not None and not isinstance(value, str):
            raise BadInput(f"{value!r} is no variant", where=said(shown), right="a name")
        chosen, where, last = value, said(shown), True
    if chosen is None:
        return list(chain)
    _known("variant", chosen, [name for layer in chain for name in layer.variants], where)
    made: list[Layer] = []
    after: list[Layer] = []
    for layer in chain:
        made.append(layer)
        if chosen in layer.variants:
            own = replace(
                layer, data=layer.variants[chosen], deployments={}, sessions=[], prefix=("variants", chosen)
            )
            (after if last else made).append(own)
    return [*made, *after]


def _known(kind: str, name: str, known: Iterable[str], where: str) -> None:
    known = list(dict.fromkeys(known))
    if name not in known:
        right = suggest(name, known) if known else f"{kind}s: {{{name}: {{...}}}} in the file"
        raise BadInput(f"unknown {kind} {name!r}", where=where, right=right)


@dataclass(frozen=True)
class Deploying:
    """Which of the named deployments a chain of files chooses; *asked*: by an override, which outdoes all files."""

    name: str | None
    asked: bool

    def laid_over(self, tree: Tree, layer: Layer) -> Tree | None:
        """What *layer* says of the chosen deployment, to be laid over its other keys, which *tree* has by now."""
        own = layer.data.get("deployment")
        said = isinstance(tree.get("deployment"), dict)
        if said and isinstance(own, dict) and "workers" in own and "name" not in own:
            tree["deployment"]["name"] = None  # workers of the file's own are none of those that have a name
        if self.name is None or self.name not in layer.deployments:
            return None
        return {"deployment": {**copy.deepcopy(layer.deployments[self.name]), "name": self.name}}


def deploying(chain: Sequence[Layer], asked: Sequence[tuple[Any, str]]) -> Deploying:
    """The deployment that *chain*, or else what is *asked* for besides, chooses. Raises `BadInput`."""
    chosen, where, by_hand = None, "", False
    for layer in chain:
        own = layer.data.get("deployment")
        if isinstance(own, dict) and "name" in own:
            chosen, where = own["name"], f"{layer.where}: deployment"
    for value, shown in asked:
        chosen, where, by_hand = value, said(shown), True
    if chosen is None:
        return Deploying(None, by_hand)
    known = [name for layer in chain for name in layer.deployments]
    if not isinstance(chosen, str):
        raise BadInput(f"{reprlib.repr(chosen)} is no name of a deployment", where=where, right="a name")
    if known or by_hand:  # else it is what a resolved experiment was called
        _known("deployment", chosen, known, where)
    return Deploying(chosen, by_hand)
