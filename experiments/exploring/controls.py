"""What can be changed of an experiment on the page, and between which values sliders go.

A slider's ends are a suggestion, around the value that the experiment has; any other value can be typed.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from servetwin.core import BadInput, Policy, ServeTwinError
from servetwin.core.llm import TokenPolicy

from ..registry import policy_docs, policy_registry
from ..registry.catalog import source_of
from ..spec.experiment import Experiment, FixedSLO, RelativeSLO
from ..spec.llm import TokenSLOSpec
from ..spec.loading import layers, load
from ..spec.overrides import Override

#: The most requests that a slider offers, and with which an experiment that has more begins.
MOST_REQUESTS = 2000
#: Requests with which it is tried out whether a policy fits.
FEW = 20
#: The most replicas that a slider offers.
MOST_REPLICAS = 8
#: What the name of a profile ends with besides the model.
_MORE = re.compile(r"-(?:tp\d+|graphs|eager|imported|\d)$")


@dataclass(frozen=True)
class Control:
    """A *key* of the experiment that can be changed. A "number" has a slider from *low* to *high* (None: there is
    none), on a *log* scale or of *whole* numbers; with *empty* it may be left out. A "choice" is of *choices* (value,
    what to call it); a "switch" is on or off; a "text" is typed, as YAML."""

    key: str
    label: str
    kind: Literal["number", "choice", "switch", "text"]
    value: Any
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    empty: bool = False
    choices: Sequence[tuple[Any, str]] = ()
    says: str = ""


@dataclass(frozen=True)
class Offered:
    """A policy and what it takes. *why*: what is in the way of its serving this experiment; None if nothing is."""

    name: str
    about: str
    why: str | None
    controls: Sequence[Control] = ()


@dataclass(frozen=True)
class Offer:
    """What the page offers: the experiment's *controls*, *policies*, and which *policy* it has to begin with."""

    name: str
    about: str
    policy: str
    controls: Sequence[Control]
    policies: Sequence[Offered] = field(default_factory=list)


def offer_of(given: str, overrides: Sequence[Override], policies: Sequence[str] = ()) -> Offer:
    """What the page offers of the experiment *given* with *overrides*; *policies* are offered besides those that are
    known by name. Raises `BadInput` if the experiment cannot be run."""
    from ..assembly.build import build

    source = source_of(given)
    experiment = load(source, overrides)
    build(experiment)
    own = experiment.policy.name
    kind = TokenPolicy if issubclass(policy_registry.find_policy(own), TokenPolicy) else Policy
    offered = []
    for name in dict.fromkeys([own, *policies, *policy_registry.policy_names()]):
        about, why, controls = "", None, []
        try:
            found: Any = policy_registry.find_policy(name)
            if not issubclass(found, kind):
                if name in policies:
                    raise BadInput("it is for another kind of models", where=name, right=f"one such as {own}")
                continue  # it cannot fit, whatever else is changed
            about = policy_registry.describe(name)[0].replace("*", "")
            chosen = experiment if name == own else load(source, [*_without_policy(overrides), ("policy", name)])
            controls = _parameters(found, chosen.policy.params)
            if name in (own, *policies):
                build(chosen)
            else:  # some say only when requests come that these are not for them
                build(shortened(chosen)).play()
        except ServeTwinError as error:
            if name in policies:
                raise
            why = error.what if isinstance(error, BadInput) else str(error)
        offered.append(Offered(name, about, why, controls))
    named = dict.fromkeys(name for layer in layers(source) for name in layer.deployments)
    return Offer(experiment.name, experiment.about, own, _of_experiment(experiment, list(named)), offered)


def shortened(experiment: Experiment) -> Experiment:
    """*experiment* with a few requests, if it says how many it has."""
    if experiment.workload.requests is None:
        return experiment
    few = min(experiment.workload.requests, FEW)
    return experiment.model_copy(update={"workload": experiment.workload.model_copy(update={"requests": few})})


def _without_policy(overrides: Iterable[Override]) -> list[Override]:
    return [(key, value) for key, value in overrides if key != "policy" and not key.startswith("policy.")]


# -- of the experiment ----------------------------------------------------------------------------------


def _of_experiment(experiment: Experiment, deployments: Sequence[str]) -> list[Control]:
    """The controls of *experiment*, whose files offer *deployments* by name."""
    load_of, plan = experiment.workload, experiment.deployment
    found = _of_arrivals(load_of.arrivals)
    found += _of_slo(experiment.slo)
    if load_of.requests is not None:
        few, most = min(100, load_of.requests), max(MOST_REQUESTS, load_of.requests)
        found.append(_number("workload.requests", "requests", load_of.requests, few, most, whole=True))
    if plan.name in deployments and len(deployments) > 1:
        choices = [(name, name) for name in deployments]
        says = "which workers there are, and what each serves"
        found.append(Control("deployment", "deployment", "choice", plan.name, choices=choices, says=says))
    found += [_device(experiment, device) for device in plan.devices]
    if plan.devices:
        most = max(MOST_REPLICAS, plan.replicas)
        says = "copies of all devices, behind a router"
        found.append(_number("deployment.replicas", "replicas", plan.replicas, 1, most, whole=True, says=says))
    found.append(_number("seed", "seed", experiment.seed, whole=True, says="of all that is drawn"))
    return found


def _number(
    key: str, label: str, value: Any, low: float | None = None, high: float | None = None, **more: Any
) -> Control:
    return Control(key, label, "number", value, low, high, **more)


def _around(key: str, label: str, value: float, times: float, **more: Any) -> Control:
    """A number with a slider from *times* less to *times* more than *value*."""
    return _number(key, label, value, _neat(value / times), _neat(value * times), log=True, **more)


def _neat(value: float) -> float:
    return float(f"{value:.2g}")


def _of_arrivals(arrivals: Any) -> list[Control]:
    above = "workload.arrivals"
    found = []
    if arrivals.rate is not None:
        found.append(_around(f"{above}.rate", "rate, requests/s", arrivals.rate, 8))
    if hasattr(arrivals, "cv"):
        says = "of the gaps between arrivals; 1: Poisson, larger: bursts"
        high = max(6.0, _neat(1.5 * arrivals.cv))
        found.append(_number(f"{above}.cv", "cv", arrivals.cv, min(0.1, arrivals.cv), high, says=says))
    if hasattr(arrivals, "burst"):
        most = max(20, arrivals.burst)
        found.append(_number(f"{above}.burst", "burst", arrivals.burst, 1, most, says="times as many as in calm"))
        found.append(_number(f"{above}.share", "share of bursts", arrivals.share, 0.01, 0.9, says="of the time"))
        found.append(_around(f"{above}.cycle", "cycle, s", arrivals.cycle, 10, says="a calm period and a burst"))
    return found


def _of_slo(slo: Any) -> list[Control]:
    if isinstance(slo, RelativeSLO):
        says = "times the latency of a request served alone"
        return [_number("slo.factor", "SLO", slo.factor, 1, max(10, _neat(2 * slo.factor)), says=says)]
    if isinstance(slo, FixedSLO):
        return [_around("slo.seconds", "SLO, s", slo.seconds, 8)]
    assert isinstance(slo, TokenSLOSpec)
    found = []
    if slo.prefill is not None:
        says, most = "times the prefill of a prompt served alone", max(20, 2 * slo.prefill)
        found.append(_number("slo.prefill", "SLO of the first token", slo.prefill, 1, most, says=says))
    if slo.decode is not None:
        says, most = "times a decode step alone, for each token", max(10, 2 * slo.decode)
        found.append(_number("slo.decode", "SLO of each token", slo.decode, 1, most, says=says))
    for name, value in slo.limits or ():
        if value is not None:
            found.append(_around(f"slo.limits.{name}", f"{name.removesuffix('_ms').upper()} limit, ms", value, 10))
    return found


def _device(experiment: Experiment, device: str) -> Control:
    """The profiles of the same model on whatever devices there are: those that are called the same."""
    from servetwin.profiles import load as load_profile
    from servetwin.profiles import names, verdict

    now = experiment.deployment.devices[device]
    needed = {m for worker in experiment.deployment.workers if worker.device == device for m in worker.modules}
    llms = needed & set(experiment.pipeline.llms)
    choices = []
    for name in dict.fromkeys([now, *(n for n in names() if _model(n) == _model(now))]):
        data = load_profile(name).data
        fits = data.tokens is not None if llms else needed <= data.modules.keys()
        if fits or name == now:
            count = f"{data.device.count} " if data.device.count > 1 else ""
            origin = verdict.origin(data)
            basis = "" if origin == "measured" else f", {origin}"
            choices.append((name, f"{name} ({count}{data.device.name}{basis})"))
    label = "device" if len(experiment.deployment.devices) == 1 else f"device {device}"
    return Control(f"deployment.devices.{device}", label, "choice", now, choices=choices)


def _model(profile: str) -> str:
    """What a profile's name says of the model, without the device and the set-up."""
    name = profile.rpartition("/")[2]
    while (shorter := _MORE.sub("", name)) != name:
        name = shorter
    return name


# -- of policies ----------------------------------------------------------------------------------------


def _parameters(policy: type[Any], values: dict[str, Any]) -> list[Control]:
    return [
        _parameter(f"policy.params.{p.name}", p.name, p.hint, values[p.name], p.meaning.replace("*", ""))
        for p in policy_docs.parameters_of(policy)
        if p.name in values
    ]


def _parameter(key: str, label: str, hint: Any, value: Any, says: str) -> Control:
    """The control of a parameter of type *hint* that is *value* to begin with."""
    united = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = list(typing.get_args(hint)) if united else [hint]
    empty = type(None) in kinds
    kinds = [kind for kind in kinds if kind is not type(None)]
    if kinds == [bool]:
        return Control(key, label, "switch", value, says=says)
    if len(kinds) == 1 and typing.get_origin(kinds[0]) is Literal:
        choices = [(choice, str(choice)) for choice in typing.get_args(kinds[0])]
        choices = [(None, "none"), *choices] if empty else choices
        return Control(key, label, "choice", value, choices=choices, says=says)
    if isinstance(value, float) and not math.isfinite(value):
        return Control(key, label, "text", str(value).replace("inf", ".inf"), empty=empty, says=says)
    if kinds and set(kinds) <= {int, float}:
        whole = float not in kinds
        known = isinstance(value, int | float) and value > 0
        low, high = (_neat(value / 8), _neat(value * 8)) if known else (None, None)
        low = max(low, 1) if whole and low is not None else low
        return Control(key, label, "number", value, low, high, log=known, whole=whole, empty=empty, says=says)
    return Control(key, label, "text", value, empty=empty, says=says)
