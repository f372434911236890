"""Requests that say more of themselves than their work: of which class and tenant they are, with which priority,
weight, SLO and shape, and what is predicted of their outputs.

Classes are drawn, or a trace says them; what else a trace says of a request (its columns ``priority``, ``tenant``,
``weight`` and ``slo``) goes before what its class says. Steps and lengths of the workload are drawn for every request
as without classes, so that the same seed gives the same to those whose class has none of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise, repeat, tee
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from servetwin.core import BadInput, Request, Shape
from servetwin.core.llm import Follows, TokenRequest
from servetwin.core.random_streams import stream
from servetwin.sim.llm.request_columns import ClassTerms, TokenColumns

from ..registry.catalog import suggest
from ..spec.experiment import Experiment, RelativeSLO, RequestClass, Workload
from ..spec.keys.schedule import ByClass
from ..spec.sessions import TraceTurns
from . import prefixes
from .draws import BLOCK, arrivals_by_class, shapes_of, steps_of, turns_of
from .lengths import triples
from .predictions import Predictor, predictor

if TYPE_CHECKING:
    from .trace_reader import TraceFile

#: Gives the seconds that a request of such work, of the class of that name, and of a shape, may take.
Seconds = Callable[[Mapping[str, int], str, Shape | None], float]


def class_names(load: Workload, trace: TraceFile | None, seed: int) -> Iterator[str]:
    """The class of request 0, 1, ..., "" where there are none. Raises `BadInput` if the trace does not tell, or tells
    of one that is not there."""
    if isinstance(load.arrivals, ByClass):
        return (name for _, name in arrivals_by_class(load, seed))
    known = list(load.classes)
    told = trace is not None and "class" in trace.overview.terms
    if not known:
        return (said.get("class", "") for said in trace.terms()) if trace is not None and told else repeat("")
    shares = np.array([own.share or 0.0 for own in load.classes.values()])
    if not shares.any():
        return _told(known, trace)
    if told and trace is not None:
        what = "its column class says of which class each request is, so that no class can have a share of them"
        raise BadInput(what, where=trace.where, right="no key share in workload.classes, or no column class")
    drawn = _drawn(known, shares / shares.sum(), stream(seed, "classes"))
    if load.sessions is None or isinstance(load.sessions.turns, TraceTurns):
        return drawn
    turns = turns_of(load.sessions.turns, seed)  # all of one session are of one class
    return chain.from_iterable(repeat(name, many) for name, many in zip(drawn, turns, strict=False))


def _drawn(names: list[str], shares: np.ndarray, source: np.random.Generator) -> Iterator[str]:
    while True:
        for place in source.choice(len(names), BLOCK, p=shares).tolist():
            yield names[place]


def _told(known: list[str], trace: TraceFile | None) -> Iterator[str]:
    assert trace is not None  # checked with the file
    for entry in trace:
        name = entry.said.get("class")
        if name not in known:
            what = "it does not say its class" if name is None else f"there is no class {name!r} in workload.classes"
            right = " or ".join(known) if name is None else suggest(str(name), known)
            raise BadInput(what, where=f"{trace.where}:{entry.line}: class", right=right)
        yield name


def check_classes(load: Workload, trace: TraceFile) -> None:
    """Raise `BadInput` if classes and *trace* do not fit together."""
    if (
        load.classes
        and all(own.share is None for own in load.classes.values())
        and "class" not in trace.overview.terms
    ):
        right = "a column class, or a share for each class in workload.classes"
        raise BadInput("the trace does not say of which class requests are", where=trace.where, right=right)
    if "class" in trace.overview.terms:
        for _ in islice(class_names(load, trace, 0), trace.count):
            pass


def counted(load: Workload, trace: TraceFile | None, seed: int, count: int) -> Counter[str]:
    """How many of the first *count* requests are of each class."""
    return Counter(islice(class_names(load, trace, seed), count))


def stream_name(module: str, class_name: str) -> str:
    """What the draws of *module* are called of a class that has some of its own."""
    return f"{module} of class {class_name}"


@dataclass
class _Class:
    """What is drawn for requests of one class: its own iterators by module."""

    terms: dict[str, Any]
    steps: dict[str, Iterator[int]] = field(default_factory=dict)
    tokens: dict[str, Iterator[tuple[int, int, int]]] = field(default_factory=dict)
    predictors: dict[str, Predictor | None] = field(default_factory=dict)
    begins: dict[str, prefixes.Contents] = field(default_factory=dict)
    shapes: Iterator[Shape] | None = None


def _class_of(name: str, own: RequestClass, contexts: Mapping[str, int], seed: int) -> _Class:
    made = _Class({"priority": own.priority, "tenant": own.tenant, "weight": own.weight, "class_name": name})
    if own.shape is not None:
        made.shapes = shapes_of(f"shapes of class {name}", own.shape, seed=seed)
    for module, steps in own.steps.items():
        made.steps[module] = steps_of(stream_name(module, name), steps, seed=seed, published=False)
    for module, lengths in own.lengths.items():
        drawn = stream_name(module, name)
        made.tokens[module] = triples(module, lengths, contexts[module], seed=seed, of=name)
        made.predictors[module] = predictor(lengths, drawn, seed=seed)
        made.begins[module] = prefixes.contents(lengths, drawn, seed=seed)
    return made


def _passed(experiment: Experiment, enters: Sequence[str]) -> set[str]:
    """The modules that requests which enter at *enters* can come by: of the others they have no work."""
    pipeline = experiment.pipeline
    names = [*pipeline.modules]
    edges = [*pairwise(names)] if pipeline.edges is None else [(a, b) for a, b in pipeline.edges]
    edges += [(branch.source, branch.to) for branch in pipeline.branches]
    found, following = set[str](), [*enters]
    while following:
        module = following.pop()
        if module not in found:
            found.add(module)
            following += [to for from_, to in edges if from_ == module]
    return found


def described(
    experiment: Experiment,
    slo: Seconds,
    due: Iterator[float],
    modules: tuple[str, ...],
    works: Iterator[tuple[int, ...]],
    contexts: Mapping[str, int],
    trace: TraceFile | None,
) -> Iterator[Request]:
    """The requests of *experiment*, *due* at these times, with *works* for its loop *modules*."""
    load, seed = experiment.workload, experiment.seed
    names = tuple(load.lengths)
    draws = [triples(m, load.lengths[m], contexts[m], seed=seed, trace=trace) for m in names]
    tokens = zip(*draws, strict=False) if draws else repeat(())
    usual = {m: predictor(load.lengths[m], m, seed=seed, trace=trace) for m in names}
    usual_begins = {m: prefixes.contents(load.lengths[m], m, seed=seed, trace=trace) for m in names}
    classes = {name: _class_of(name, own, contexts, seed) for name, own in load.classes.items()}
    passed = {name: _passed(experiment, own.enters) for name, own in load.classes.items() if own.enters is not None}
    said = trace.terms() if trace is not None and trace.overview.terms else repeat({})
    shapes: Iterator[Shape | None] = repeat(None)
    if load.shape is not None:
        shapes = shapes_of("shapes", load.shape, seed=seed, trace=trace)
    drawn = zip(due, works, tokens, class_names(load, trace, seed), said, shapes, strict=False)
    for i, (at, steps, sizes, name, says, shape) in enumerate(drawn):
        own = classes.get(name)
        work = dict(zip(modules, steps, strict=True))
        terms: dict[str, Any] = dict(own.terms) if own is not None else {"class_name": name}
        terms |= {key: says[key] for key in ("priority", "tenant", "weight") if key in says}
        if own is not None:
            work |= {module: next(ran) for module, ran in own.steps.items()}
            if name in passed:
                work = {module: steps for module, steps in work.items() if module in passed[name]}
            shape = next(own.shapes) if own.shapes is not None else shape
        if "slo" in says:
            seconds = says["slo"]
        else:
            seconds = slo(work, name, shape)
            if "slo_factor" in says:
                seconds *= says["slo_factor"] / _factor(experiment, name, trace)
        if not names:
            yield Request(i, at, seconds, work, **terms, shape=shape)
            continue
        lengths = dict(zip(names, sizes, strict=True))
        predictors, begins = usual, prefixes.next_of(usual_begins) or {}
        if own is not None and own.tokens:
            lengths |= {module: next(these) for module, these in own.tokens.items()}
            predictors = {**usual, **own.predictors}
            begins = {m: c for m, c in begins.items() if m not in own.begins} | (prefixes.next_of(own.begins) or {})
        terms["prefix"] = begins or None
        yield _token_request(i, at, lengths, predictors, experiment, seconds, work, terms)


def columns_of_classes(
    experiment: Experiment, slo: Seconds, due: Iterator[float], contexts: Mapping[str, int], trace: TraceFile | None
) -> TokenColumns | None:
    """What `described` gives, as numbers, where requests come to one language model and classes are all that they say
    more of themselves; else None."""
    load, seed = experiment.workload, experiment.seed
    if len(load.lengths) != 1 or load.shape is not None or load.steps or (trace is not None and trace.overview.terms):
        return None
    ((module, lengths),) = load.lengths.items()
    every = [lengths, *[own for each in load.classes.values() for own in each.lengths.values()]]
    if any(spec.after is not None or spec.prefix is not None or spec.predict is not None for spec in every):
        return None
    if any(own.steps or own.shape is not None for own in load.classes.values()):
        return None
    terms = {
        name: ClassTerms(slo({}, name, None), own.priority, own.tenant, own.weight)
        for name, own in load.classes.items()
    }
    own_lengths = {
        name: triples(module, own.lengths[module], contexts[module], seed=seed, of=name)
        for name, own in load.classes.items()
        if module in own.lengths
    }
    usual = triples(module, lengths, contexts[module], seed=seed, trace=trace)
    drawn = zip(usual, class_names(load, trace, seed), strict=False)
    rows = ((*(next(own_lengths[name]) if name in own_lengths else sizes), name) for sizes, name in drawn)
    prompts, limits, outputs, names = (map(itemgetter(i), column) for i, column in enumerate(tee(rows, 4)))
    return TokenColumns(module, due, prompts, limits, outputs, names, slo=slo({}, "", None), terms=terms)


def _factor(experiment: Experiment, class_name: str, trace: TraceFile | None) -> float:
    """The factor of the SLO of that class. Raises `BadInput` if it has none: a trace's then are of nothing."""
    spec = experiment.slo_of(class_name)
    if not isinstance(spec, RelativeSLO):
        what = "the trace says factors of SLOs, and the experiment's SLO has none"
        where = f"{trace.where}: slo_factor" if trace is not None else "slo"
        raise BadInput(what, where=where, right="slo: {factor: ...}, or a column slo in seconds")
    return spec.factor


def _token_request(
    number: int,
    at: float,
    lengths: Mapping[str, tuple[int, int, int]],
    predictors: Mapping[str, Predictor | None],
    experiment: Experiment,
    seconds: float,
    work: Mapping[str, int],
    terms: Mapping[str, Any],
) -> TokenRequest:
    declared: dict[str, tuple[int | Follows, int]] = {}
    outputs: dict[str, int] = {}
    predicted: dict[str, int] = {}
    for module, (prompt, limit, output) in lengths.items():
        after = experiment.workload.lengths[module].after
        declared[module] = (prompt if after is None else Follows(prompt, after), limit)
        outputs[module] = output
        predict = predictors[module]
        if predict is not None:
            predicted[module] = predict(output, limit)
    return TokenRequest(number, at, declared, outputs, slo=seconds, work=work, **terms, predicted=predicted or None)
