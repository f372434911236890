"""Options of an engine that change what its memory holds and its steps take: what an experiment states of them, or a
profile, as engines and their timing take it.

Each is off unless the experiment asks for it, and a number that neither says is refused
(docs/guides/engine-options.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from servetwin.core import BadInput
from servetwin.profiles.llm.kv_fp8 import Fp8Table
from servetwin.profiles.tables.costs import FP8_KV

from ..spec.experiment import Experiment, WorkerSpec
from ..spec.llm import EngineSpec

if TYPE_CHECKING:
    from servetwin.profiles import Profile, TokenTable

ENGINE = "deployment.workers: engine"
#: Where a token's keys and values take two bytes a number, as the blocks of a profile are counted.
TWO_BYTES = ("bf16", "fp16")


def refuse(experiment: Experiment, who: str, right: str) -> None:
    """Raise `BadInput` if an engine has an option here, of which *who* knows nothing; *right* is what does."""
    for spec in experiment.deployment.workers:
        for key in options_of(spec):
            raise BadInput(f"{who} knows nothing of {key}", where=f"{ENGINE}.{key}", right=right)


def options_of(spec: WorkerSpec) -> list[str]:
    """The keys of the options here that *spec* asks for."""
    engine = spec.engine
    return [] if engine is None else engine.options


def stands_on(experiment: Experiment) -> list[str]:
    """A line for each option of an engine that the experiment states numbers for: what these are, and whence."""
    said: dict[str, None] = {}
    for spec in experiment.deployment.workers:
        engine = spec.engine
        if engine is not None and engine.fp8_attention is not None:
            own = engine.fp8_attention
            said[
                f"KV in fp8: what attention to tokens before takes is times {own.decode:g} in decoding and "
                f"{own.prefill:g} for prompts: {own.source}"
            ] = None
    return [*said]


def table_of(spec: WorkerSpec, profile: Profile, table: TokenTable) -> TokenTable:
    """*table*, of *profile*, as it is for the engine of *spec*. Raises `BadInput` if an option changes it and nothing
    says how."""
    engine = spec.engine or EngineSpec()
    if engine.kv_cache_dtype == "auto":
        return table
    decode, prefill = _fp8(engine, profile)
    return Fp8Table(table, decode=decode, prefill=prefill)


def tables(experiment: Experiment, profiles: Mapping[str, Profile]) -> dict[str, Callable[[TokenTable], TokenTable]]:
    """What makes of the table of a profile that of an engine, by the name of each worker whose options change it."""
    return {
        spec.name or spec.modules[0]: partial(table_of, spec, profiles[spec.device])
        for spec in experiment.deployment.workers
        if spec.device is not None and spec.engine is not None and spec.engine.kv_cache_dtype != "auto"
    }


def _fp8(engine: EngineSpec, profile: Profile) -> tuple[float, float]:
    """What attention takes with KV in 8 bits, for sequences that decode and for prompts, over what *profile* says."""
    precision = profile.data.precision
    if precision not in TWO_BYTES:
        what = f"{profile.name} is of a model in {precision}, and KV in fp8 is known as half of two bytes a number"
        raise BadInput(what, where=f"{ENGINE}.kv_cache_dtype", right="auto, or a profile in bf16 or fp16")
    said = engine.fp8_attention
    if said is not None:
        return said.decode, said.prefill
    for kind in ("decode", "prefill"):
        if FP8_KV(kind) not in profile.costs:
            what = f"nothing says what attention takes with KV in fp8: {profile.name} has no cost {FP8_KV(kind)}"
            right = "engine: {fp8_attention: {decode: 0.6, prefill: 1.0, source: ...}}; or a profile with that cost"
            raise BadInput(what, where=f"{ENGINE}.kv_cache_dtype", right=right)
    return profile.cost(FP8_KV("decode")).scalar(), profile.cost(FP8_KV("prefill")).scalar()
