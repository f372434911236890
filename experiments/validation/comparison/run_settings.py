"""What an experiment stands on beside its workload, policy, rate, cv, SLO factor, deployment's name and seed.

By that, runs that differ in more than their seed are told from repeats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ...spec.experiment import Experiment

#: What collections of runs know by other names, and what makes no difference.
_KNOWN = {
    "name",
    "seed",
    "policy.name",
    "deployment.name",
    "workload.arrivals.rate",
    "workload.arrivals.cv",
    "slo.factor",
}
_COLUMNS = {"workload", "policy", "rate", "cv", "slo_factor", "seed", "deployment"}
#: Columns of tables that say it behind the number of requests.
_LATER = ("step_delta", "variant")
_CALLED = {
    "requests": "requests",
    "workload.requests": "requests",
    "system.stop_after": "stop_after",
    "slo.prefill": "prefill_slo",
    "slo.decode": "decode_slo",
    "step_delta": "policy.params.step_delta",
}


def otherwise(experiment: Experiment) -> dict[str, str]:
    """The rest of *experiment*, by key, as text; keys that hold nothing are left out."""
    found = dict(_leaves(experiment.model_dump(mode="json")))
    return {_CALLED.get(key, key): text for key, text in found.items() if key not in _KNOWN}


def otherwise_in(row: Mapping[str, Any]) -> dict[str, str]:
    """The same of a sweep's *row*: the columns before the number of requests, and that; axes are among them."""
    names = list(row)
    until = names.index("requests") + 1 if "requests" in names else 0
    columns = [*names[:until], *(name for name in _LATER if name in names[until:])]
    return {
        _CALLED.get(name, name): text
        for name in columns
        if name not in _COLUMNS and (text := _text(row[name])) is not None
    }


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif (text := _text(value)) is not None:
        yield key, text


def _text(value: Any) -> str | None:
    """*value* as text that is the same from a file of YAML or JSON and from a table."""
    if value is None or value == "":
        return None
    if isinstance(value, list | dict):
        return json.dumps(value)
    try:
        return f"{float(value):.12g}" if not isinstance(value, bool) else str(value)
    except (TypeError, ValueError):
        return str(value)
