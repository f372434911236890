"""What of a run says whether recorded runs were like it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import pstdev
from typing import TYPE_CHECKING, Any, Self

from servetwin.core import BadInput, Request
from servetwin.core.llm import EngineLimits, TokenRequest

from ...spec.experiment import (
    Bursty,
    Constant,
    Experiment,
    FixedSLO,
    Gamma,
    Poisson,
    RelativeSLO,
    Trace,
    WorkerSpec,
)
from ...spec.keys.routing import RouterSpec
from ...spec.llm import Preparing, TokenSLOSpec
from . import keys

if TYPE_CHECKING:
    from servetwin.profiles import Profile

#: Of requests that are drawn so many say what lengths and steps are, more than recorded runs have; of a trace all.
DRAWN = 20_000

#: Arrivals that never end, and do not say of which class a request is.
_ENDLESS = Gamma, Poisson, Constant, Bursty

#: How many requests a run sends.
REQUESTS = "requests"

#: What rates are called. Where the load is known that they are, that counts.
RATE = "rate, requests/s"

#: Lowest and highest.
Range = tuple[float, float]


@dataclass(frozen=True)
class System:
    """A model (of images also their size) on a device, by the profile that was taken there: its name, and a hash of
    what it says."""

    profile: str
    digest: str
    model: str
    device: str

    @classmethod
    def of(cls, profile: Profile) -> Self:
        data = profile.data
        size = f", {data.image[0]}x{data.image[1]}" if data.image is not None else ""
        several = f"{data.device.count} " if data.device.count > 1 else ""
        return cls(profile.name, profile.digest, f"{data.model}{size}", f"{several}{data.device.name}")

    @property
    def kind(self) -> tuple[str, str]:
        """What makes two the same model on the same device."""
        # Some are named as in Hugging Face, facebook/opt-13b; DiT-S/2 is not.
        return re.sub(r"^[\w.-]+/(?=[a-z])", "", self.model.lower()), self.device


@dataclass(frozen=True)
class Facts:
    """A run, as far as it matters whether others were like it.

    *systems* are what its devices serve, *policy* and *params* (those that are not the defaults) what decided.
    *placement* says which modules share a worker and which workers a device, *engine* the options of language models'
    engines, *special* in words what most runs do not have (sessions, tools, ...). *ranges* are numbers, by name, in
    the units that the names say; of what differs between requests, from the lowest to the highest. *dated*: the run
    says when it was made, and what is known of that day counts. *pipeline*: its modules, in their order.
    """

    systems: tuple[System, ...]
    policy: str
    params: Mapping[str, Any] = field(default_factory=dict)
    placement: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)
    dated: bool = False
    pipeline: str = ""


def of_experiment(
    experiment: Experiment, requests: Iterable[Request] | None = None, *, known: dict[str, Asked] | None = None
) -> Facts:
    """The facts of a run of *experiment*, whose *requests* (of its own drawing, unless they are given) are looked at.
    *known* has what was found of those of other experiments, and gets what is found of these: they are drawn once for
    all that ask for the same. Raises `BadInput` as a run of it would."""
    from ...spec.loading import load_profiles
    from ...spec.validation import check

    check(experiment)
    profiles = load_profiles(experiment)
    asked = _asked(experiment, profiles, {} if known is None else known) if requests is None else Asked.of(requests)
    count = experiment.workload.requests
    if requests is not None or count is None or experiment.workload.in_turns:
        count = asked.count
    engine, limits = _engines(experiment, profiles)
    workers, copies = experiment.deployment.workers, experiment.deployment.replicas
    serving, placement = placement_of(workers, copies)
    # Workers that decode share the load, but a deployment with more of them is no replica of one with less.
    replicas = copies if any(worker.role for worker in workers) else serving
    ranges = {**limits, "replicas": (replicas, replicas), **asked.ranges(count), **_slo(experiment)}
    load = experiment.workload
    rate = _rate(experiment)
    if rate is not None:
        ranges |= asked.demand(rate / serving)
    cv = _cv(load.arrivals)
    if cv is not None:
        ranges["cv"] = (cv, cv)
    return Facts(
        systems=systems_of(profiles.values()),
        policy=policy_name(experiment.policy.name),
        params=changed_params(experiment.policy.name, experiment.policy.params),
        placement=placement,
        engine=engine,
        special=(*special(experiment), *_terms(experiment)),
        ranges=ranges,
        dated=experiment.time.session is not None,
        pipeline=keys.pipeline(experiment.pipeline),
    )


def systems_of(profiles: Iterable[Profile]) -> tuple[System, ...]:
    """What *profiles* are of, each once."""
    return tuple(sorted({System.of(profile) for profile in profiles}, key=lambda system: system.profile))


def policy_name(given: str) -> str:
    """The name of a policy that comes along, where *given* is a copy of its file, or else *given* itself."""
    from ...registry.policy_registry import policy_names, same_policy

    name = Path(given).stem.replace("_", "-")
    return name if given.endswith(".py") and name in policy_names() and same_policy(name, given) else given


def changed_params(policy: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of *params* that are not what *policy* has by default."""
    from ...registry.policy_registry import defaults, find_policy

    try:
        usual = defaults(find_policy(policy))
    except BadInput:  # a class of a process that is over
        return dict(params)
    return {name: value for name, value in params.items() if name not in usual or usual[name] != value}


def placement_of(workers: Sequence[WorkerSpec], copies: int = 1) -> tuple[int, str]:
    """How many workers serve the same modules, at most, and which modules share a worker (+) and a device (,). Where
    prefill and decode are apart, those that decode count."""
    devices: dict[str, set[str]] = {}
    counted: dict[str, int] = {}
    for worker in workers:
        name = "+".join(worker.modules)
        if worker.role != "prefill":
            counted[name] = counted.get(name, 0) + copies
        if worker.threads is None:
            devices.setdefault(worker.device or "", set()).add(name)
    shared = sorted({", ".join(sorted(names)) for names in devices.values()})
    return max(counted.values()), " / ".join(shared)


# -- requests -------------------------------------------------------------------------------------------


def _drawn(experiment: Experiment, limits: Mapping[str, int]) -> Iterator[Request]:
    """The requests, drawn as a run would; of those without a trace the first `DRAWN`. *limits* are the tokens that
    language models take per request."""
    from ...workload import sessions
    from ...workload.requests import read_trace, requests

    load = experiment.workload
    if load.recorded is None and not load.in_turns and load.requests is not None and load.requests > DRAWN:
        fewer = load.model_copy(update={"requests": DRAWN})
        experiment = experiment.model_copy(update={"workload": fewer})
    trace = read_trace(experiment) if load.recorded is not None else None
    if load.in_turns:
        found = sessions.sessions(experiment, _no_slo, trace, contexts=limits)
        return (request for session in found for request in session.planned())
    return requests(experiment, _no_slo, trace, contexts=limits)


def _no_slo(*_: Any, **__: Any) -> float:
    return 1.0


def _terms(experiment: Experiment) -> Iterator[str]:
    """A trace can say more of its requests than their work: an SLO, a priority, a class."""
    from ...workload.requests import read_trace

    trace = read_trace(experiment) if experiment.workload.recorded is not None else None
    if trace is not None and trace.overview.terms:
        yield "a trace with SLOs, classes or priorities of requests"


@dataclass(frozen=True)
class Asked:
    """What the requests of a run ask for: how many there are, *lengths* (steps by module, and by language model
    lengths of prompts and outputs, with their spread, a standard deviation, and declared limits), and by what loads
    are called what all of them ask for of it."""

    count: int
    lengths: Mapping[str, Range]
    loads: Mapping[str, tuple[int, int]]  # steps or output tokens, and of how many requests

    @classmethod
    def of(cls, sent: Iterable[Request]) -> Self:
        """Of the requests *sent*."""
        sent = list(sent)
        found: dict[str, Range] = {}
        loads: dict[str, tuple[int, int]] = {}
        for module, steps in _steps(sent).items():
            found[f"steps of {module}"] = (min(steps), max(steps))
            loads[f"load of {module}, steps/s"] = (sum(steps), len(steps))
        for module, (prompts, outputs, limits) in _tokens(sent).items():
            whole = [a + b for a, b in zip(prompts, outputs, strict=True)]
            for name, value in (
                ("mean prompt", sum(prompts) / len(prompts)),
                ("mean output", sum(outputs) / len(outputs)),
                ("longest context", float(max(whole))),
            ):
                found[f"{name} of {module}, tokens"] = (value, value)
            for name, values in (("prompt", prompts), ("output", outputs)):
                found[f"each {name} of {module}, tokens"] = (min(values), max(values))
                spread = pstdev(values)
                found[f"spread of {name} of {module}, tokens"] = (spread, spread)
            found[f"declared limit of {module}, tokens"] = (min(limits), max(limits))
            loads[f"load of {module}, output tokens/s"] = (sum(outputs), len(outputs))
        return cls(len(sent), found, loads)

    def ranges(self, count: int | None = None) -> dict[str, Range]:
        """How many requests are sent (*count*, if not those that were looked at), and their lengths."""
        count = self.count if count is None else count
        return {REQUESTS: (count, count), **self.lengths}

    def demand(self, rate: float) -> dict[str, Range]:
        """*rate*, in requests/s, and the load that such requests are: steps, or tokens of outputs, per second."""
        found = {name: rate * total / many for name, (total, many) in self.loads.items()}
        return {name: (load, load) for name, load in (*found.items(), (RATE, rate))}


def _asked(experiment: Experiment, profiles: dict[str, Profile], known: dict[str, Asked]) -> Asked:
    """What the requests that *experiment* draws ask for, which the times of arrivals without end do not change."""
    from ...assembly.llm_workers import contexts

    load = experiment.workload
    limits = contexts(experiment, profiles) if experiment.pipeline.llms else {}
    endless = load.recorded is None and not load.in_turns and isinstance(load.arrivals, _ENDLESS)
    # Asked of the whole: pydantic would make what writes a workload by itself for this alone, at 11 ms.
    left_out = {"workload": {"arrivals"}} if endless else None
    workload = experiment.model_dump(mode="json", include={"workload"}, exclude=left_out)
    key = json.dumps([workload, experiment.seed, limits])
    if key not in known:
        known[key] = Asked.of(_drawn(experiment, limits))
    return known[key]


def _steps(sent: Iterable[Request]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for request in sent:
        for module, steps in request.work.items():
            found.setdefault(module, []).append(steps)
    return found


def _tokens(sent: Iterable[Request]) -> dict[str, tuple[list[int], list[int], list[int]]]:
    """Prompts, outputs and declared limits, by module, as they are sent; a prompt that an earlier answer is part of
    is not known."""
    found: dict[str, tuple[list[int], list[int], list[int]]] = {}
    for request in sent:
        if not isinstance(request, TokenRequest) or request.outputs is None:
            continue
        for module, told in request.tokens.items():
            visits: Any = told if isinstance(told, list) else [told]
            outputs: Any = request.outputs[module]
            several = outputs if isinstance(outputs, list | tuple) else [outputs]
            for (prompt, limit), output in zip(visits, several, strict=False):
                if isinstance(prompt, int):
                    prompts, made, limits = found.setdefault(module, ([], [], []))
                    prompts.append(prompt)
                    made.append(output)
                    limits.append(limit)
    return found


# -- what an experiment says ----------------------------------------------------------------------------


def _engines(experiment: Experiment, profiles: dict[str, Profile]) -> tuple[dict[str, Any], dict[str, Range]]:
    """The options of engines, and the limits of batches, by module."""
    from ...assembly.llm_workers import settings_of

    options: dict[str, Any] = {}
    limits: dict[str, Range] = {}
    for worker in experiment.deployment.workers:
        name = "+".join(worker.modules)
        if worker.limit is not None:
            low, high = limits.get(f"batch limit of {name}", (worker.limit, worker.limit))
            limits[f"batch limit of {name}"] = (min(low, worker.limit), max(high, worker.limit))
        if worker.modules[0] in experiment.pipeline.llms and worker.device is not None:
            settings = settings_of(worker, profiles[worker.device])
            own = settings.limits
            preparing = worker.engine.preparing if worker.engine is not None else None
            options |= engine_options(own, settings.asynchronous, preparing)
            limits[f"KV blocks of {name}"] = (own.blocks, own.blocks)
    return options, limits


#: What is compared as a range, or by another name.
_OF_ENGINE = (
    "blocks", "max_sequences", "max_batched_tokens", "keep_freed", "enable_prefix_caching", "num_speculative_tokens",
    "host_blocks", "max_loras", "adapters", "pipeline_parallel_size",
)  # fmt: skip


def engine_options(limits: EngineLimits, asynchronous: bool, preparing: Preparing | None = None) -> dict[str, Any]:
    """What of an engine is compared, by vLLM's names where it has some; all else that its *limits* say by ours."""
    rest = {f.name: getattr(limits, f.name) for f in fields(limits) if f.name not in _OF_ENGINE}
    return {
        "asynchronous scheduling": asynchronous,
        "max_num_batched_tokens": limits.max_batched_tokens,
        "prefix caching": bool(limits.enable_prefix_caching or limits.keep_freed),
        "preparing": None if preparing is None else preparing.seconds,
        **rest,
    }


def _slo(experiment: Experiment) -> dict[str, Range]:
    specs = [experiment.slo, *(experiment.slo_of(name) for name in experiment.workload.classes)]
    found: dict[str, Range] = {}
    for slo in specs:
        for name, value in _promised(slo):
            low, high = found.get(name, (value, value))
            found[name] = (min(low, value), max(high, value))
    return found


def _promised(slo: RelativeSLO | FixedSLO | TokenSLOSpec) -> Iterator[tuple[str, float]]:
    if isinstance(slo, RelativeSLO):
        yield "SLO factor", slo.factor
    elif isinstance(slo, FixedSLO):
        yield "SLO, s", slo.seconds
    else:
        if slo.prefill is not None:
            yield "prefill SLO", slo.prefill
        if slo.decode is not None:
            yield "decode SLO", slo.decode
        if slo.limits is not None:
            for name, ms in slo.limits.model_dump(exclude_none=True).items():
                yield f"{name.removesuffix('_ms')} limit, ms", ms


def _rate(experiment: Experiment) -> float | None:
    """Requests per second, over all replicas; None where answers say when requests come."""
    load = experiment.workload
    if load.in_turns:
        return None
    if isinstance(load.arrivals, Trace) and load.arrivals.rate is None:
        from ...workload.requests import read_trace

        trace = read_trace(experiment)
        return trace.count / trace.span if trace is not None and trace.span > 0.0 else None
    return load.arrivals.rate


def _cv(arrivals: Any) -> float | None:
    if isinstance(arrivals, Poisson):
        return 1.0
    if isinstance(arrivals, Constant):
        return 0.0
    cv: float | None = getattr(arrivals, "cv", None)
    return cv


def special(experiment: Experiment) -> Iterator[str]:
    """In words, what of *experiment* most runs have not."""
    yield from dict.fromkeys([*keys.words(experiment), *map(keys.of_router, _routers(experiment))])


def _routers(experiment: Experiment) -> Iterator[RouterSpec]:
    """The routers that have somebody to choose from."""
    plan = experiment.deployment
    several, _ = placement_of(plan.workers, plan.replicas)
    first = Counter("+".join(w.modules) for w in plan.workers if w.role != "decode")
    come = max(first.values(), default=0) * plan.replicas
    for path, router in plan.routings.items():
        if (several if path[0] == "handover" else come) > 1:
            yield router
