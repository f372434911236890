"""Options of an engine that change what its memory holds and its steps take: what an experiment states of them, or a
profile, as engines and their timing take it.

Each is off unless the experiment asks for it, and a number that neither says is refused
(docs/guides/engine-options.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput
from servetwin.core.llm.serving.host import Stages
from servetwin.core.llm.speculation import Speculation
from servetwin.profiles.llm.adapter_steps import AdapterSteps
from servetwin.profiles.llm.architectures import architecture
from servetwin.profiles.llm.kv_fp8 import Fp8Table
from servetwin.profiles.llm.schema import KINDS_OF_TABLE
from servetwin.profiles.llm.speculative_steps import (
    DraftModel,
    DraftSeconds,
    SpeculativeSteps,
    StatedDrafts,
    Steps,
)
from servetwin.profiles.tables.costs import DRAFT, FP8_KV, HOP, LORA_LOAD, LORA_SLOWDOWN, SWAP

from ..registry import policy_registry
from ..spec.experiment import Experiment, PolicySpec, WorkerSpec
from ..spec.llm import EngineSpec, PipelineParallel, SpeculativeConfig
from ..spec.loading import load_profiles
from .llm_workers import bytes_of_block, settings_of

if TYPE_CHECKING:
    from servetwin.profiles import Profile, TokenData, TokenTable

ENGINE = "deployment.workers: engine"
OFF = "time.costs: false"
#: Where a token's keys and values take two bytes a number, as the blocks of a profile are counted.
TWO_BYTES = ("bf16", "fp16")


def refuse(experiment: Experiment, who: str, right: str, *keys: str) -> None:
    """Raise `BadInput` if an engine has an option here, of *keys* if there are some, of which *who* knows nothing;
    *right* is what does."""
    for spec in experiment.deployment.workers:
        for key in [key for key in options_of(spec) if not keys or key in keys]:
            raise BadInput(f"{who} knows nothing of {key}", where=f"{ENGINE}.{key}", right=right)


def options_of(spec: WorkerSpec) -> list[str]:
    """The keys of the options here that *spec* asks for."""
    engine = spec.engine
    return [] if engine is None else engine.options


def stands_on(experiment: Experiment) -> list[str]:
    """A line for each number that the experiment states of an option of an engine: what it is, and whence; and what
    its memory holds."""
    said: dict[str, None] = {}
    for spec, policy in zip(experiment.deployment.workers, experiment.policies, strict=True):
        engine = spec.engine
        if engine is not None and (config := engine.speculative_config) is not None:
            drafts = f"{config.num_speculative_tokens} drafts a step"
            said[f"{drafts}, of which {mean_of(config):.2f} are accepted on average: {config.source}"] = None
            if engine.asynchronous is None and config.method != "eagle":
                profile = load_profiles(experiment)[spec.device or ""]
                if profile.token_data.engine.asynchronous:
                    off = "drafts: asynchronous scheduling is off, as vLLM sets it where they come from"
                    asked = "" if config.method == "ngram" else " and it is not asked for"
                    said[f"{off} {config.method}{asked}"] = None
            if config.draft is not None and (own := config.draft.device) is not None:
                said[f"drafts are made in the times of {experiment.deployment.devices[own]} (device {own})"] = None
            if config.draft is not None and config.draft.source is not None:
                each = f" and {config.draft.seconds_each:g} s a sequence" if config.draft.seconds_each else ""
                said[f"drafts take {config.draft.seconds:g} s a step{each}: {config.draft.source}"] = None
        if engine is not None and (lora := engine.lora) is not None:
            told = [f"loading one takes {lora.load_seconds:g} s"] if lora.load_seconds is not None else []
            told = told if experiment.time.costs else [f"loading one takes no time ({OFF})"]
            told += [f"steps take {lora.slowdown:g} times as long"] if lora.slowdown is not None else []
            if lora.source is not None:
                said[f"adapters: {', '.join(told) or 'as the profile says'}: {lora.source}"] = None
            if not _passes_over_as_vllm(policy):
                rule = "does not pass over requests that wait for an adapter just as vLLM does"
                said[f"adapters: {policy.name} {rule}; vllm-v1 does"] = None
        if engine is not None and (stages := engine.pipeline_parallel) is not None:
            profile = load_profiles(experiment)[spec.device or ""]
            said |= dict.fromkeys(_of_stages(stages, profile, costs=experiment.time.costs))
        if engine is not None and (engine.kv_offloading is not None or engine.kv_cache_dtype == "fp8"):
            profile = load_profiles(experiment)[spec.device or ""]
            said |= dict.fromkeys(_of_memory(spec, engine, profile, costs=experiment.time.costs))
    return [*said]


def _passes_over_as_vllm(policy: PolicySpec) -> bool:
    """Whether *policy* is vLLM's, or made from it: it fills its steps by `view.fill`, which keeps vLLM's rule."""
    vllm = policy_registry.find_policy("vllm-v1")
    return issubclass(policy_registry.find_policy(policy.name), vllm)


def _of_memory(spec: WorkerSpec, engine: EngineSpec, profile: Profile, *, costs: bool) -> list[str]:
    """What is to be said of the KV memory of *engine*, where it is in 8 bits or goes on in host memory; without
    *costs* nothing that moves takes time."""
    limits, said = settings_of(spec, profile).limits, []
    if engine.kv_cache_dtype == "fp8":
        room = f"{limits.blocks} blocks of {limits.block_size} tokens"
        if engine.blocks is None:
            usual = spec.model_copy(update={"engine": engine.model_copy(update={"kv_cache_dtype": "auto"})})
            room += f", twice as many as in 16 bits ({settings_of(usual, profile).limits.blocks})"
        else:
            room += ", as the experiment gives them"
        said.append(f"KV in fp8: {room}")
        decode, prefill = _fp8(engine, profile)
        source = profile.name if engine.fp8_attention is None else engine.fp8_attention.source
        each = f"{decode:g} times as long in decoding and {prefill:g} times for prompts"
        said.append(f"KV in fp8: attention to tokens before takes {each}: {source}")
    if (host := engine.kv_offloading) is not None:
        room = f"{limits.host_blocks} blocks of {limits.block_size} tokens"
        said.append(f"KV in host memory: {room} in {host.gib:g} GiB")
        if not costs:
            said.append(f"KV comes back from the host in no time ({OFF})")
        elif host.gb_per_s is not None:
            back = f"at {host.gb_per_s:g} GB/s, after {host.latency:g} s"
            said.append(f"KV comes back from the host {back}: {host.source}")
    return said


def table_of(spec: WorkerSpec, profile: Profile, table: TokenTable) -> TokenTable:
    """*table*, of *profile*, as it is for the engine of *spec*. Raises `BadInput` if an option changes it and nothing
    says how."""
    engine = spec.engine or EngineSpec()
    if engine.kv_cache_dtype == "auto":
        return table
    decode, prefill = _fp8(engine, profile)
    return Fp8Table(table, decode=decode, prefill=prefill)


def planned(spec: WorkerSpec, experiment: Experiment, profiles: Mapping[str, Profile], table: TokenTable) -> object:
    """What the policy of *spec*, an engine with options, plans with, by *table*: seconds as steps then take them."""
    own = table_of(spec, profiles[spec.device or ""], table)
    made = _made(spec, experiment, profiles)
    return own if made is None else made(own)


def tables(experiment: Experiment, profiles: Mapping[str, Profile]) -> dict[str, Callable[[TokenTable], TokenTable]]:
    """What makes of the table of a profile that of an engine, by the name of each worker whose options change it."""
    return {
        name: partial(table_of, spec, profiles[spec.device])
        for name, spec in _engines(experiment)
        if spec.device is not None and spec.engine is not None and spec.engine.kv_cache_dtype != "auto"
    }


def _engines(experiment: Experiment) -> list[tuple[str, WorkerSpec]]:
    """The workers that are engines with options, with their names."""
    workers = experiment.deployment.workers
    return [(w.name or w.modules[0], w) for w in workers if w.engine is not None and w.engine.options]


# -- speculative decoding -------------------------------------------------------------------------------------


def mean_of(config: SpeculativeConfig) -> float:
    """How many drafts of a step are accepted on average."""
    return Speculation(config.num_speculative_tokens, config.probabilities).mean - 1.0


def speculation_of(config: SpeculativeConfig, seed: int) -> Speculation:
    """What an engine drafts by *config*, and which of it is accepted."""
    count = config.num_speculative_tokens
    ahead = 0 if config.method == "ngram" else count
    return Speculation(count, config.probabilities, ahead, seed, reads_states=config.method == "eagle")


def steps(experiment: Experiment, profiles: Mapping[str, Profile]) -> dict[str, Callable[[Any], Any]]:
    """What makes of the steps of an engine those with drafts, or with adapters, by the name of each worker that has
    such. Raises `BadInput` if it is not known what they take."""
    found = {name: _made(spec, experiment, profiles) for name, spec in _engines(experiment)}
    return {name: made for name, made in found.items() if made is not None}


def _made(spec: WorkerSpec, experiment: Experiment, profiles: Mapping[str, Profile]) -> Callable[[Any], Any] | None:
    """What makes of steps those of *spec*; None if they are the same."""
    assert spec.engine is not None
    drafts = None if spec.engine.speculative_config is None else _drafting(spec, experiment, profiles)
    if spec.engine.lora is None:
        return drafts
    stated = spec.engine.lora.slowdown
    slowdown = _of_adapters(spec, profiles, LORA_SLOWDOWN(), "slowdown") if stated is None else stated
    if drafts is None:
        return partial(AdapterSteps, factor=slowdown)
    # What drafts has no adapters: its own time stays.
    return lambda times: drafts(AdapterSteps(times, slowdown))


def _of_adapters(spec: WorkerSpec, profiles: Mapping[str, Profile], cost: str, key: str) -> float:
    """What the profile of *spec* says of adapters. Raises `BadInput` if it does not."""
    profile = profiles[spec.device or ""]
    if cost not in profile.costs:
        what = f"nothing says what adapters cost: {profile.name} has no cost {cost}"
        right = f"{key}: ..., and its source; or a profile with that cost"
        raise BadInput(what, where=f"{ENGINE}.lora.{key}", right=right)
    return profile.cost(cost).scalar()


def _drafting(
    spec: WorkerSpec, experiment: Experiment, profiles: Mapping[str, Profile]
) -> Callable[[Steps], SpeculativeSteps]:
    assert spec.engine is not None
    assert spec.engine.speculative_config is not None
    config, profile = spec.engine.speculative_config, profiles[spec.device or ""]
    draft = _draft_seconds(config, profile, profiles, hold=experiment.time.hold)
    table = profile.tokens(*KINDS_OF_TABLE[experiment.time.table])
    if table.model.mixed.source is None:
        what = f"nobody measured steps of {profile.name} that compute prompts and decode, which is what verifying is"
        right = "a profile whose mixed steps have a source (servetwin profile), or no speculative_config"
        raise BadInput(what, where=f"{ENGINE}.speculative_config", right=right)
    return partial(SpeculativeSteps, drafts=config.num_speculative_tokens, draft=draft)


def _draft_seconds(
    config: SpeculativeConfig, profile: Profile, profiles: Mapping[str, Profile], *, hold: bool
) -> DraftSeconds:
    said = config.draft
    if said is not None and said.device is not None:
        times = profiles[said.device].tokens("measured", "scheduler", hold=hold)
        return DraftModel(times, config.num_speculative_tokens)
    if said is not None and said.seconds is not None:
        return StatedDrafts(said.seconds, said.seconds_each)
    if DRAFT() not in profile.costs:
        what = f"nothing says what making drafts takes: {profile.name} has no cost {DRAFT()}"
        right = "draft: {seconds: 0.002, source: ...} or {device: ...}; or a profile with that cost"
        raise BadInput(what, where=f"{ENGINE}.speculative_config.draft", right=right)
    cost = profile.cost(DRAFT())
    if cost.line is None:
        return StatedDrafts(cost.scalar(), 0.0)
    return StatedDrafts(cost.line.constant, cost.line.per_request)


# -- a model in stages -------------------------------------------------------------------------------------------


def layers_of(stages: PipelineParallel, data: TokenData) -> list[int]:
    """How many layers each stage has: as stated, or as vLLM divides them (`get_pp_indices` of
    ``vllm/distributed/utils.py``: what is left over goes to the last stages but one). Raises `BadInput` if they are
    not those of the model."""
    size, total = stages.pipeline_parallel_size, (data.shape or architecture(data.architecture)).layers
    where = f"{ENGINE}.pipeline_parallel.layers"
    if stages.layers is not None:
        if sum(stages.layers) != total:
            what = f"{' + '.join(map(str, stages.layers))} layers are not the {total} of {data.architecture}"
            raise BadInput(what, where=where, right=f"{total} in all")
        return stages.layers
    if size > total:
        raise BadInput(f"{size} stages for {total} layers", where=where, right=f"{total} stages at most")
    found, left = [total // size] * size, total % size
    for i in range(2, left + 2):
        found[-i] += 1
    return found


def stages_of(stages: PipelineParallel, experiment: Experiment, profile: Profile) -> Stages:
    """The stages of an engine with that *profile*. Raises `BadInput` if nothing says what sending takes."""
    layers = layers_of(stages, profile.token_data)
    shares = [count / sum(layers) for count in layers]
    if not experiment.time.costs:
        return Stages(shares)
    if stages.hop_seconds is not None:
        return Stages(shares, stages.hop_seconds, stages.hop_seconds_each)
    if HOP() not in profile.costs:
        what = f"nothing says what sending activations between stages takes: {profile.name} has no cost {HOP()}"
        right = "hop_seconds: 0.0001, say, and its source; or a profile with that cost"
        raise BadInput(what, where=f"{ENGINE}.pipeline_parallel.hop_seconds", right=right)
    line = profile.cost(HOP()).line
    return (
        Stages(shares, profile.cost(HOP()).scalar())
        if line is None
        else Stages(shares, line.constant, line.per_request)
    )


def _of_stages(stages: PipelineParallel, profile: Profile, *, costs: bool) -> list[str]:
    layers = " + ".join(map(str, layers_of(stages, profile.token_data)))
    said = [f"pipeline: stages of {layers} layers, each with that share of a step, one step a stage in flight"]
    if not costs:
        said.append(f"pipeline: activations are sent in no time ({OFF})")
    elif stages.hop_seconds is not None:
        each = f" and {stages.hop_seconds_each:g} s a token" if stages.hop_seconds_each else ""
        said.append(f"pipeline: activations are sent in {stages.hop_seconds:g} s{each}: {stages.source}")
    if profile.token_data.engine.asynchronous:
        said.append("pipeline: asynchronous scheduling is off")
    return said


# -- KV in host memory ------------------------------------------------------------------------------------------


def swaps(experiment: Experiment, profiles: Mapping[str, Profile]) -> dict[str, Callable[[int], float]]:
    """Seconds in which so many blocks come back from the host, or adapters come, by the name of each worker of which
    the experiment states it. Raises `BadInput` for those of which nobody says it."""
    if not experiment.time.costs:
        return {}
    found = {name: swap_of(spec, profiles) for name, spec in _engines(experiment)}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def swap_of(spec: WorkerSpec, profiles: Mapping[str, Profile]) -> Callable[[int], float] | None:
    """As of `swaps`, for the engine of *spec*; None if nothing is stated of it."""
    engine, profile = spec.engine, profiles[spec.device or ""]
    assert engine is not None
    if engine.lora is not None:
        stated = engine.lora.load_seconds
        each = _of_adapters(spec, profiles, LORA_LOAD(), "load_seconds") if stated is None else stated
        return partial(_line, 0.0, each)
    if engine.kv_offloading is None:
        return None
    said, data = engine.kv_offloading, profile.token_data
    if said.gb_per_s is not None:
        size = bytes_of_block(engine, data, engine.block_size or data.kv.block_size)
        return partial(_line, said.latency, size / (said.gb_per_s * 1e9))
    if SWAP() not in profile.costs:
        what = f"nothing says how long KV takes to come back from the host: {profile.name} has no cost kv.swap"
        right = "gb_per_s: 25, say, and its source; or a profile with that cost"
        raise BadInput(what, where=f"{ENGINE}.kv_offloading.gb_per_s", right=right)
    return None


def _line(constant: float, each: float, blocks: int) -> float:
    return constant + each * blocks


# -- KV in 8 bits -----------------------------------------------------------------------------------------------


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
