"""What was changed of an experiment on the page: as overrides, as the equal command line, and as an equal file."""

from __future__ import annotations

import copy
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError, field_validator
from servetwin.core import BadInput

from ..spec import yaml_io
from ..spec.experiment import Experiment
from ..spec.keys.field_types import NotNegative, Strict
from ..spec.loading import load
from ..spec.overrides import Override, full_key
from .controls import Offer

#: Keys that `servetwin run` has an option for.
OPTIONS = {
    "policy.name": "--policy",
    "workload.arrivals.rate": "--rate",
    "workload.arrivals.cv": "--cv",
    "slo.factor": "--slo",
    "workload.requests": "--requests",
    "seed": "--seed",
}
PARAMS = "policy.params."
#: Seconds beyond which whole numbers are no times.
MOST_LOOK = 10**15
#: The most keys that a state may have.
MOST_KEYS = 200


class State(Strict):
    """What the page shows: keys that are *changed*, each with its value; with *other* a second policy that serves the
    same requests: its name and parameters, likewise by key; and from which second on requests are shown one by one.
    """

    changed: dict[str, Any] = Field(default_factory=dict, max_length=MOST_KEYS)
    other: dict[str, Any] | None = Field(default=None, max_length=MOST_KEYS)
    look: NotNegative = 0.0

    @field_validator("look", mode="before")
    @classmethod
    def _whole_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < MOST_LOOK else value


def state_of(content: Any) -> State:
    """The state that the page sent. Raises `BadInput`."""
    try:
        return State.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        what = f"{key} does not fit: {first['msg'].removeprefix('Input should be ')}"
        raise BadInput(what, where="the page's state", right="a link that the page gave") from None


def check(state: State, offer: Offer) -> None:
    """Raise `BadInput` unless all that *state* changes is on *offer*. So a link can do no more than the page can: it
    names no file, for instance, whose code would be run."""
    _check(state.changed, offer, {control.key: control.choices for control in offer.controls})
    if state.other is not None:
        if "policy.name" not in state.other:
            raise BadInput("it names no policy", where="the second policy", right="one of the list")
        _check(state.other, offer, {})


def _check(changed: Mapping[str, Any], offer: Offer, known: Mapping[str, Sequence[tuple[Any, str]]]) -> None:
    policies = {policy.name: policy for policy in offer.policies}
    name = changed.get("policy.name", offer.policy)
    if not isinstance(name, str) or name not in policies:
        right = "one of the list; a file is offered by servetwin explore EXPERIMENT --policy FILE"
        raise BadInput(f"the page offers no policy {name!r}", where="policy", right=right)
    if policies[name].why is not None:
        raise BadInput(f"{name} does not fit: {policies[name].why}", where="policy", right="another of the list")
    keys = {**known, **{control.key: control.choices for control in policies[name].controls}, "policy.name": ()}
    for key, value in changed.items():
        if key not in keys:
            where = name if key.startswith(PARAMS) else "the page's state"
            raise BadInput(f"there is nothing called {key} to change", where=where, right="a link that the page gave")
        if keys[key] and value not in [choice for choice, _ in keys[key]]:
            raise BadInput(f"{value!r} is none of the list", where=key, right=str(keys[key][0][0]))
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{value} is no number", where=key, right="a finite one")


def overrides(base: Iterable[Override], state: State, *, other: bool = False) -> dict[str, Any]:
    """What is set of the experiment, key by key: by the command line (*base*), and by the page over it; for the
    *other* policy, if that is asked for."""
    found = _by_key(base)
    for changed in (state.changed, state.other if other else None):
        name = (changed or {}).get("policy.name")
        if name is not None and name != found.get("policy.name"):
            found = {key: value for key, value in found.items() if not key.startswith(PARAMS)}
        for key, value in (changed or {}).items():
            _set(found, key, value)
    return found


def _by_key(base: Iterable[Override]) -> dict[str, Any]:
    """The overrides *base* by their keys in full; what is said of the policy is taken apart."""
    found: dict[str, Any] = {}
    for path, value in base:
        key = full_key(str(path), value)
        parts = {key: value}
        for whole in ("policy", "policy.params"):
            own = parts.pop(whole, None)
            if isinstance(own, dict):
                parts |= {f"{whole}.{name}": inner for name, inner in own.items()}
            elif own is not None:
                parts[whole] = own
        found |= parts
    return found


def _set(found: dict[str, Any], key: str, value: Any) -> None:
    """Set *key*; in a mapping that is set already, if it stands in one."""
    for above, content in found.items():
        if isinstance(content, dict) and key.startswith(f"{above}."):
            whole = copy.deepcopy(content)
            node, *rest = [whole], *key.removeprefix(f"{above}.").split(".")
            inner = node[0]
            for part in rest[:-1]:
                inner = inner.setdefault(part, {})
            inner[rest[-1]] = value
            found[above] = whole
            return
    found[key] = value


def command(source: str, chosen: Mapping[str, Any]) -> str:
    """The command that runs the experiment *source* with what was *chosen*."""
    words = ["servetwin", "run", source]
    for key, option in OPTIONS.items():
        if key in chosen and chosen[key] is not None:
            words += [option, _spelled(chosen[key])]
    for key, value in chosen.items():
        if key not in OPTIONS or value is None:
            words += ["--set", f"{key}={_spelled(value)}"]
    return shlex.join(words)


def _spelled(value: Any) -> str:
    """*value* as it is typed on the command line."""
    if isinstance(value, str) and yaml_io.parse(value, "value") == value:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value)


def file_of(source: str, chosen: Mapping[str, Any], experiment: Experiment) -> str:
    """An experiment file that says the same as *experiment*, which is *source* with what was *chosen*: short if that
    can be said by keys that differ, in full otherwise (single entries of lists were set, say)."""
    tree: dict[str, Any] = {"extends": source}
    try:
        for key, value in chosen.items():
            _put(tree, key, value)
        if load(tree).digest() == experiment.digest():
            return yaml_io.write(tree)
    except (BadInput, TypeError, ValueError):
        pass
    return yaml_io.write(experiment.as_dict())


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    if key in ("variant", "deployment") and not isinstance(value, dict):
        key = {"variant": "variant", "deployment": "deployment.name"}[key]
    parts = key.split(".")
    node = tree
    for part in parts[:-1]:
        if part.isdigit():
            raise ValueError(key)
        node = node.setdefault(part, {})
    node[parts[-1]] = value
