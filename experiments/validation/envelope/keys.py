"""What an experiment says, key by key: each is compared with recorded runs, unless it is listed here with a reason.

A key that is new in `servetwin.experiments.spec` is compared without any change here: what is not its default, and
not listed, is a word of `Facts.special`, and runs are alike only if they have the same words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from pydantic import BaseModel
from servetwin.core.llm import EngineLimits

from ...spec.experiment import (
    BudgetSpec,
    Constant,
    Deployment,
    Experiment,
    FixedSLO,
    Gamma,
    PipelineSpec,
    Poisson,
    RelativeSLO,
    System,
    Time,
    WorkerSpec,
    Workload,
)
from ...spec.keys.routing import RouterSpec
from ...spec.llm import EngineSpec, Lengths, TokenSLOSpec

#: Keys that words do not tell, and why: each says by what else it is compared, or why it changes nothing.
LISTED: Mapping[type[BaseModel], Mapping[str, str]] = {
    Experiment: {
        "name": "changes nothing",
        "about": "changes nothing",
        "records": "says what is written",
        "seed": "recorded runs have many",
        "policy": "`Facts.policy` and `Facts.params`",
    },
    Workload: {
        "requests": "a range",
        "draws": "only which random numbers: the requests that they give are compared",
        "steps": "the requests are compared",
        "trace": "the requests are compared",
    },
    Gamma: {"process": "by its cv", "rate": "a range", "cv": "a range"},
    Poisson: {"process": "by its cv, 1", "rate": "a range"},
    Constant: {"process": "by its cv, 0", "rate": "a range"},
    Lengths: {
        "prompt": "the requests are compared",
        "output": "the requests are compared",
        "limit": "the requests are compared",
        "truncate": "requests are compared as they are when cut",
    },
    RelativeSLO: {"factor": "a range"},
    FixedSLO: {"seconds": "a range"},
    TokenSLOSpec: {"prefill": "a range", "decode": "a range", "limits": "ranges"},
    BudgetSpec: {},
    PipelineSpec: {"modules": "`Facts.pipeline`", "edges": "`Facts.pipeline`"},
    Deployment: {
        "name": "what it stands for is compared",
        "devices": "`Facts.systems`",
        "replicas": "a range",
        "prices": "change no time",
        "router": "a word where several workers serve the same",
        "routers": "a word where several workers serve the same",
    },
    WorkerSpec: {
        "modules": "`Facts.placement`",
        "device": "`Facts.systems` and `Facts.placement`",
        "limit": "a range",
        "name": "changes nothing",
        "scripts": "nothing is run in simulation",
    },
    EngineSpec: {
        **{f.name: "`Facts.engine`" for f in fields(EngineLimits) if f.name in EngineSpec.model_fields},
        "asynchronous": "`Facts.engine`",
        "preparing": "`Facts.engine`",
        "max_model_len": "requests are compared as they fit",
    },
    System: {},
    Time: {
        "session": "`Facts.dated`",
        "noise": "recordings are scored with it and without",
    },
}

#: What keys are called whose content is told as a whole.
NAMES = {
    "workload.classes": "classes of requests",
    "workload.sessions": "sessions",
    "workload.shape": "shapes of requests",
    "pipeline.branches": "branches",
    "budget.split": "a budget of the SLO",
    "workload.arrivals: bursty": "bursty arrivals",
    "workload.arrivals: schedule": "a load over time",
    "workload.arrivals: by_class": "arrivals by class",
    "workload.arrivals: trace": "arrivals of a trace",
    "workload.arrivals: closed": "a closed loop",
    "deployment.handover": "prefill and decode apart",
    "deployment.autoscaler": "replicas that come and go",
    "deployment.faults": "devices that fail",
    "deployment.cards": "cards that several models share",
}

#: Words of content are cut to so many characters; what is cut is told apart by a hash.
SHORT = 60


def words(experiment: Experiment) -> Iterator[str]:
    """In words, each key of *experiment* that is neither its default nor `LISTED`."""
    for path, value in told(experiment):
        yield f"{NAMES.get(path, path)} {as_word(value)}"


def told(model: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of *model* that are neither their defaults nor `LISTED`, and what they say. Workers and lengths go by
    their modules."""
    listed = LISTED[type(model)]
    for name, field in type(model).model_fields.items():
        value, key = getattr(model, name), f"{path}{name}"
        if name in listed:
            continue
        if isinstance(value, BaseModel) and type(value) in LISTED:
            yield from told(value, f"{key}.")
        elif name == "workers" and isinstance(model, Deployment):
            for worker in model.workers:
                yield from told(worker, f"{key}.{'+'.join(worker.modules)}.")
        elif name == "lengths" and isinstance(model, Workload):
            for module, own in model.lengths.items():
                yield from told(own, f"{key}.{module}.")
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            process = getattr(value, "process", None)
            yield (f"{key}: {process}" if process is not None else key), value


def as_word(value: Any) -> str:
    """*value* in a word, cut where it is long; then a hash tells it from others that begin alike."""
    text = f"({in_words(value)})" if isinstance(value, Mapping | BaseModel) else in_words(value)
    if len(text) <= SHORT or isinstance(value, str):
        return text
    whole = json.dumps(value, sort_keys=True, default=_plain)
    return f"{text[:SHORT]}... ({hashlib.sha256(whole.encode()).hexdigest()[:8]})"


def in_words(value: Any) -> str:
    """*value*, of an experiment, without the marks of JSON: ``loop true, most 4``.

    >>> in_words({"tools": [1, 2.5], "a": {"b": None}})
    'a (b none), tools [1, 2.5]'
    """
    plain = json.loads(json.dumps(value, sort_keys=True, default=_plain))
    return _listed(plain) if isinstance(plain, dict) else _item(plain)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_item(value)}" for key, value in values.items())


def _item(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_listed(value)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_item, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def pipeline(spec: PipelineSpec) -> str:
    """The modules in their order, each with what it says beside its defaults, and the edges if it has some."""
    parts = []
    for name, module in spec.modules.items():
        said = module.model_dump(mode="json", exclude_defaults=True)
        parts.append(f"{name} ({in_words(said)})" if said else name)
    return " > ".join(parts) + (f" by {in_words(spec.edges)}" if spec.edges is not None else "")


def of_router(router: RouterSpec) -> str:
    """In words, a *router*, with what it says beside its name and its defaults."""
    rest = router.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    return f"router {router.name}" + (f" {as_word(rest)}" if rest else "")
