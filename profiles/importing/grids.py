"""Times of steps at places, as the tables of a profile: prefill, chunks over context, decode, and both at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..llm.schema import TokenModel
from ..llm.step_table import TokenTable
from ..tables.loading import check
from .imported import Places, Steps


def tables(steps: Steps, at: Places, *, statistic: str, file: str) -> dict[str, Any]:
    """What *steps* take, asked for *at* places, as the content of a latency model of a profile. *statistic* says of
    what the times are, *file* where they come from."""
    source = {"file": file}
    rows = [[None if n < m else _rounded(steps.whole(n, m)) for n in at.tokens] for m in at.prompts]
    prefill: dict[str, Any] = {
        "tokens": list(at.tokens),
        "prompts": list(at.prompts),
        "seconds": rows,
        "between": "line",
        "statistic": statistic,
        "source": source,
    }
    decode = {
        "batch": list(at.batch),
        "per_sequence": list(at.each),
        "seconds": [[_rounded(steps.decode(n, each)) for each in at.each] for n in at.batch],
        "statistic": statistic,
        "source": source,
    }
    model: dict[str, Any] = {"prefill": prefill, "surface": decode}
    if at.chunks:
        plain = _table(model)
        over = [steps.chunk(n, c) - plain.prefill(n) if c else 0.0 for n in at.chunks for c in at.context]
        prefill["over_context"] = {
            "tokens": list(at.chunks),
            "context": list(at.context),
            "seconds": [_rounded(x) for x in over],
            "statistic": statistic,
        }
    if at.mixed_chunks:
        model["mixed"] = {"rule": "one_pass", "beside": _beside(steps, at, _table(model), statistic)}
    return model


def _beside(steps: Steps, at: Places, table: TokenTable, statistic: str) -> dict[str, Any]:
    """What decodes add to the pass: what mixed steps take over what `TokenTable.prefill` says of as many tokens."""
    seconds = []
    for n in at.mixed_chunks:
        for context in at.mixed_context:
            for batch in at.mixed_batch:
                alone = table.prefill(n + batch, float(n * n + batch), float(n * context))
                seconds += [_rounded(steps.mixed(n, context, batch, each) - alone) for each in at.mixed_each]
    return {
        "tokens": list(at.mixed_chunks),
        "context": list(at.mixed_context),
        "batch": list(at.mixed_batch),
        "per_sequence": list(at.mixed_each),
        "seconds": seconds,
        "statistic": statistic,
    }


def _table(model: dict[str, Any]) -> TokenTable:
    return TokenTable(check(plain(model), TokenModel, where="times"), hold=True)


def padded(graphs: Sequence[int], most: int, step: Callable[[int], int]) -> list[int]:
    """Numbers of tokens at which the time of a step is asked for, so that lines between them are a staircase up to
    the largest of *graphs*, whose steps vLLM pads, and follow the times beyond: after n comes n + *step* (n)."""
    found: list[int] = []
    for low, high in zip((0, *graphs), graphs, strict=False):
        found += [n for n in dict.fromkeys((low + 1, high)) if n <= most]
    at = found[-1] + 1 if found else 1
    while at < most:
        found.append(at)
        at += step(at)
    return [*found, most] if not found or found[-1] < most else found


def up_to(values: Sequence[int], most: int) -> list[int]:
    """Those of *values* that are below *most*, and it."""
    return [*(v for v in values if v < most), most]


def plain(value: Any) -> Any:
    """*value* as a schema takes it: tuples where lists stand."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(plain(v) for v in value)
    return value


def _rounded(seconds: float) -> float:
    """To six digits, which is more than anybody measures."""
    return float(f"{seconds:.6g}")
