"""An upper bound of the requests that any schedule of an engine can meet, by a linear program over time slots.

As in `servetwin.experiments.bound.relaxation`, steps count for slots as they lie there in time. A slot has Y steps
that decode for requests which are met, none for more than are alive in it. Request i computes q of its prompt and
takes z decode steps there, or gets tokens by computing again what it lost to a preemption. What decodes in a step has
its keys and values in memory. Steps last T >= a Y + b sum(z) + c sum(context z) for each plane below the step times,
and T >= the time of the tokens that they compute. docs/explanation/bound.md proves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from servetwin.core.llm import EngineLimits, TokenDeadlines, TokenTask
from servetwin.core.llm.slo import LimitsSLO
from servetwin.core.slo import latest

from .linear_program import Program, Term
from .relaxation import Relaxed, slot_edges, windows
from .stage_loads import Numbers
from .token_steps import StepBounds

#: Slots of the program at most; requests to language models are long.
TOKEN_SLOTS = 200
#: Of the decode steps of a request, the shares after which it is looked at whether it is on time.
CHECKS = (0.25, 0.5)


@dataclass(frozen=True)
class TokenLoad:
    """The requests of an engine, or of *count* that share them: tokens of *prompt* and *output* of each, and between
    which times all is to be done. *first* is when the first token is due, *due* the last; *checks* has, by share of
    the decode steps, when so many are due, and the steps; *again* the tokens that are computed again at least if it
    was preempted. An engine has *sequences* at once at most, and *blocks* of *block_size* tokens for what it has
    computed. Times are seconds since the run began."""

    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    release: Numbers
    first: Numbers
    due: Numbers
    checks: tuple[tuple[Numbers, NDArray[np.int64]], ...]
    steps: StepBounds
    sequences: int
    count: int
    again: Numbers
    blocks: int
    block_size: int


def token_load(
    tasks: Sequence[TokenTask],
    outputs: Sequence[int],
    slo: TokenDeadlines,
    steps: StepBounds,
    *,
    limits: EngineLimits,
    count: int,
    hop: float,
    later: float,
    stop: float,
) -> TokenLoad:
    """The load of *tasks*, which put out so many tokens, under *slo*. They reach the engine *hop* seconds after their
    arrival, and are stamped up to *later* seconds after that; the run ends at *stop*."""
    output = np.array(outputs, dtype=np.int64)

    def due(tokens: NDArray[np.int64]) -> Numbers:
        times = [slo.deadline(task, int(n)) for task, n in zip(tasks, tokens, strict=True)]
        return np.minimum(latest(np.array(times)) + later, stop)

    last = due(output)
    every = not isinstance(slo, LimitsSLO) and slo.meets == "all"
    kept_limits = slo.limits if isinstance(slo, LimitsSLO) else None
    release = np.array([task.arrival for task in tasks]) + hop
    if kept_limits is not None:
        last = np.minimum(last, latest(release - hop + kept_limits.e2el))
    first = due(np.ones(len(output), dtype=np.int64)) if every or kept_limits is not None else last
    checks = []
    for share in CHECKS if every else ():
        count_of = np.floor(share * (output - 1)).astype(np.int64)
        checks.append((due(count_of + 1), count_of))
    prompt = np.array([task.prompt for task in tasks], dtype=np.int64)
    kept = limits.keep_freed or limits.preemption == "swap"  # then a preempted request may find its KV again
    return TokenLoad(
        prompt,
        output,
        release,
        first,
        last,
        tuple(checks),
        steps,
        limits.max_sequences,
        count,
        np.where(kept, 1.0, prompt + 1.0),
        limits.blocks,
        limits.block_size,
    )


def relax_tokens(load: TokenLoad, slots: int = TOKEN_SLOTS, seconds: float = 120.0) -> Relaxed:
    """The bound for the requests of *load*."""
    bounds, fastest = load.steps, max(load.steps.fastest, 1e-9)
    able = np.flatnonzero(
        (load.release + fastest <= load.first + 1e-9) & (load.release + fastest * load.output <= load.due + 1e-9)
    )
    wanted = np.zeros(len(load.prompt))
    if not len(able):
        return Relaxed(0.0, wanted)
    release, first, due = load.release[able], load.first[able], load.due[able]
    prompt, more = load.prompt[able], load.output[able] - 1
    edges = slot_edges(release, due, slots)
    length = np.diff(edges)
    slot, number = np.arange(len(length)), np.arange(len(able))
    program = Program()
    met = program.variables(np.ones(len(able)), gain=1.0)
    reading, decoding = windows(edges, release, first), windows(edges, release, due)
    read = program.variables(prompt[reading.request].astype(float))
    each = program.variables(np.minimum(decoding.seconds / fastest, more[decoding.request]))
    lost = program.variables(more.astype(float))  # by request, and in the slots
    again = program.variables(load.count * length / fastest * load.sequences)
    every = program.variables(load.count * length / fastest)
    program.equal(np.zeros(len(able)), (reading.request, read, 1.0), (number, met, -prompt))
    program.equal(np.zeros(len(able)), (decoding.request, each, 1.0), (number, lost, 1.0), (number, met, -more))
    program.equal([0.0], (0, lost, 1.0), (0, again, -1.0))
    batch = np.minimum(np.bincount(decoding.slot, minlength=len(length)), load.sequences)
    program.at_most(np.zeros(len(length)), (decoding.slot, each, 1.0), (slot, every, -batch.astype(float)))
    context = prompt[decoding.request].astype(float) + 1.0
    for when, steps in ((w[able], s[able]) for w, s in load.checks):
        inside = edges[decoding.slot] < when[decoding.request]
        early = (decoding.request[inside], each[inside], -1.0)
        program.at_most(np.zeros(len(able)), early, (number, lost, -1.0), (number, met, steps))
        context = np.where(inside, context, np.maximum(context, prompt[decoding.request] + steps[decoding.request]))
    held = np.ceil(context / load.block_size)
    program.at_most(np.zeros(len(length)), (decoding.slot, each, held), (slot, every, -float(load.blocks)))
    room = load.count * length
    computing: list[Term] = [
        (reading.slot, read, bounds.token),
        (slot, again, bounds.token * float(load.again[able].min())),
    ]
    for a, b, c in bounds.planes:
        terms: list[Term] = [(slot, every, a), (decoding.slot, each, b + c * context)]
        if bounds.adds:
            terms += computing
        program.at_most(room, *terms)
    if not bounds.adds:
        computing.append((decoding.slot, each, bounds.token))
    program.at_most(room, *computing)
    solved = program.solve(seconds)
    wanted[able] = solved.at[met]
    return Relaxed(min(solved.value, float(len(able))), wanted)
