"""Sessions, and the requests of a closed loop, made as they begin (``workload.sessions``, and the arrival process
``closed``).

Turns are the requests that the workload would give otherwise, in their order: so many on end are a session. How many,
and how long users think and tools take, has random streams of its own: it changes neither lengths nor steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
from servetwin.core import BadInput, Request
from servetwin.core.llm import TokenRequest
from servetwin.core.random_streams import stream
from servetwin.core.serving.sessions import Session

from ..spec.experiment import Experiment, Trace, Workload
from ..spec.llm import SharedPrefix
from ..spec.sessions import ClosedLoop, ConstantTurns, GeometricTurns, TraceTurns, UniformTurns
from .draws import BLOCK, arrival_times, seconds_of, turns_of
from .lengths import largest
from .requests import count_of, requests

if TYPE_CHECKING:
    from .trace_reader import TraceFile


@dataclass
class Ended:
    """How many sessions end before their time because the next prompt would not fit, and how many turns of theirs are
    never sent."""

    sessions: int = 0
    turns: int = 0

    def as_dict(self) -> dict[str, int]:
        """What summaries say of it."""
        return asdict(self)


def sessions(
    experiment: Experiment,
    slo: Callable[..., float],
    trace: TraceFile | None = None,
    *,
    contexts: Mapping[str, int] | None = None,
    ended: Ended | None = None,
) -> Iterator[Session]:
    """The sessions of *experiment*, each with the turns that fit into its engines; otherwise as
    `servetwin.experiments.workload.requests.requests`. *ended* counts those that end before their time. Raises
    `BadInput` at a prompt that is too long, unless lengths are to be cut."""
    load, seed = experiment.workload, experiment.seed
    plans = requests(experiment, slo, trace, contexts=contexts, due=repeat(0.0, count_of(experiment, trace)))
    closed = load.arrivals if isinstance(load.arrivals, ClosedLoop) else None
    starts: Iterator[float | None] = repeat(None)
    if closed is None and not isinstance(load.arrivals, Trace):
        starts = arrival_times(load.arrivals, seed=seed, published=False, trace=trace)
    pauses = seconds_of(closed.think if closed is not None else None, "think between sessions", seed)
    if load.sessions is None:
        for pause, plan in zip(pauses, plans, strict=False):
            yield Session(None, [(pause, plan)])
        return
    if isinstance(load.sessions.turns, TraceTurns):
        assert trace is not None
        yield from _of_trace(experiment, trace, plans, pauses, starts, contexts or {}, ended)
        return
    waits = _waits(experiment)
    lengths = turns_of(load.sessions.turns, seed)
    for number, (many, pause, due) in enumerate(zip(lengths, pauses, starts, strict=False)):
        plans_here = [plan for _, plan in zip(range(many), plans, strict=False)]
        if not plans_here:
            return
        turns = [(next(waits) if place else pause, plan) for place, plan in enumerate(plans_here)]
        yield Session(number, _fitting(experiment, turns, contexts or {}, ended), due)


def _of_trace(
    experiment: Experiment,
    trace: TraceFile,
    plans: Iterator[Request],
    pauses: Iterator[float],
    starts: Iterator[float | None],
    contexts: Mapping[str, int],
    ended: Ended | None,
) -> Iterator[Session]:
    """Those of *trace*, which is held in memory for it, in the order in which their first requests stand there."""
    arrivals = experiment.workload.arrivals
    scale = trace.scale(arrivals.rate) if isinstance(arrivals, Trace) else 1.0
    talks: dict[str, list[tuple[float, Request]]] = {}
    due: dict[str, float] = {}
    for entry, plan in zip(trace.turns(), plans, strict=False):
        name = str(entry.turn.session)
        if name not in talks:
            talks[name], due[name] = [], (entry.arrival - trace.first) * scale
        talks[name].append((entry.turn.delay or 0.0, plan))
    for number, (name, turns) in enumerate(talks.items()):
        turns[0] = next(pauses), turns[0][1]
        start = due[name] if isinstance(arrivals, Trace) else next(starts)
        yield Session(number, _fitting(experiment, turns, contexts, ended), start)


def _waits(experiment: Experiment) -> Iterator[float]:
    """What lies between two turns, in seconds."""
    spec, seed = experiment.workload.sessions, experiment.seed
    assert spec is not None
    think = seconds_of(spec.think, "think", seed)
    if spec.tools is None:
        return think
    calls = seconds_of(spec.tools.seconds, "tools between turns", seed)
    return _either(think, calls, spec.tools.share, stream(seed, "turns after tools"))


def _either(
    think: Iterator[float], calls: Iterator[float], share: float, source: np.random.Generator
) -> Iterator[float]:
    while True:
        for chance in source.random(BLOCK).tolist():
            yield next(calls) if chance < share else next(think)


def _fitting(
    experiment: Experiment, turns: list[tuple[float, Request]], contexts: Mapping[str, int], ended: Ended | None
) -> list[tuple[float, Request]]:
    """*turns*, with what others have before the first prompt, and limits that leave no more room than there is. Where
    lengths may be cut, those that do not fit and all after them are left out; else they raise `BadInput`."""
    lengths = experiment.workload.lengths
    if not lengths:
        return turns
    said = dict.fromkeys(lengths, 0)
    made: list[tuple[float, Request]] = []
    for place, (wait, plan) in enumerate(turns):
        assert isinstance(plan, TokenRequest)
        tokens: dict[str, tuple[int, int]] = {}
        given: dict[str, tuple[int, int]] = dict(plan.tokens)  # type: ignore[arg-type]
        outputs: Mapping[str, int] = plan.outputs or {}  # type: ignore[assignment]
        for module, (new, limit) in given.items():
            content = plan.prefix.get(module) if plan.prefix is not None and not place else None
            new += len(content.ids) * content.size if content is not None else 0
            prompt = said[module] + new
            room = contexts[module] - prompt
            if room < min(outputs[module], limit):
                if place and lengths[module].truncate:
                    if ended is not None:
                        ended.sessions += 1
                        ended.turns += len(turns) - place
                    return made
                raise _too_long(module, plan.id, place, prompt, min(outputs[module], limit), contexts[module])
            tokens[module] = new, min(limit, room)
            said[module] = prompt + min(outputs[module], limit, room)
        made.append((wait, _with_tokens(plan, tokens)))
    return made


def _with_tokens(plan: TokenRequest, tokens: Mapping[str, tuple[int, int]]) -> TokenRequest:
    if tokens == plan.tokens:
        return plan
    terms = plan.terms
    return TokenRequest(plan.id, plan.arrival, tokens, plan.outputs, slo=plan.slo, work=plan.work, **terms)


def _too_long(module: str, number: int, place: int, prompt: int, output: int, context: int) -> BadInput:
    what = f"request {number}, turn {place} of its session, has a prompt of {prompt} tokens and generates {output}"
    right = "fewer or shorter turns, or truncate: true, by which sessions end before what does not fit"
    if not place:
        right = "shorter prompts or outputs, or a shorter prefix"
    return BadInput(f"{what}, but the engine takes {context} in all", where=f"workload.lengths.{module}", right=right)


def about(
    experiment: Experiment, slo: Callable[..., float], trace: TraceFile | None, contexts: Mapping[str, int]
) -> dict[str, int]:
    """How many sessions end before their time, and how many turns are never sent for that; nothing if none do. Raises
    `BadInput` at a prompt that is too long, unless lengths are to be cut."""
    load = experiment.workload
    if load.sessions is None or all(_fit(load, module, contexts[module]) for module in load.lengths):
        return {}
    ended = Ended()
    for _ in sessions(experiment, slo, trace, contexts=contexts, ended=ended):
        pass
    return ended.as_dict() if ended.sessions else {}


def _fit(load: Workload, module: str, context: int) -> bool:
    """Whether all turns of any session fit into *context* tokens, whatever is drawn."""
    assert load.sessions is not None
    turns, spec = load.sessions.turns, load.lengths[module]
    if isinstance(turns, GeometricTurns | TraceTurns) or any(module in own.lengths for own in load.classes.values()):
        return False
    if isinstance(turns, ConstantTurns):
        most = turns.turns
    else:
        most = turns.high if isinstance(turns, UniformTurns) else max(turns.values)
    prompt, output = largest(spec.prompt), largest(spec.output)
    if prompt is None or output is None:
        return False
    begins = spec.prefix.tokens if isinstance(spec.prefix, SharedPrefix) else 0
    return begins + most * (prompt + (spec.limit or output)) <= context
