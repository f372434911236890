"""The requests of an experiment, made one at a time as they are sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import count, islice, repeat, tee
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput, Request
from servetwin.core.llm import Follows, TokenRequest
from servetwin.sim.llm.request_columns import TokenColumns

from ..spec.experiment import Bursty, Experiment, Trace, TraceSteps, Workload
from ..spec.keys.schedule import ByClass, Schedule
from ..spec.llm import SharedPrefix, TraceTokens
from ..spec.published_draws import PUBLISHED
from ..spec.schedule_validation import ends, follows
from ..spec.sessions import ClosedLoop, TraceTurns
from ..spec.shapes import TraceShape
from . import predictions, prefixes
from .described import check_classes, columns_of_classes, counted, described
from .draws import arrival_times, arrivals_by_class, last_due, steps_of, tokens_of
from .lengths import Cuts, cuts, triples, usual_limit
from .schedules import Load
from .seed_effect import kept_draws

if TYPE_CHECKING:
    from servetwin.profiles import Profile

    from .trace_reader import TraceFile

#: Times must be known to this share of the shortest step.
RESOLUTION = 1e-6


def read_trace(experiment: Experiment) -> TraceFile | None:
    """The trace file that *experiment* takes its requests from, if it does: the part of it that is replayed."""
    load = experiment.workload
    recorded = load.recorded
    if recorded is None:
        return None
    from .trace_reader import read  # most runs read none

    modules = [m for m, steps in load.steps.items() if isinstance(steps, TraceSteps)]
    trace = read(
        Path(recorded.file),
        modules,
        form=recorded.format,
        size=recorded.size,
        start=recorded.start,
        end=recorded.end,
        windows=recorded.windows,
        seed=experiment.seed,
        requests=load.requests if not follows(load) else None,
        shaped=(load.shape.size or "") if isinstance(load.shape, TraceShape) else None,
    )
    if trace.overview.follows and (load.sessions is None or not isinstance(load.sessions.turns, TraceTurns)):
        what = f"{trace.overview.follows} of its requests say how long after an answer they come (delay), not when"
        raise BadInput(what, where=trace.where, right="workload.sessions: {turns: {draw: trace}}")
    if follows(load):
        return trace
    for module in modules:
        trace.column_of(module)
    check_classes(load, trace)
    prefixes.check(load, trace)
    if isinstance(recorded, Trace):
        trace.scale(recorded.rate)
        if recorded.rate is None:
            trace.probably_milliseconds()
    return trace


def count_of(experiment: Experiment, trace: TraceFile | None) -> int:
    """How many requests *experiment* sends."""
    wanted = experiment.workload.requests
    if wanted is not None:
        return wanted
    if ends(experiment.workload):
        return _until_the_end(experiment.workload.model_dump_json(), experiment.seed, trace)
    assert trace is not None
    return trace.count


@lru_cache(maxsize=64)
def _until_the_end(said: str, seed: int, trace: TraceFile | None) -> int:
    """How many requests of the workload *said*, which ends at a time, come."""
    load = Workload.model_validate_json(said)
    if isinstance(load.arrivals, ByClass):
        return sum(1 for _ in arrivals_by_class(load, seed))
    return sum(1 for _ in arrival_times(load.arrivals, seed=seed, published=False, trace=trace))


def about(experiment: Experiment, trace: TraceFile | None, contexts: Mapping[str, int]) -> dict[str, Any]:
    """What is to be said of the requests beside their number: which part of a trace they are ("trace"), and how many
    prompts and outputs are cut ("cut", by module, where that is allowed), and what a seed other than 0 does not
    change of them ("published"), how wrong predictions are ("predictions"), and that nobody heeds what prompts begin
    with, or how many are shorter than that ("prefix", a line). Nothing for requests that are drawn whole.

    *contexts* gives the tokens that LLM modules take per request. Raises `BadInput` at what cannot be cut to fit.
    """
    said: dict[str, Any] = {}
    lengths = experiment.workload.lengths
    if trace is not None:
        said["trace"] = dict(trace.about())
        if any(isinstance(spec.prompt, TraceTokens) for spec in lengths.values()):
            said["trace"]["empty_prompts"] = trace.empty_prompts()
        if unused := _unused(experiment, trace):
            said["trace"]["not_used"] = unused
        recorded = experiment.workload.recorded
        if isinstance(recorded, Trace) and recorded.rate is None and (doubt := trace.probably_milliseconds()):
            said["trace"]["doubt"] = doubt
    if experiment.seed and (kept := kept_draws(experiment)) is not None:
        said["published"] = {"seed": experiment.seed, "kept": kept}
    cut = _cut(experiment, trace, contexts, [module for module, spec in lengths.items() if spec.truncate])
    of_classes = _cut_of_classes(experiment, trace, contexts)
    cut |= {
        f"{name}.{module}": of_classes[f"{name}.{module}"]
        for name, own in experiment.workload.classes.items()
        for module, spec in own.lengths.items()
        if spec.truncate
    }
    if predicted := _predicted(experiment):
        said["predictions"] = predicted
    if (told := prefixes.not_cached(experiment) or _shorter(experiment, trace, contexts)) is not None:
        said["prefix"] = told
    if cut:
        said["cut"] = {module: found.as_dict() for module, found in cut.items()}
    return said


def _predicted(experiment: Experiment) -> dict[str, str]:
    """What is to be said of predicted lengths, by module, or by ``CLASS.MODULE`` of a class that has its own."""
    load = experiment.workload
    every = {module: predictions.about(spec) for module, spec in load.lengths.items()}
    for name, own in load.classes.items():
        every |= {f"{name}.{module}": predictions.about(spec) for module, spec in own.lengths.items()}
    return {name: told for name, told in every.items() if told is not None}


def _shorter(experiment: Experiment, trace: TraceFile | None, contexts: Mapping[str, int]) -> str | None:
    """How many prompts are shorter than what their group shares, by module, or by ``CLASS.MODULE`` of a class that
    has its own; None if none is."""
    load, seed, total = experiment.workload, experiment.seed, count_of(experiment, trace)
    if load.sessions is not None:  # what is shared comes before the first prompt, and is no part of it
        return None
    counts = counted(load, trace, seed, total) if any(own.lengths for own in load.classes.values()) else {}
    every = [(m, m, "", spec, total, trace) for m, spec in load.lengths.items()]
    for name, own in load.classes.items():
        every += [(f"{name}.{m}", m, name, spec, counts[name], None) for m, spec in own.lengths.items()]
    found = []
    for label, module, of, spec, many, file in every:
        if isinstance(spec.prefix, SharedPrefix) and spec.after is None:
            drawn = triples(module, spec, contexts[module], seed=seed, trace=file, of=of)
            short = sum(prompt < spec.prefix.tokens for prompt, _, _ in islice(drawn, many))
            if short:
                tokens = spec.prefix.tokens
                found.append(
                    f"{label}: {short} of {many} prompts are but the beginning of the {tokens} tokens shared"
                )
    return "; ".join(found) or None


def _cut(
    experiment: Experiment,
    trace: TraceFile | None,
    contexts: Mapping[str, int],
    modules: Iterable[str],
) -> dict[str, Cuts]:
    """What of the requests is cut at each of these *modules*. Raises `BadInput` at what does not fit."""
    lengths, count, seed = experiment.workload.lengths, count_of(experiment, trace), experiment.seed
    return {m: cuts(m, lengths[m], contexts[m], count, seed=seed, trace=trace) for m in modules}


def _cut_of_classes(experiment: Experiment, trace: TraceFile | None, contexts: Mapping[str, int]) -> dict[str, Cuts]:
    """The same of classes with lengths of their own, by ``CLASS.MODULE``."""
    load, seed, found = experiment.workload, experiment.seed, {}
    if any(own.lengths for own in load.classes.values()):
        counts = counted(load, trace, seed, count_of(experiment, trace))
        for name, own in load.classes.items():
            for module, spec in own.lengths.items():
                found[f"{name}.{module}"] = cuts(module, spec, contexts[module], counts[name], seed=seed, of=name)
    return found


def check_lengths(
    experiment: Experiment, trace: TraceFile | None, contexts: Mapping[str, int]
) -> dict[str, int | None]:
    """Raise `BadInput` at prompts and outputs that do not fit, before anything is sent. Gives the limit that all
    requests declare at each module; None where some are cut, or have their limit lowered."""
    lengths = experiment.workload.lengths
    found = _cut(experiment, trace, contexts, lengths)
    _cut_of_classes(experiment, trace, contexts)
    return {m: usual_limit(spec, contexts[m]) if found[m] == Cuts() else None for m, spec in lengths.items()}


def _unused(experiment: Experiment, trace: TraceFile) -> dict[str, str]:
    """The columns that *trace* has and nothing is taken from, and the key that would take each ("" where none would):
    steps and lengths may be drawn though the trace has some, and columns may be of names that nobody reads."""
    load = experiment.workload
    taken = {trace.column_of(m) for m, steps in load.steps.items() if isinstance(steps, TraceSteps)}
    others: dict[str, str] = {}
    for module in (m for m, steps in load.steps.items() if not isinstance(steps, TraceSteps)):
        others.setdefault(module, f"workload.steps.{module}")
        others.setdefault("steps", f"workload.steps.{module}")
    for module, spec in load.lengths.items():
        for column, side, draw in (("input_tokens", "prompt", spec.prompt), ("output_tokens", "output", spec.output)):
            if isinstance(draw, TraceTokens):
                taken.add(column)
            else:
                others.setdefault(column, f"workload.lengths.{module}.{side}")
    held = [*trace.columns, *trace.named(tuple(load.steps)), *trace.unknown()]
    return {column: others.get(column, "") for column in dict.fromkeys(held) if column not in taken}


def other_images(trace: TraceFile | None, profiles: Mapping[str, Profile]) -> str | None:
    """What is to be said if the images of *trace* are of a size that none of the *profiles* is of."""
    size = trace.overview.size if trace is not None else None
    if trace is not None and trace.overview.shapes:
        return None
    images = {profile.data.image for profile in profiles.values()}
    measured = sorted(f"{image[0]}x{image[1]}" for image in images if image is not None)
    if size is None or not measured or size in measured:
        return None
    return f"its images are of {size}, and steps take what those of {' and '.join(measured)} take (the profile's)"


def check_resolution(experiment: Experiment, trace: TraceFile | None, profiles: Mapping[str, Profile]) -> None:
    """Raise `BadInput` if requests are sent so late that times there are not known to a millionth of the shortest
    step that *profiles* know: a floating-point number has 53 binary digits."""
    step = _shortest_step(experiment, profiles)
    load, system = experiment.workload, experiment.system
    if isinstance(load.arrivals, ClosedLoop):
        return  # nobody knows how late that will be
    count, rate = count_of(experiment, trace), load.arrivals.rate
    if isinstance(load.arrivals, Schedule | ByClass):
        last = last_due(load, count, trace)
    elif isinstance(load.arrivals, Trace):
        assert trace is not None
        last = trace.span * trace.scale(rate)
    else:
        assert rate is not None
        last = count / rate
    last = last * (1.0 + system.client_stretch) + count * system.client_delay
    if not math.isfinite(last) or math.ulp(last) > RESOLUTION * step:
        known = f"to {math.ulp(last):.1g} s" if math.isfinite(last) else "not at all"
        what = (
            f"the last request is sent at {last:.3g} s, where times are known {known}, and a step takes {step:.2g} s"
        )
        key = "rate" if rate is not None else "file"
        raise BadInput(what, where=f"workload.arrivals.{key}", right="a higher rate, or fewer requests")


def half_sent(experiment: Experiment) -> float:
    """Seconds after which about half of the requests are sent, so that more go by before the last is; 0 where that is
    left to chance, or to how fast requests are served."""
    load, trace = experiment.workload, read_trace(experiment)
    if load.sessions is not None or isinstance(load.arrivals, ClosedLoop | ByClass | Bursty):
        return 0.0
    if isinstance(load.arrivals, Trace):
        assert trace is not None
        return 0.5 * trace.span * trace.scale(load.arrivals.rate)
    count = count_of(experiment, trace)
    cv = {"constant": 0.0, "poisson": 1.0}.get(load.arrivals.process, getattr(load.arrivals, "cv", 0.0))
    if cv > 0.1 * math.sqrt(count):
        return 0.0
    if isinstance(load.arrivals, Schedule):
        at = Load(load.arrivals, trace).when(0.5 * count)
        return at if at < math.inf else 0.0
    assert load.arrivals.rate is not None
    return 0.5 * count / load.arrivals.rate


def _shortest_step(experiment: Experiment, profiles: Mapping[str, Profile]) -> float:
    """The least seconds that a module of the experiment takes for one request or one token; 1 if nothing says it."""
    seconds = []
    for worker in experiment.deployment.workers:
        profile = profiles.get(worker.device or "")
        if profile is None:
            continue
        if worker.modules[0] in experiment.pipeline.llms:
            d0, d1 = profile.tokens("measured", "corrected", "scheduler", hold=True).solo_decode()
            seconds.append(d0 + d1)
        else:
            solo = profile.solo("measured", "scheduler")
            seconds += [solo[m] for m in worker.modules if m in solo]
    return min((s for s in seconds if s > 0.0), default=1.0)


def requests(
    experiment: Experiment,
    slo: Callable[..., float],
    trace: TraceFile | None = None,
    *,
    contexts: Mapping[str, int] | None = None,
    due: Iterator[float] | None = None,
) -> Iterator[Request]:
    """The requests of *experiment* in order of arrival; *slo* gives the seconds that this work may take, for requests
    of a class too (`servetwin.core.slo.SLO`), *contexts* the tokens that LLM modules take per request (see
    `servetwin.experiments.assembly.llm_workers`). With *due* they come at these times instead."""
    load, system = experiment.workload, experiment.system
    published, seed = load.draws != "seeded", experiment.seed
    limits = check_lengths(experiment, trace, contexts or {}) if load.lengths else {}
    given = due is not None
    if due is None and isinstance(load.arrivals, ByClass):
        due = (at for at, _ in arrivals_by_class(load, seed))
    elif due is None:
        seeds = PUBLISHED.get(load.draws)
        due = arrival_times(load.arrivals, seed=seed, published=published, trace=trace, seeds=seeds)
    if trace is not None and follows(load):
        trace = None
    modules = tuple(load.steps)
    draws = [steps_of(m, load.steps[m], seed=seed, published=published, trace=trace) for m in modules]
    works = zip(*draws, strict=False) if draws else repeat(())
    delay, stretch = system.client_delay, 1.0 + system.client_stretch
    says_more = load.says_more or (trace is not None and bool(trace.overview.terms))
    if not load.lengths and not says_more:
        return _plain_requests(
            islice(zip(count(), due, works, strict=False), load.requests), slo, modules, stretch, delay
        )
    if not given and (delay or stretch != 1.0):
        due = (at * stretch + i * delay for i, at in enumerate(due))
    due = islice(due, load.requests)
    if says_more and not modules and not given:
        columns = columns_of_classes(experiment, slo, due, contexts or {}, trace)
        if columns is not None:
            return columns
    if says_more:
        return described(experiment, slo, due, modules, works, contexts or {}, trace)
    if len(load.lengths) == 1 and not modules and not given:
        ((module, lengths),) = load.lengths.items()
        if lengths.after is None and lengths.prefix is None:
            tokens: list[Iterator[int]]
            if (limit := limits[module]) is None:
                cut = triples(module, lengths, (contexts or {})[module], seed=seed, trace=trace)
                tokens = [map(itemgetter(i), column) for i, column in enumerate(tee(cut, 3))]
            else:
                prompts = tokens_of(lengths.prompt, f"prompts of {module}", seed=seed, trace=trace)
                outputs = tokens_of(lengths.output, f"outputs of {module}", seed=seed, trace=trace)
                tokens = [prompts, repeat(limit), outputs]
            each_prompt, each_limit, each_output = tokens
            return TokenColumns(module, due, each_prompt, each_limit, each_output, slo=slo({}))
    return _token_requests(experiment, slo, due, modules, works, contexts or {}, trace)


def _plain_requests(
    drawn: Iterator[tuple[int, float, tuple[int, ...]]],
    slo: Callable[[Mapping[str, int]], float],
    modules: tuple[str, ...],
    stretch: float,
    delay: float,
) -> Iterator[Request]:
    """Requests of so many steps by module, that are *drawn* with number and time."""
    known: dict[tuple[int, ...], tuple[dict[str, int], float]] = {}  # requests with equal work share it
    for i, at, steps in drawn:
        entry = known.get(steps)
        if entry is None:
            work = dict(zip(modules, steps, strict=True))
            entry = (work, slo(work))
            if len(known) < 100_000:
                known[steps] = entry
        yield Request(i, at * stretch + i * delay, entry[1], entry[0])


def _token_requests(
    experiment: Experiment,
    slo: Callable[[Mapping[str, int]], float],
    due: Iterator[float],
    modules: tuple[str, ...],
    works: Iterator[tuple[int, ...]],
    contexts: Mapping[str, int],
    trace: TraceFile | None,
) -> Iterator[Request]:
    """Requests with prompts and outputs, *due* at these times."""
    lengths = experiment.workload.lengths
    names = tuple(lengths)
    draws = [triples(m, lengths[m], contexts[m], seed=experiment.seed, trace=trace) for m in names]
    begins = {m: prefixes.contents(lengths[m], m, seed=experiment.seed, trace=trace) for m in names}
    for i, (at, steps, tokens) in enumerate(zip(due, works, zip(*draws, strict=False), strict=False)):
        work = dict(zip(modules, steps, strict=True))
        declared: dict[str, tuple[int | Follows, int]] = {}
        for m, (prompt, limit, _) in zip(names, tokens, strict=True):
            after = lengths[m].after
            declared[m] = (prompt if after is None else Follows(prompt, after), limit)
        outputs = {m: output for m, (_, _, output) in zip(names, tokens, strict=True)}
        yield TokenRequest(i, at, declared, outputs, slo=slo(work), work=work, prefix=prefixes.next_of(begins))
