"""From a file, what it extends, and overrides, to one complete `Experiment`.

A file may extend another (``extends: dit-s2-256-rtx4090``, or a path relative to itself) and then says only what
differs. It may offer deployments and variants by name (see `servetwin.experiments.spec.variants`); which of them is
chosen is its word or the user's, never a matter of the policy. What counts, from weakest to strongest::

    the extended file;  its chosen deployment and variant;  this file;  its own;  --set and the other options

Mappings are merged key by key; lists and plain values are replaced. Where a mapping changes its kind (another
policy name, arrival process or step draw) only the keys that the new kind knows are kept.
"""

from __future__ import annotations

import copy
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError
from servetwin.core import BadInput
from servetwin.core.files import absolute

from ..registry import policy_registry
from ..registry.catalog import WORKLOADS, closest, suggest, workload_names
from ..registry.vllm_options import of_vllm
from . import yaml_io
from .experiment import (
    OWN_RATE,
    Arrivals,
    Calls,
    Deployment,
    DrawnArrivals,
    Experiment,
    FixedSLO,
    Misfit,
    PolicySpec,
    RelativeSLO,
    Steps,
    WorkerSpec,
)
from .keys import autoscaler, routing
from .keys.field_types import Strict
from .llm import EngineSpec, Prediction, PrefixDraw, TokenDraw, TokenSLOSpec
from .overrides import ByOption, Override, full_key, in_order, said, takes
from .sessions import WAITS, SecondsDraw, TurnsDraw
from .shapes import ShapeDraw
from .validation import check
from .variants import NAMES_OF_DEPLOYMENT, Chosen, Given, Key, Layer, Tree, check_layer, choose

if TYPE_CHECKING:
    from servetwin.profiles import Profile

#: What the name of a deployment ends with if overrides have made another of it.
CHANGED = ", changed"


# -- reading --------------------------------------------------------------------------------------------


def locate(source: str | Path, base: Path | None = None) -> Path:
    """The file that *source* means: a path (relative to *base*), or the name of a workload of ours."""
    text = str(source)
    if text.endswith((".yaml", ".yml")) or isinstance(source, Path):
        path = Path(text).expanduser()
        return path if base is None or path.is_absolute() else base / path
    if text not in (known := workload_names()):
        raise BadInput(f"unknown workload {text!r}", right=f"{suggest(text, known)}; or a file, experiment.yaml")
    return WORKLOADS / f"{text}.yaml"


def layers(source: str | Path | Tree) -> list[Layer]:
    """The files that make up an experiment, the weakest first, with whole paths. A mapping stands for the content of
    a file. Raises `BadInput`."""
    chain, seen = list[Layer](), list[str]()
    path = None if isinstance(source, dict) else locate(source)
    while True:
        data: Any
        if path is None:
            data, text, where, base = source, yaml_io.write(source), "experiment", Path.cwd()
        else:
            if (real := os.path.realpath(path)) in seen:  # by another path or a link it is the same
                raise BadInput("the file extends itself, by way of what it extends", where=str(path))
            seen.append(real)
            where, base = path.stem if path.parent == WORKLOADS else str(path), path.parent
            data, text = yaml_io.read(path, where)
        check_layer(data, where)
        data = copy.deepcopy(data)
        deployments = {str(name): keys for name, keys in (data.pop("deployments", None) or {}).items()}
        variants = {str(name): tree for name, tree in (data.pop("variants", None) or {}).items()}
        variant, sessions = data.pop("variant", None), data.pop("sessions", None) or []
        for tree in (data, *variants.values()):
            if isinstance(tree.get("deployment"), str):
                tree["deployment"] = {"name": tree["deployment"]}
        for tree in (data, *variants.values(), *({"deployment": keys} for keys in deployments.values())):
            _anchor(tree, base)
        chain.append(Layer(data, where, text, base, deployments, variants, variant, sessions))
        following = data.pop("extends", None)
        if following is None:
            return chain[::-1]
        if not isinstance(following, str):
            raise BadInput(f"extends is {following!r}", where=where, right="a workload's name, or a file")
        try:
            path = locate(following, base)
        except BadInput as error:
            raise BadInput(error.what, where=f"{where}: extends", right=error.right) from None


def _path(text: str, base: Path) -> str:
    return str(absolute(base / Path(text).expanduser()))


def _policy_path(name: str, base: Path) -> str:
    file, colon, attribute = name.partition(":")
    return f"{_path(file, base)}{colon}{attribute}" if file.endswith(".py") else name


def _profile_path(name: str, base: Path) -> str:
    return _path(name, base) if name.endswith((".yaml", ".yml", ".csv")) else name


#: Where a file's content may name files ("*" for any key), and how such a name is made independent of the file.
_PATHS: dict[tuple[str, ...], Callable[[str, Path], str]] = {
    ("policy", "name"): _policy_path,
    ("workload", "arrivals", "file"): _path,
    ("workload", "trace", "file"): _path,
    ("deployment", "devices", "*"): _profile_path,
    ("deployment", "router"): _policy_path,
    ("deployment", "router", "name"): _policy_path,
    ("deployment", "routers", "*"): _policy_path,
    ("deployment", "routers", "*", "name"): _policy_path,
    ("deployment", "autoscaler", "name"): _policy_path,
    ("deployment", "workers", "*", "policy", "name"): _policy_path,
    ("deployment", "workers", "*", "scripts", "folder"): _path,
}


def _anchor(node: Any, base: Path, path: Key = ()) -> None:
    """Make the paths in *node*, the part of a file's content at *path*, relative to nothing but that file."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        here = (*path, key)
        for pattern, anchored in _PATHS.items():
            if _fits(pattern[: len(here)], here):
                if len(pattern) > len(here) and isinstance(value, dict | list):
                    _anchor(value, base, here)
                    break
                if len(pattern) == len(here) and isinstance(value, str):
                    node[key] = anchored(value, base)


def _fits(pattern: tuple[str, ...], path: Key) -> bool:
    return len(pattern) == len(path) and all(p in ("*", k) for p, k in zip(pattern, path, strict=True))


# -- merging --------------------------------------------------------------------------------------------


def _kinds() -> dict[tuple[str, ...], tuple[str, dict[str, type[BaseModel]]]]:
    """Where kinds change: key path ("*" for any key) -> the key that tells the kind, and the kinds' models."""

    def by_tag(union: Any, tag: str) -> dict[str, type[BaseModel]]:
        models = get_args(get_args(union)[0])
        return {get_args(m.model_fields[tag].annotation)[0]: m for m in models}

    loads: tuple[tuple[str, ...], ...] = (("workload",), ("workload", "classes", "*"))
    return {
        ("policy",): ("name", {}),
        ("deployment", "router"): ("name", {}),
        ("deployment", "routers", "*"): ("name", {}),
        ("deployment", "autoscaler"): ("name", autoscaler.KEPT),
        ("workload", "arrivals"): ("process", by_tag(Arrivals, "process")),
        ("workload", "classes", "*", "arrivals"): ("process", by_tag(DrawnArrivals, "process")),
        ("workload", "sessions", "turns"): ("draw", by_tag(TurnsDraw, "draw")),
        **dict.fromkeys(WAITS, ("draw", by_tag(SecondsDraw, "draw"))),
        **{(*load, "steps", "*"): ("draw", by_tag(Steps, "draw")) for load in loads},
        **{(*load, "shape"): ("draw", by_tag(ShapeDraw, "draw")) for load in loads},
        ("deployment", "workers", "*", "calls"): ("time", by_tag(Calls, "time")),
        **{
            (*load, "lengths", "*", key): (tag, by_tag(union, tag))
            for load in loads
            for key, tag, union in (
                ("prompt", "draw", TokenDraw),
                ("output", "draw", TokenDraw),
                ("prefix", "draw", PrefixDraw),
                ("predict", "model", Prediction),
            )
        },
    }


_KINDS = _kinds()


def _kind_at(path: Key) -> tuple[str, dict[str, type[BaseModel]]] | None:
    return next((kind for pattern, kind in _KINDS.items() if _fits(pattern, path)), None)


def _keep_known(node: Tree, path: Key, tag: str, value: Any) -> None:
    """The kind of *node* becomes *value*: forget the keys that this kind does not know."""
    kind = _kind_at(path)
    assert kind is not None
    model = kind[1].get(value) if isinstance(value, str) else None
    known = set(model.model_fields) if model not in (None, *OWN_RATE) else set()
    for key in [k for k in node if k not in known]:
        del node[key]
    node[tag] = value


def merge(tree: Tree, more: Tree, path: Key = ()) -> None:
    """Lay *more* over *tree*, in place."""
    kind = _kind_at(path)
    if kind is not None and kind[0] in more and tree.get(kind[0]) != more[kind[0]]:
        _keep_known(tree, path, kind[0], more[kind[0]])
    if path == ("slo",) and _slo_of(more) not in (None, _slo_of(tree)):
        tree.clear()
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value, (*path, key))
        else:
            tree[key] = copy.deepcopy(value)


def _slo_of(tree: Tree) -> type[BaseModel] | None:
    """The kind of SLO that *tree* speaks of; None if it does not say."""
    if "seconds" in tree:
        return FixedSLO
    if "factor" in tree:
        return RelativeSLO
    return TokenSLOSpec if tree.keys() & {"prefill", "decode", "limits"} else None


def _combine(chosen: Chosen) -> Tree:
    """All layers in one, with the *chosen* deployment laid over the keys of the file that offers it. Layers that set
    up another policy than the chosen one do not speak on it."""
    policy, named = chosen.policy, chosen.deployment
    tree: Tree = {}
    for layer in chosen.layers:
        data = dict(layer.data)
        said, deployment = data.get("policy"), data.get("deployment")
        if policy is not None and isinstance(said, dict) and isinstance(said.get("name"), str):
            own = said if policy_registry.same_policy(said["name"], policy) else {}
            data["policy"] = {**own, "name": policy}
        merge(tree, data)
        if isinstance(deployment, dict) and "workers" in deployment and "name" not in deployment:
            tree["deployment"]["name"] = None  # workers of the file's own are none of those that have a name
        if named is not None and named in layer.deployments:
            merge(tree, {"deployment": {**layer.deployments[named], "name": named}})
    if named is not None and chosen.by_hand:
        for layer in chosen.layers:
            if named in layer.deployments:
                merge(tree, {"deployment": {**layer.deployments[named], "name": named}})
    if policy is not None and isinstance(tree.get("policy"), dict | None):  # what is no mapping is told later
        merge(tree, {"policy": {"name": policy}})
    return tree


# -- overrides ------------------------------------------------------------------------------------------


def parse_override(text: str) -> Override:
    """``a.b=c`` as the key path and the value, which is read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise BadInput(f"{text!r} sets nothing", where="--set", right="--set slo.factor=2.5")
    return path.strip(), yaml_io.parse(value, f"--set {path.strip()}")


def set_twice(named: Iterable[tuple[str, str, Any]]) -> tuple[str, str, str] | None:
    """The first key that two of *named* (what to call it, key, value) both set, as the two and the key; None if there
    is none. A mapping sets the keys in it, and takes the place of what was set there before."""
    by_key: dict[Key, str] = {}
    for name, path, value in named:
        full = _split(path, value)
        if isinstance(value, dict):
            for key, before in by_key.items():
                if key[: len(full)] == full:
                    return before, name, ".".join(map(str, key))
        for key in _leaves(full, value):
            if key in by_key:
                return by_key[key], name, ".".join(map(str, key))
            by_key[key] = name
    return None


def _leaves(key: Key, value: Any) -> Iterator[Key]:
    if isinstance(value, dict):
        for part, inner in value.items():
            yield from _leaves((*key, part), inner)
    else:
        yield key


def _split(path: str, value: Any) -> Key:
    return tuple(int(p) if p.isdigit() else p for p in full_key(path, value).split("."))


def _given(path: str, value: Any) -> Given:
    """The override of *path* as its key, its value and what was typed; a policy's file may be named from here."""
    key = _split(path, value)
    if key == ("policy", "name") and isinstance(value, str):
        value = _policy_path(value, Path.cwd())
    return key, value, path


def _keys(node: Any) -> list[str | int]:
    if isinstance(node, dict):
        return list(node)
    return list(range(len(node))) if isinstance(node, list) else []


def _apply(tree: Tree, path: Key, value: Any, where: str) -> None:
    """Set the existing key *path* of *tree*. Raises `BadInput` if it does not exist."""
    node: Any = tree
    for depth, part in enumerate(path):
        known = _keys(node)
        if part not in known and not takes(node, path, depth):
            option = of_vllm(str(part)) if path[:2] == ("deployment", "workers") else None
            if option is not None:
                raise BadInput(option[0], where=where, right=option[1])
            above = ".".join(map(str, path[:depth])) or "the experiment"
            right = _of_another_kind(path, depth, node, value)
            if right is None:
                right = suggest(str(part), map(str, known)) if known else f"{above} itself"
            raise BadInput(f"{above} has no key {str(part)!r}", where=where, right=right)
        if depth == len(path) - 1:
            kind = _kind_at(path[:-1])
            if kind is not None and part == kind[0] and node[part] != value:
                _keep_known(node, path[:-1], kind[0], value)
            node[part] = copy.deepcopy(value)
        else:
            node = node[part]


def _of_another_kind(path: Key, depth: int, node: Any, value: Any) -> str | None:
    """How to say *path*, of which *node* lacks the key at *depth*, if things of another kind have that key."""
    above, part = path[:depth], str(path[depth])
    kind = _kind_at(above)
    if above == ("slo",):
        kind = "", {"seconds": FixedSLO, "factor": RelativeSLO, "prefill": TokenSLOSpec}
    if kind is None:
        return None
    tag, kinds = kind
    known = {name: key for key, model in kinds.items() for name in model.model_fields if name != tag}
    near = part if part in known else closest(part, known)
    if near is None or near in node or depth + 1 < len(path):
        return None
    first = f"{tag}: {known[near]}, " if tag else ""
    return f"--set '{'.'.join(map(str, above))}={{{first}{near}: {value}}}', or here {', '.join(map(str, node))}"


# -- loading --------------------------------------------------------------------------------------------


def load(
    source: str | Path | Tree,
    overrides: Iterable[Override] = (),
    *,
    session: str | None = None,
    chain: list[Layer] | None = None,
) -> Experiment:
    """The experiment that *source* (a workload's name, a file, or a mapping) says, with *overrides*.

    *session* is the date and time of a measured run: known differences in the set-up of that day are applied, and
    simulated time takes the speed that the host had then. Raises `BadInput`: what is wrong, in which file and key,
    and what would be right.
    """
    given = [_given(path, value) for path, value in overrides]
    chosen = choose(layers(source) if chain is None else chain, given)
    chain = chosen.layers
    experiment = _validate(_combine(chosen), chain, [g for g in given if g[0] == ("policy", "name")])
    named = experiment.deployment
    if session is not None:
        given = [*_session_overrides(chain, session), *given]
    if given:
        tree = experiment.as_dict(whole=True)
        for path, value, shown in in_order(given):
            by_name = path in NAMES_OF_DEPLOYMENT and not isinstance(value, dict)
            if path not in (("policy", "name"), ("variant",)) and not by_name:  # those are chosen by now
                _apply(tree, path, value, said(shown))
        experiment = _validate(tree, chain, given)
        experiment = _said_if_changed(experiment, named)
    return experiment


def _said_if_changed(experiment: Experiment, named: Deployment) -> Experiment:
    """*experiment*, with a name of its deployment that says so if overrides made another of the one *named*."""
    now = experiment.deployment
    if now.name is None or now.name != named.name or (now.workers, now.estimates) == (named.workers, named.estimates):
        return experiment
    changed = now.name if now.name.endswith(CHANGED) else now.name + CHANGED
    return experiment.model_copy(update={"deployment": now.model_copy(update={"name": changed})})


def _session_overrides(chain: list[Layer], session: str) -> list[Given]:
    found: list[Given] = [(("time", "session"), session, "time.session")]
    variants = {layer.prefix[1] for layer in chain if layer.prefix}
    for layer in chain:
        for entry in layer.sessions:
            fits = str(entry.get("from", "")) <= session <= str(entry.get("to", "9999"))
            if fits and (entry.get("variant") is None or entry["variant"] in variants):
                found += [(_split(path, value), value, path) for path, value in entry.get("set", {}).items()]
    return found


def _validate(tree: Tree, chain: list[Layer], given: Sequence[Given]) -> Experiment:
    """The experiment that *tree* says. Raises `BadInput`, with the file or the override that says what is wrong."""
    right: str | None
    try:
        experiment = _with_all_parameters(Experiment.model_validate(tree))
        check(experiment)
    except ValidationError as error:
        path, what, right = _explain(error, tree)
    except Misfit as error:
        path, what, right = error.path, error.what, error.right
    else:
        return experiment
    raise BadInput(what, where=_origin(path, chain, given), right=right) from None


def _with_all_parameters(experiment: Experiment) -> Experiment:
    """Fill in the default parameters of policies, routers and autoscaler, so that the resolved experiment holds all
    that decides. Raises `Misfit`."""
    workers = experiment.deployment.workers
    specs: dict[Key, PolicySpec | None] = {("policy",): experiment.policy}
    specs |= {("deployment", "workers", i, "policy"): worker.policy for i, worker in enumerate(workers)}
    full: list[PolicySpec | None] = []
    for path, spec in specs.items():
        with _misfits((*path, "params"), (*path, "name")):
            if spec is not None:
                policy = policy_registry.find_policy(spec.name)
                params = policy_registry.complete(policy, spec.params)
                policy_registry.try_out(policy, params)
                spec = PolicySpec(name=spec.name, params=params)
        full.append(spec)
    routers: dict[tuple[str, ...], routing.Routing] = {}
    for place, router in experiment.deployment.routings.items():
        with _misfits(("deployment", *place, "params"), ("deployment", *place)):
            routers[place] = routing.complete(router.name, router.params, router.stale)
    with _misfits(("deployment", "autoscaler", "params"), ("deployment", "autoscaler", "name")):
        scaled = autoscaler.with_parameters(experiment.deployment.autoscaler)
    chosen: dict[str, Any] = {"router": routers.pop(("router",)), "autoscaler": scaled}
    handover = experiment.deployment.handover
    if handover is not None:
        chosen["handover"] = handover.model_copy(update={"router": routers.pop(("handover", "router"))})
    chosen["routers"] = {place[1]: own for place, own in routers.items()}
    served = [worker.model_copy(update={"policy": own}) for worker, own in zip(workers, full[1:], strict=True)]
    deployment = experiment.deployment.model_copy(update={"workers": served, **chosen})
    return experiment.model_copy(update={"policy": full[0], "deployment": deployment})


@contextmanager
def _misfits(parameters: Key, name: Key) -> Iterator[None]:
    """Within this, what is wrong with a policy or a router is told as a misfit at the key of its *parameters*, or at
    that of its *name*."""
    try:
        yield
    except policy_registry.WrongParameter as error:
        raise Misfit((*parameters, error.parameter), error.what, error.right) from None
    except BadInput as error:
        raise Misfit(name, f"{error.where}: {error.what}" if error.where else error.what, error.right) from None


# -- profiles -------------------------------------------------------------------------------------------


def load_profiles(experiment: Experiment) -> dict[str, Profile]:
    """The profile of each device that is used. Raises `BadInput` with the key that names one, used or not."""
    from servetwin.profiles import load as profile_of

    profiles = {}
    for device, name in experiment.deployment.devices.items():
        try:
            profiles[device] = profile_of(name)
        except BadInput as error:
            where = f"deployment.devices.{device}" + (f": {error.where}" if error.where else "")
            raise BadInput(error.what, where=where, right=error.right) from None
    return {device: profiles[device] for device in experiment.deployment.devices_used}


def not_measured(profiles: Iterable[Profile]) -> list[str]:
    """A line for each of *profiles* that is imported or estimated: what it stands on, and how far that is
    known to be off."""
    from servetwin.profiles import verdict

    return [*dict.fromkeys(line for profile in profiles if (line := verdict.basis(profile.data)))]


# -- saying what is wrong -------------------------------------------------------------------------------


def _explain(error: ValidationError, tree: Tree) -> tuple[Key, str, str]:
    """The first fault that pydantic found, as key path, what is wrong, and what would be right."""
    first = error.errors(include_url=False)[0]
    path, model = _walk(first["loc"], tree)
    key = str(path[-1]) if path else ""
    kind, message = first["type"], first["msg"]
    if kind == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        option = of_vllm(key) if model in (EngineSpec, WorkerSpec) else None
        return (path, *option) if option is not None else (path, f"unknown key {key!r}", suggest(key, known))
    if kind == "missing":
        return path, f"key {key!r} is missing", f"{key}: ..."
    if kind == "union_tag_not_found":
        tag, kinds = _kind_at(path) or ("", {})
        *others, last = kinds or ("...",)
        return (*path, tag), f"key {tag!r} is missing", f"{tag}: {', '.join(others)}, or {last}"
    if kind == "union_tag_invalid":
        tag, kinds = _kind_at(path) or ("", {})
        value = str(_at(tree, (*path, tag)))
        if any(value in known for other, known in _KINDS.values() if other == tag):
            return (*path, tag), f"{tag} {value!r} is none of those that may stand here", "one of " + ", ".join(kinds)
        return (*path, tag), f"unknown {tag} {value!r}", suggest(value, kinds)
    if kind in ("model_type", "dict_type"):
        return path, f"{reprlib.repr(_at(tree, path))} does not fit", f"a mapping, {key}: {{...}}"
    message = (
        message.removeprefix("Input should be ").removeprefix("List should have ").removesuffix(" after validation")
    )
    return path, f"{reprlib.repr(_at(tree, path))} does not fit", message


def _at(tree: Any, path: Key) -> Any:
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _walk(loc: tuple[int | str, ...], tree: Tree) -> tuple[Key, type[BaseModel]]:
    """*loc* without pydantic's union tags, and the model that its last key belongs to."""
    path: Key = ()
    node: Any = tree
    model: type[BaseModel] = Experiment
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(node, dict) and (part in node or last):
            inner = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            inner = node[part]
        else:
            continue
        if not last:
            model = _model_at((*path, part), inner, model, part) or model
        path, node = (*path, part), inner
    return path, model


def _model_at(path: Key, value: Any, model: type[BaseModel], key: str | int) -> type[BaseModel] | None:
    kind = _kind_at(path)
    if kind is not None and kind[1] and isinstance(value, dict):
        return kind[1].get(str(value.get(kind[0])))
    field_info = model.model_fields.get(str(key))
    found = _models_in(field_info.annotation) if field_info is not None else []
    if path == ("slo",):
        return (_slo_of(value) if isinstance(value, dict) else None) or RelativeSLO
    return found[0] if found else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [m for inner in get_args(annotation) for m in _models_in(inner)]


def _origin(path: Key, chain: list[Layer], given: Sequence[tuple[Key, Any, str]]) -> str:
    """Who set *path*, and that: an override, or the file and line that speak on it last."""
    full = ".".join(map(str, path))
    for key, _, shown in reversed(given):
        if key == path[: len(key)]:
            whole = shown == full or (isinstance(shown, ByOption) and key == path)
            return said(shown) if whole else f"{said(shown)}: {full}"
    for wanted in (path, path[:-1]):
        for layer in reversed(chain):
            offers = [(tree, ("deployments", name)) for name, tree in layer.deployments.items()]
            found = [(tree, prefix, path[1:]) for tree, prefix in offers if path[0] == "deployment"]
            for tree, prefix, keys in (*found, (layer.data, layer.prefix, path)):
                if wanted and _at(tree, keys[: len(keys) - len(path) + len(wanted)]) is not None:
                    line = yaml_io.line_of(layer.text, (*prefix, *keys))
                    return f"{layer.where}:{line}: {full}" if line is not None else f"{layer.where}: {full}"
    return f"{chain[-1].where}: {full}"
