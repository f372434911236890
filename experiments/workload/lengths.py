"""Lengths of prompts and outputs, request by request, and whether they fit into an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from servetwin.core import BadInput

from ..spec.llm import Lengths, ListedTokens, TokenDraw, longest_of
from ..spec.published_draws import listed
from .draws import tokens_of

if TYPE_CHECKING:
    from .trace_reader import TraceFile


def largest(draw: TokenDraw) -> int | None:
    """The most that *draw* can give; None if only the trace knows."""
    return max(listed(draw.name)) if isinstance(draw, ListedTokens) else longest_of(draw)


@dataclass
class Cuts:
    """How many requests had their prompts or outputs cut, and by how many tokens in all; and of how many the declared
    limit was lowered, which cuts nothing."""

    prompts: int = 0
    prompt_tokens: int = 0
    outputs: int = 0
    output_tokens: int = 0
    limits: int = 0

    def as_dict(self) -> dict[str, int]:
        """What summaries say of it."""
        said = asdict(self)
        del said["limits"]
        return said


def usual_limit(spec: Lengths, context: int) -> int:
    """The limit that requests declare to an engine of *context* tokens, if their prompts leave that much room."""
    return spec.limit or largest(spec.output) or context


def fits(spec: Lengths, context: int) -> bool:
    """Whether no prompt and no output has to be cut, whatever is drawn, in an engine that takes *context* tokens."""
    longest, most = largest(spec.prompt), largest(spec.output)
    if longest is None or most is None:
        return False
    limit = spec.limit or most
    return most <= limit and longest + limit <= context


def cuts(
    module: str,
    spec: Lengths,
    context: int,
    count: int,
    *,
    seed: int,
    trace: TraceFile | None = None,
    of: str = "",
) -> Cuts:
    """What is cut of the first *count* requests (*of* a class, if it is named). Raises `BadInput` at the first that
    does not fit, where *spec* does not say that it is to be cut."""
    if fits(spec, context):
        return Cuts()
    return _cuts(module, spec.model_dump_json(), context, count, seed, trace, of)


@lru_cache(maxsize=256)
def _cuts(module: str, spec: str, context: int, count: int, seed: int, trace: TraceFile | None, of: str) -> Cuts:
    found = Cuts()
    drawn = triples(module, Lengths.model_validate_json(spec), context, seed=seed, trace=trace, cuts=found, of=of)
    for _ in islice(drawn, count):
        pass
    return found


def triples(
    module: str,
    spec: Lengths,
    context: int,
    *,
    seed: int,
    trace: TraceFile | None = None,
    cuts: Cuts | None = None,
    of: str = "",
) -> Iterator[tuple[int, int, int]]:
    """(prompt, declared limit, true output) of *module*, request by request; *of* a class that has lengths of its
    own, if it is named.

    The engine takes *context* tokens of prompt and output together: a declared limit beyond that is lowered, as vLLM
    does. Raises `BadInput` at a prompt that leaves no room for one token and at an output that is longer than its
    limit or than what the engine takes, unless they are to be cut too; *cuts* then counts them.
    """
    drawn, where = module, f"workload.lengths.{module}"
    if of:
        drawn, where = f"{module} of class {of}", f"workload.classes.{of}.lengths.{module}"
    prompts = tokens_of(spec.prompt, f"prompts of {drawn}", seed=seed, trace=trace)
    outputs = tokens_of(spec.output, f"outputs of {drawn}", seed=seed, trace=trace)
    limit = usual_limit(spec, context)
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=False)):
        if prompt >= context:
            if not spec.truncate:
                raise BadInput(
                    f"request {number} has a prompt of {prompt} tokens, but the engine takes {context} in all",
                    where=f"{where}.prompt",
                    right="shorter prompts, or truncate: true",
                )
            if limit >= context:
                raise _no_room(where, number, prompt, limit, context)
            whole, prompt = prompt, context - limit
            if cuts is not None:
                cuts.prompts += 1
                cuts.prompt_tokens += whole - prompt
        room = min(limit, context - prompt)
        if cuts is not None and room < limit:
            cuts.limits += 1
        if output > room:
            if not spec.truncate:
                raise _too_long(where, number, prompt, output, limit, context)
            if cuts is not None:
                cuts.outputs += 1
                cuts.output_tokens += output - room
            output = room
        yield prompt, room, output


def _no_room(where: str, number: int, prompt: int, limit: int, context: int) -> BadInput:
    what = f"request {number} has a prompt of {prompt} tokens to be cut, but the limit of {limit} leaves none"
    right = f"a limit below {context}: a prompt is cut so that its limit fits"
    return BadInput(f"{what} of the {context} that the engine takes", where=f"{where}.limit", right=right)


def _too_long(where: str, number: int, prompt: int, output: int, limit: int, context: int) -> BadInput:
    if output > limit:
        what = f"request {number} generates {output} tokens, but the limit is {limit}"
        return BadInput(what, where=f"{where}.limit", right=f"limit: {output} or more, or truncate: true")
    room = f"the engine takes {context} in all"
    what = f"request {number} generates {output} tokens after a prompt of {prompt}, but {room}"
    return BadInput(what, where=f"{where}.output", right="shorter prompts or outputs, or truncate: true")
