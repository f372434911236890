"""Whether a run that is there is what would be made now: its ``meta.json`` against policies, profiles, options and
code as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..provenance.file_digests import code_digest, combined, file_digest, path_digest
from ..registry import policy_registry
from ..spec.experiment import Experiment
from ..spec.loading import load_profiles
from ..workload.requests import read_trace
from .build import policies_used, routers_of_users

Meta = Mapping[str, Any]

#: By what options of a real run are called on the command line.
_FLAGS = {"scheduler": "--sampler", "devices": "--device", "device": "--device"}

#: How much of each end of a file of weights is looked at, in bytes.
_ENDS = 1 << 20


def changed(meta: Meta, experiment: Experiment) -> list[str]:
    """The profiles, and the policies and routers of users, of which the run of *meta* was made and that are not what
    they were then. What *experiment* does not take any more is left out."""
    was, profiles = _mapping(meta, "profiles"), load_profiles(experiment).values()
    names = [f"the profile {p.name}" for p in profiles if was.get(p.name, p.digest) != p.digest]
    digests = _mapping(meta, "policies")
    for name in policies_used(experiment):
        if name in digests and not policy_registry.code_of(name).ours:
            files = _files_changed(meta, name, str(digests[name]))
            if files is not None:
                named = f" ({', '.join(files)})" if files else ""
                names.append(f"the policy {name}{named}")
    routers = _mapping(meta, "routers")
    names += [
        f"the router {name}"
        for name, digest in routers_of_users(experiment).items()
        if routers.get(name, digest) != digest
    ]
    return list(dict.fromkeys(names))


def ours_changed(meta: Meta, experiment: Experiment) -> list[str]:
    """The same of what comes with ServeTwin: its policies, and all its code."""
    digests = _mapping(meta, "policies")
    names = [
        f"the policy {name}"
        for name in policies_used(experiment)
        if policy_registry.code_of(name).ours and digests.get(name, "") not in ("", policy_registry.code_digest(name))
    ]
    return names + ([] if meta.get("code") == code_digest() else ["the code of ServeTwin"])


def _files_changed(meta: Meta, name: str, digest: str) -> list[str] | None:
    """The files of a policy that are not what they were, as far as is known; None if it is the same."""
    code = policy_registry.code_of(name)
    if "code" not in meta:  # an older meta.json: the hash of the file that defines the policy
        source = policy_registry.file_of(name)
        return None if source is not None and file_digest(source) == digest else []
    known = _mapping(_mapping(meta, "policy_files"), name)
    now = code.files()
    now |= {path: path_digest(Path(path)) for path in known if path not in now and Path(path).is_absolute()}
    files = [file for file in dict.fromkeys([*known, *now]) if known.get(file) != now.get(file)]
    return files if files or code.digest() != digest else None


def _mapping(meta: Meta, key: str) -> Meta:
    found = meta.get(key)
    return found if isinstance(found, dict) else {}


def inputs_changed(meta: Meta, experiment: Experiment) -> list[str]:
    """Policies, profiles, trace and code that were not as now when the run of *meta* was made."""
    names = [*changed(meta, experiment), *ours_changed(meta, experiment)]
    trace = read_trace(experiment)
    if meta.get("trace") != (trace.digest if trace is not None else None):
        names.append("the trace")
    return names


def otherwise(meta: Meta, experiment: Experiment, real: Meta) -> list[str]:
    """All that was not as now when the run of *meta* was made: policies, profiles, trace, code, and what *real* says
    of the real side (its "model", "options" and "weights")."""
    names = inputs_changed(meta, experiment)
    if meta.get("model") != real["model"]:
        names.append(f"--model ({meta.get('model')}, now {real['model']})")
    elif meta.get("model_file") != real.get("model_file"):
        names.append("the file of --model")
    was = _mapping(meta, "options")
    now = json.loads(json.dumps(real["options"], default=str))
    for option, value in now.items():
        if was.get(option) != value:
            flag = _FLAGS.get(option, f"--{option.replace('_', '-')}")
            names.append(f"{flag} ({_shown(was.get(option))}, now {_shown(value)})")
    if meta.get("weights") != real.get("weights") and was.get("weights") == now.get("weights"):
        names.append("the files of --weights")
    return list(dict.fromkeys(names))


def engine_changed(meta: Meta, options: Mapping[str, Any], version: str) -> list[str]:
    """What of an engine was not as now when the run of *meta* was made: vLLM's *version*, and its *options*."""
    engine = _mapping(meta, "engine")
    names = [] if engine.get("vllm") == version else [f"vLLM ({engine.get('vllm')}, now {version})"]
    was, now = _mapping(engine, "options"), json.loads(json.dumps(options))
    names += [f"{k} ({_shown(was.get(k))}, now {_shown(v)})" for k, v in now.items() if was.get(k) != v]
    return names


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items()) or "none"
    for known, word in ((True, "yes"), (False, "no"), (None, "left out")):
        if value is known:
            return word
    return str(value)


def weights_digest(folder: Path) -> str:
    """A hash of a checkpoint's files: names, sizes, and the first and last megabyte of each."""
    lines = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        with path.open("rb") as file:
            ends = file.read(_ENDS)
            if size > _ENDS:
                file.seek(max(_ENDS, size - _ENDS))
                ends += file.read()
        lines.append(f"{path.relative_to(folder).as_posix()} {size} {hashlib.sha256(ends).hexdigest()}")
    return combined(lines)
