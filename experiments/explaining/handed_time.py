"""The parts of a visit that begins at an engine that prefills and goes on at one that decodes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .alone import Alone
from .causes import Cause, Part, Ran
from .engine_memory import Memory
from .engine_time import Progress, engine_time
from .visits import Visit


def handed_time(visit: Visit, index: int, ran: Mapping[str, Sequence[Ran]], alone: Alone | None) -> Iterator[Part]:
    """The parts of *visit*, number *index* of its request; *ran* are the steps by worker."""
    told, prompt = visit.stay["handover"], visit.stay["prompt"]
    prefilled, sent, handed, until = told["prefilled"], told["sent"], told["handed"], visit.until
    speed = alone.tokens(visit) if alone is not None else None
    at = Progress(prompt)
    first = replace(visit, worker=told["from"], until=prefilled)
    memory = alone.memory(first.worker) if alone is not None else None
    steps = ran.get(first.worker, ())
    for part in engine_time(first, index, steps, memory=memory, alone=speed, at=at):
        full = part.cause is Cause.HOST and memory is not None and _lacks(memory, prompt, steps, part.start)
        yield replace(part, worker=first.worker, cause=Cause.MEMORY if full else part.cause)
    if not visit.token_of_prefill and at.generated:
        at.generated, at.computed = 0, prompt - 1
    begins = until if sent is None else sent
    if begins > prefilled:
        yield Part(index, Cause.HANDOVER_WAIT, prefilled, begins, tokens=at.tokens)
    if sent is not None:
        yield Part(index, Cause.HANDOVER, sent, until if handed is None else handed, tokens=at.tokens)
    if handed is not None:
        memory = alone.memory(visit.worker) if alone is not None else None
        later = replace(visit, came=handed)
        yield from engine_time(later, index, ran.get(visit.worker, ()), memory=memory, alone=speed, at=at)


def _lacks(memory: Memory, prompt: int, steps: Sequence[Ran], when: float) -> bool:
    """Whether nothing ran *when* an engine that prefills had too few free blocks after the last of its *steps*: those
    who have been prefilled hold theirs until they are handed over."""
    last = bisect_right(steps, when, key=lambda step: step.end) - 1
    return last >= 0 and memory.lacks(prompt, steps[last].free)
