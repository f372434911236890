"""What a plan may set: not what its fleets say, and for one fleet nothing that all must have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ..spec.overrides import full_key

_LOAD = ("all fleets are sent the same requests under the same SLO", "set of the plan, which is for all fleets")
_POLICY = ("all fleets run under the same policies", "policies of the plan, or policy.params for this fleet")
_COUNTS = ("how many replicas there are is what is looked for", "counts: [least, most] of each fleet")
_DEVICES = ("devices and their prices are what each fleet says", "devices of each fleet, with profile and per_hour")

#: Keys ("*" for any part of one) that no `set` of a plan may change: why, and where they are said.
_NEVER = {"deployment.replicas": _COUNTS, "deployment.prices": _DEVICES}
#: The same of a fleet's `set`.
_COMMON = {
    "workload": _LOAD,
    "slo": _LOAD,
    "seed": _LOAD,
    "policy": _POLICY,
    "deployment.workers.*.policy": _POLICY,
    "deployment.devices": _DEVICES,
}


def check_sets(
    common: Mapping[str, Any],
    of_fleets: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    policies: bool,
    routers: bool,
) -> None:
    """Raise `BadInput` if what the plan *path* sets, in *common* or for each of its fleets, it says elsewhere or is
    what fleets must have in common. *policies*, *routers*: whether the plan has such a list."""
    never = dict(_NEVER)
    if routers:
        never["deployment.router"] = ("which routers are tried is said by the plan", "routers of the plan")
    listed = {"policy": ("which policies are tried is said by the plan", "policies of the plan")} if policies else {}
    _check(common, {**never, **listed}, f"{path}: set")
    for place, own in enumerate(of_fleets):
        _check(own, {**never, **_COMMON}, f"{path}: fleets.{place}.set")


def _check(own: Mapping[str, Any], refused: Mapping[str, tuple[str, str]], where: str) -> None:
    for key, value in own.items():
        full = full_key(key, value)
        for inner in _inner(value):
            parts = [*full.split("."), *inner]
            for pattern, (what, right) in refused.items():
                if _begins(parts, pattern.split(".")) and not (pattern.endswith("policy") and "params" in parts):
                    raise BadInput(what, where=".".join((where, key, *inner)), right=right)


def _inner(value: Any) -> Iterator[list[str]]:
    """The paths to all plain values in *value*: of one that is plain itself, the empty one."""
    if not isinstance(value, dict | list):
        yield []
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        for path in _inner(inner):
            yield [str(key), *path]


def _begins(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(parts) >= len(pattern) and all(p in ("*", part) for p, part in zip(pattern, parts, strict=False))
