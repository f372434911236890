"""What the numbers of an experiment are made of, part by part, as hashes: for keys, for ``meta.json``, and to say
what is no longer the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache

from servetwin.core import BadInput

from ..provenance.file_digests import code_digest, file_digest, stamp, surroundings
from ..registry import policy_registry
from ..registry.catalog import LISTS
from ..spec.experiment import Experiment
from ..spec.llm import ListedTokens
from ..spec.loading import load_profiles
from ..workload.requests import read_trace
from .build import policies_used, routers_of_users

#: A hash by the name of each part.
Inputs = dict[str, str]


def inputs_of(experiment: Experiment, before: Inputs | None = None) -> Inputs:
    """What the row of *experiment* is made of, in this process and as its files are now. Raises `BadInput` if it
    names a profile, a policy or a trace that is not there. What cannot have changed since *before* is taken from
    there."""
    trace = read_trace(experiment)
    found = {"experiment": before["experiment"] if before is not None else experiment.digest()}
    found |= {f"the profile {name}": digest for name, digest in _profiles(experiment).items()}
    found |= {f"the policy {name}": policy_registry.code_digest(name) for name in policies_used(experiment)}
    found |= {f"the router {name}": digest for name, digest in routers_of_users(experiment).items()}
    if trace is not None:
        found[f"the trace {trace.where}"] = file_digest(trace.path)
    for lengths in experiment.workload.lengths.values():
        for draw in (lengths.prompt, lengths.output):
            if isinstance(draw, ListedTokens):
                found[f"the list {draw.name}"] = file_digest(LISTS / f"{draw.name}.yaml")
    found["the code of ServeTwin"] = code_digest()
    return {**found, **surroundings()}


def _profiles(experiment: Experiment) -> dict[str, str]:
    """By the name that stands in the experiment."""
    from servetwin.profiles.profile import COSTS, DATA

    found = {}
    for name in experiment.deployment.devices.values():
        path = name if name.endswith((".yaml", ".yml", ".csv")) else f"{DATA}/{name}.yaml"
        stamps = (stamp(path), stamp(os.path.splitext(path)[0] + COSTS))
        try:
            found[name] = _profile(name, stamps)
        except BadInput:
            load_profiles(experiment)  # says where it is named
            raise
    return found


@lru_cache(maxsize=256)
def _profile(name: str, _: object) -> str:
    from servetwin.profiles import load

    return load(name).digest


def difference(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """The names of the parts that are not the same in *a* and *b*."""
    return [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
