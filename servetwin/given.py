"""What a caller gives, as `servetwin.experiments` knows it: an experiment, settings, policies."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Error

if TYPE_CHECKING:
    from servetwin.core import Policy
    from servetwin.core.llm import TokenPolicy

    #: A policy: a name, a file, a class; any of these with its parameters; or a function that makes policies.
    PolicyLike = (
        str
        | os.PathLike[str]
        | type[Policy | TokenPolicy]
        | tuple[str | os.PathLike[str] | type[Policy | TokenPolicy], Mapping[str, Any]]
        | Mapping[str, Any]
        | Callable[[], Policy | TokenPolicy]
    )

#: A workload's name, an experiment file, or the content of one.
Source = str | os.PathLike[str] | Mapping[str, Any]

_RIGHT = "a name, a file, a class, (class, parameters), or a function that makes policies"


class Policies:
    """The policies of one call: what each is called, and which of them are objects."""

    def __init__(self) -> None:
        self.objects: dict[str, type[Any]] = {}

    def known(self) -> AbstractContextManager[None]:
        """Within this, the objects are known by their names."""
        from servetwin.experiments.registry.policy_objects import offering

        return offering(self.objects)

    def setting(self, given: Any, where: str = "policy") -> str | dict[str, Any]:
        """*given* as a value of an experiment's key ``policy``: a name, or that with parameters."""
        from servetwin.experiments.registry.policy_objects import class_of, is_policy

        if isinstance(given, str):
            return given
        if isinstance(given, os.PathLike):
            return str(os.fspath(given))
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
            return self._with(given[0], given[1], where)
        if isinstance(given, Mapping) and "name" in given:
            return {**given, **self._with(given["name"], given.get("params") or {}, where)}
        if is_policy(given):
            return self._name(given, given.__name__)
        if is_policy(type(given)):
            name = type(given).__name__
            right = f"{name}, the class, or ({name}, {{...}}), with its parameters"
            raise TypeError(
                f"{where}: one policy object cannot serve every worker of a run (right would be: {right})"
            )
        if isinstance(given, functools.partial) and is_policy(given.func) and _is_plain(given):
            return self._with(given.func, given.keywords, where)
        if callable(given):
            return self._name(class_of(given, where), getattr(given, "__name__", "policy"), given)
        raise TypeError(f"{where}: {given!r} is no policy (right would be: {_RIGHT})")

    def _with(self, policy: Any, params: Mapping[str, Any], where: str) -> dict[str, Any]:
        name = self.setting(policy, where)
        if not isinstance(name, str):
            raise TypeError(f"{where}: {policy!r} has parameters already (right would be: {_RIGHT})")
        return {"name": name, "params": {key: plain(value) for key, value in params.items()}}

    def _name(self, policy: type[Any], short: str, given: object = None) -> str:
        """What a class is called: as it is known already, or else by its own name."""
        from servetwin.experiments.registry.policy_registry import policy_names

        found = _known_as(policy) if given is None else None
        if found is not None:
            return found
        made = given or policy
        short = policy.__name__ if short == "<lambda>" else short
        full = [f"{policy.__module__}:{policy.__qualname__}"] if given is None else []
        names = [short, *full, *(f"{short}#{n}" for n in range(2, 1000))]
        for name in names:
            taken = self.objects.get(name)
            if taken is policy or (taken is not None and getattr(taken, "made_by", None) is made):
                return name
            if taken is None and name not in policy_names():
                self.objects[name] = policy
                return name
        raise AssertionError("a thousand policies of one name")


def _known_as(policy: type[Any]) -> str | None:
    """How a class is called that other processes can find again: one of ServeTwin's, or of an installed package."""
    from servetwin.experiments.provenance.policy_imports import is_library
    from servetwin.experiments.registry.policy_registry import find_policy, policy_names

    module = sys.modules.get(policy.__module__)
    if policy.__module__.startswith("servetwin."):
        ours = [name for name in policy_names() if find_policy(name) is policy]
        return ours[0] if ours else None
    file = getattr(module, "__file__", None)
    if file is None or not is_library(file) or getattr(module, policy.__qualname__, None) is not policy:
        return None
    return f"{policy.__module__}:{policy.__qualname__}"


def _is_plain(partial: functools.partial[Any]) -> bool:
    """Whether a class with parameters is all that it is."""
    try:
        json.dumps({key: plain(value) for key, value in partial.keywords.items()})
    except (TypeError, ValueError):
        return False
    return not partial.args


def plain(value: Any) -> Any:
    """*value* without NumPy's scalars and arrays, and with paths as texts."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def source(experiment: Source, policies: Policies) -> str | Path | dict[str, Any]:
    """*experiment* as `servetwin.experiments.spec.loading.load` takes it."""
    from servetwin.experiments.registry.catalog import source_of

    if isinstance(experiment, str):
        return source_of(experiment)
    if isinstance(experiment, os.PathLike):
        return Path(experiment)
    if isinstance(experiment, Mapping):
        content: dict[str, Any] = _policies_named(experiment, policies)
        return content
    raise not_an_experiment(experiment)


def not_an_experiment(given: object) -> TypeError:
    """The error for what is no experiment."""
    right = "a workload's name, a file, or the content of one as a dict"
    return TypeError(f"experiment: {given!r} is none (right would be: {right})")


def _policies_named(node: Any, policies: Policies, path: str = "") -> Any:
    """The content of an experiment file, with names for what is an object under a key ``policy``."""
    if isinstance(node, Mapping):
        found = {}
        for key, value in node.items():
            inner = f"{path}.{key}" if path else str(key)
            if key == "policy" and value is not None:
                named = policies.setting(value, inner)
                found[key] = {"name": named} if isinstance(named, str) else named
            else:
                found[key] = _policies_named(value, policies, inner)
        return found
    if isinstance(node, list | tuple):
        return [_policies_named(value, policies, f"{path}.{i}") for i, value in enumerate(node)]
    return plain(node)


def arrivals(trace: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The key ``workload.arrivals`` of an experiment whose requests come as *trace* says."""
    content = dict(trace) if isinstance(trace, Mapping) else {"file": os.fspath(trace)}
    if isinstance(content.get("file"), str | os.PathLike):
        content["file"] = str(Path(content["file"]).expanduser().resolve())
    return {"process": "trace", "rate": None, **plain(content)}


class Axis(list[Any]):
    """Several values of a key, for a sweep."""


def settings_of(
    policies: Policies, short: Mapping[str, Any], settings: Mapping[str, Any] | None, *, axes: bool = False
) -> dict[str, Any]:
    """What is to be set in an experiment, by key: the arguments that were given, then *settings*. With *axes* several
    values are an `Axis`."""
    from servetwin.experiments.spec.loading import set_twice

    given = {key: value for key, value in short.items() if value is not None}
    arguments = [(key, key, value) for key, value in given.items() if key != "trace"]
    twice = set_twice([*arguments, *((f"settings[{key!r}]", key, value) for key, value in (settings or {}).items())])
    if twice is not None:
        raise Error(f"{twice[0]} sets {twice[2]} as well", where=twice[1], right="one of the two")
    if not axes:
        for key in given.keys() - {"policy", "trace"}:
            if is_axis(given[key]):
                right = "one, or servetwin.sweep, which takes several"
                raise Error(f"{given[key]!r} is several values", where=key, right=right)
    found: dict[str, Any] = {}
    if "trace" in given:
        found["workload.arrivals"] = arrivals(given.pop("trace"))
        given.setdefault("requests", None)

    def setting(key: str, value: Any) -> Any:
        return policies.setting(value, key) if key == "policy" else plain(value)

    for key, value in {**given, **(settings or {})}.items():
        several = axes and is_axis(value)
        found[key] = Axis(setting(key, one) for one in value) if several else setting(key, value)
    return found


def is_axis(value: Any) -> bool:
    """Whether *value* is several values, for a sweep: anything iterable that is no text, path, mapping or tuple of a
    policy and its parameters."""
    if isinstance(value, str | bytes | os.PathLike | Mapping) or not isinstance(value, Iterable):
        return False
    return not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping))


def several(value: Any) -> list[Any]:
    """The values that *value* is."""
    return list(value) if is_axis(value) else [value]
