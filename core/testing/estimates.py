"""What the views of a test say that batches take: a number, a table, or a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import BadInput
from ..llm.limits import EngineLimits
from ..llm.policy import TokenView
from ..llm.slo import CumulativeSLO, TokenSLO
from ..pipeline import Stage

#: Seconds of a batch: the same for each size, a list by size from 1 on, or a function of the size.
Seconds = float | Sequence[float] | Callable[[int], float]
#: Seconds of a prefill: per token, or a function of (tokens, sum of the squared lengths or None).
Prefill = float | Callable[[int, float | None], float]
#: Seconds of a decode step: always the same, or a function of (requests, sum of their computed tokens).
Decode = float | Callable[[int, int], float]


def by_size(seconds: Seconds) -> Callable[[int], float]:
    """*seconds* as a function of the size of a batch; the last of a list goes on for larger batches."""
    if callable(seconds):
        return seconds
    if isinstance(seconds, Sequence):
        table = list(seconds)
        if not table:
            raise BadInput("no seconds are given", where="seconds", right="a number for each batch size, from 1 on")
        return lambda batch: table[min(batch, len(table)) - 1]
    return lambda _: seconds


def token_view(
    stage: Stage,
    *,
    prefill: Prefill = 0.001,
    decode: Decode = 0.05,
    slo: TokenSLO | tuple[float, float] | None = None,
    blocks: int = 10_000,
    **limits: Any,
) -> TokenView:
    """The view of an engine. *slo* is (P, D), multiples of *prefill* and *decode*, or any `TokenSLO`, or None;
    *limits* are further fields of `EngineLimits`. Raises `BadInput` if one of them is none."""
    by_tokens = prefill if callable(prefill) else _per_token(prefill)
    by_batch = decode if callable(decode) else _per_step(decode)
    if isinstance(slo, tuple):
        slo = CumulativeSLO(*slo, by_batch(1, 0), 0.0, lambda n: by_tokens(n, None))
    unknown = [name for name in limits if name not in EngineLimits.__dataclass_fields__]
    if unknown:
        right = ", ".join(name for name in EngineLimits.__dataclass_fields__ if name != "blocks")
        raise BadInput(f"an engine has no limit {unknown[0]!r}", right=right)
    return TokenView(
        stage,
        EngineLimits(blocks, **limits),
        estimate_prefill=by_tokens,
        estimate_decode=by_batch,
        slo=slo,
    )


def _per_token(seconds: float) -> Callable[[int, float | None], float]:
    return lambda tokens, _: seconds * tokens


def _per_step(seconds: float) -> Callable[[int, int], float]:
    return lambda *_: seconds
