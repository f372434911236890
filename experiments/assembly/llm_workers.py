"""From what an experiment says of language models to engines: workers, deadlines of tokens, limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from servetwin.core import AbsoluteSLO, BadInput, RunFolder
from servetwin.core.llm import (
    EngineLimits,
    LimitsSLO,
    TokenDeadlines,
    TokenLimits,
    TokenPolicy,
    TokenSLOByClass,
)
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.llm.window_metrics import WindowSummary
from servetwin.profiles.llm.architectures import GIB, architecture
from servetwin.profiles.tables.costs import (
    BEGINS,
    BEGINS_EACH,
    INTAKE,
    LAUNCH,
    LAUNCH_BACK,
    LAUNCH_BACK_TOKEN,
    LAUNCH_EACH,
    LAUNCH_LEFT,
    LAUNCH_PIECES,
    SWAP,
    TOLD,
    TOLD_EACH,
)

from ..spec.experiment import Experiment, Time, WorkerSpec
from ..spec.keys.host_factors import factors_of
from ..spec.llm import EngineSpec, TokenSLOSpec
from ..workload.lengths import largest

if TYPE_CHECKING:
    from servetwin.core import Recorder, Worker
    from servetwin.profiles import Profile, TokenData

#: A request to language models has no deadline of its own, unless the experiment says so.
ENDLESS = AbsoluteSLO(float("inf"))


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is set up: *limits* of memory and steps, the tokens of prompt and output together that it takes
    per request (*max_model_len*), and whether it decides a step while the one before it runs (*asynchronous*)."""

    limits: EngineLimits
    max_model_len: int
    asynchronous: bool


def settings_of(spec: WorkerSpec, profile: Profile) -> EngineSettings:
    """The settings of the engine of *spec*: each as the worker says it, or else as the *profile* does."""
    assert spec.limit is not None
    given, data = spec.engine or EngineSpec(), profile.token_data
    size, engine, drafts = given.block_size or data.kv.block_size, data.engine, given.speculative_config
    blocks = given.blocks or data.blocks(
        max_batched_tokens=given.max_batched_tokens,
        max_sequences=spec.limit,
        block_size=size,
        fp8=given.kv_cache_dtype == "fp8",
    )
    stages = given.pipeline_parallel
    limits = EngineLimits(
        blocks=blocks,
        block_size=size,
        watermark=engine.watermark if given.watermark is None else given.watermark,
        max_batched_tokens=given.max_batched_tokens or engine.max_batched_tokens,
        max_sequences=spec.limit,
        headroom=given.headroom,
        preemption=given.preemption,
        stamp=given.stamp,
        whole_prompt=given.whole_prompt,
        keep_freed=given.keep_freed,
        enable_prefix_caching=given.enable_prefix_caching,
        num_speculative_tokens=drafts.num_speculative_tokens if drafts is not None else 0,
        host_blocks=host_blocks_of(given.kv_offloading.gib, given, data, size) if given.kv_offloading else 0,
        max_loras=given.lora.max_loras if given.lora else 0,
        adapters=tuple(given.lora.adapters.items()) if given.lora else (),
        pipeline_parallel_size=stages.pipeline_parallel_size if stages is not None else 1,
    )
    ahead = engine.asynchronous if given.asynchronous is None else given.asynchronous
    if given.asynchronous is None and drafts is not None and drafts.method != "eagle":
        ahead = False  # as vLLM sets it where nothing asks for it (0.27: `vllm/config/vllm.py`)
    return EngineSettings(limits, given.max_model_len or engine.max_model_len, ahead and stages is None)


def bytes_of_block(engine: EngineSpec, data: TokenData, size: int) -> float:
    """Bytes of a KV block of *size* tokens, on all devices of the *engine* of a model together."""
    model = data.shape or architecture(data.architecture)
    return model.kv_bytes_per_token(1 if engine.kv_cache_dtype == "fp8" else 2) * size


def host_blocks_of(gib: float, engine: EngineSpec, data: TokenData, size: int) -> int:
    """How many KV blocks of *size* tokens so many GiB of host memory hold. Raises `BadInput` if none."""
    blocks = int(gib * GIB // bytes_of_block(engine, data, size))
    if blocks < 1:
        what = f"{gib:g} GiB hold no KV block of {size} tokens"
        raise BadInput(what, where="deployment.workers: engine.kv_offloading.gib", right="more memory")
    return blocks


def contexts(experiment: Experiment, profiles: dict[str, Profile]) -> dict[str, int]:
    """The tokens of its own prompt and output together that a request may have at each LLM module: what the engine
    takes (of several workers, the least), less what may come on top of the prompt from the module before."""
    found: dict[str, int] = {}
    lengths = experiment.workload.lengths
    for spec in experiment.deployment.workers:
        module = spec.modules[0]
        if module in experiment.pipeline.llms and spec.device is not None:
            tokens = settings_of(spec, profiles[spec.device]).max_model_len
            before = lengths[module].after
            if before is not None:
                tokens -= lengths[before].limit or largest(lengths[before].output) or 0
            found[module] = min(found.get(module, tokens), tokens)
    return found


def deadlines_of(experiment: Experiment, profile: Profile, decode: Profile | None = None) -> TokenDeadlines | None:
    """The deadlines of the tokens that a model with this *profile* generates (or that of *decode* all but the first),
    with the limits per request that are reported beside them, by class where classes have their own; None if the
    experiment has neither."""
    slo = experiment.slo
    if not isinstance(slo, TokenSLOSpec):
        return None
    specs = {"": slo}
    for name, own in experiment.workload.classes.items():
        whole = experiment.slo_of(name)
        if own.slo is not None and isinstance(whole, TokenSLOSpec):
            specs[name] = whole
    found: dict[str, TokenDeadlines] = {}
    for name, spec in specs.items():
        limits = None
        if spec.limits is not None:
            given = spec.limits.model_dump(exclude_none=True)
            limits = TokenLimits(**{key.removesuffix("_ms"): ms / 1000.0 for key, ms in given.items()})
        if spec.prefill is None or spec.decode is None:
            found[name] = LimitsSLO.of(limits or TokenLimits())
            continue
        table, decodes = profile.tokens(spec.base), decode or profile
        data = decodes.token_data
        d0, d1 = (data.solo.d0, data.solo.d1) if data.solo else decodes.tokens(spec.base).solo_decode()
        found[name] = TokenDeadlines(spec.prefill, spec.decode, d0, d1, table.prefill, spec.meets, limits)
    usual = found.pop("")
    return TokenSLOByClass.of(usual, found) if found else usual


def check_engine(
    experiment: Experiment, spec: WorkerSpec, settings: EngineSettings, profile: Profile, policy: object
) -> TokenPolicy:
    """Raise `BadInput` unless the engine of *spec* can be run with these *settings* by *policy*; gives the policy."""
    if not isinstance(policy, TokenPolicy):
        known = "neustream-llm, vllm, vllm-v1, sarathi or edf-llm"
        name = (spec.policy or experiment.policy).name
        raise BadInput(f"{name} is no policy for language models", where="policy", right=known)
    limits = settings.limits
    if limits.num_speculative_tokens:
        _check_speculates(experiment, spec, settings, policy)
    _check_budget(limits, policy, settings.max_model_len)
    if limits.preemption == "swap" and experiment.time.costs and SWAP() not in profile.costs:
        what = f"{profile.name} does not say how long KV blocks take to the host and back (its cost kv.swap)"
        raise BadInput(what, where="deployment.workers: engine.preemption", right="recompute, or time.costs: false")
    handover = experiment.deployment.handover
    if settings.asynchronous and spec.role == "prefill" and handover is not None and not handover.overlap:
        what = (
            "with asynchronous scheduling the next step is decided before the last is over, so nothing stands still"
        )
        right = "overlap: true, or engine: {asynchronous: false} at the workers that prefill"
        raise BadInput(what, where="deployment.handover.overlap", right=right)
    if settings.asynchronous and limits.preemption == "swap":
        what = "with asynchronous scheduling nothing is swapped"
        raise BadInput(what, where="deployment.workers: engine.preemption", right="recompute, or asynchronous: false")
    return policy


def _check_speculates(
    experiment: Experiment, spec: WorkerSpec, settings: EngineSettings, policy: TokenPolicy
) -> None:
    """Raise `BadInput` unless *policy* reckons with drafts, and the engine decides a step when the last is over."""
    where = "deployment.workers: engine.speculative_config"
    if not policy.speculates:
        name = (spec.policy or experiment.policy).name
        what = f"{name} does not reckon with several tokens a step (speculates)"
        raise BadInput(what, where=where, right="vllm-v1, sarathi or vllm; or no speculative_config")
    if settings.asynchronous:
        what = "an engine that drafts tokens decides a step when the one before is over, and this profile's does not"
        raise BadInput(what, where=where, right="asynchronous: false beside it")


def _check_budget(limits: EngineLimits, policy: TokenPolicy, context: int) -> None:
    """Raise `BadInput` where vLLM would: if more requests may run at once than a step has tokens, or prompts are not
    cut and may be longer than a step."""
    tokens, whose = limits.max_batched_tokens, "engine.max_batched_tokens"
    own = policy.tokens_a_step
    if own is not None and own < tokens:
        tokens, whose = own, f"the budget of {type(policy).__name__}"
    each = limits.tokens_per_decode
    if each > 1 and tokens < each * limits.max_sequences:
        what = f"{limits.max_sequences} requests with {each - 1} drafts each may run, but a step has {tokens} tokens"
        right = f"a limit of {tokens // each} at most, or {each * limits.max_sequences} tokens a step ({whose})"
        raise BadInput(what, where="deployment.workers: limit", right=right)
    if tokens < limits.max_sequences:
        what = f"{limits.max_sequences} requests may run at once, but a step has {tokens} tokens ({whose})"
        right = f"a limit of {tokens} at most, or {limits.max_sequences} tokens a step or more, as vLLM wants it"
        raise BadInput(what, where="deployment.workers: limit", right=right)
    if policy.whole_prompts and tokens < context:
        what = f"prompts are not cut, and a step has {tokens} tokens ({whose}) where a request may have {context}"
        right = f"chunked prompts, {context} tokens a step or more, or a smaller engine.max_model_len"
        raise BadInput(what, where="deployment.workers: engine.max_batched_tokens", right=right)


def host_ahead(profile: Profile, *, costs: bool = True) -> Host:
    """The host of an engine that decides a step while the one before it computes, by *profile*. What that does not
    say takes no time, and without *costs* nothing does."""

    def seconds(name: str) -> float:
        return profile.costs[name].scalar() if costs and name in profile.costs else 0.0

    between = profile.tokens("measured", "corrected", "scheduler", hold=True, between=costs).between
    return Host(
        between,
        seconds(INTAKE()),
        ahead=True,
        begins=seconds(BEGINS()),
        begins_each=seconds(BEGINS_EACH() if BEGINS_EACH() in profile.costs else LAUNCH_EACH()),
        launch=seconds(LAUNCH()),
        pieces=seconds(LAUNCH_PIECES()),
        each=seconds(LAUNCH_EACH()),
        left=seconds(LAUNCH_LEFT()),
        back=seconds(LAUNCH_BACK()),
        back_token=seconds(LAUNCH_BACK_TOKEN()),
        told=seconds(TOLD()) if TOLD() in profile.costs else None,
        told_each=seconds(TOLD_EACH()),
        graph_tokens=profile.token_data.engine.graph_tokens,
    )


def slowed(host: Host | None, profile: Profile, time: Time) -> Host:
    """*host*, by *profile*, where launches take as many times as long as *time* says. Raises `BadInput` where they
    are no part of what is simulated: steps of such engines have their host's part in them, and nobody knows which."""
    from servetwin.profiles.llm import launch_times  # which other simulations do without

    assert time.host is not None
    if host is None or BEGINS() not in profile.costs:
        what = f"{profile.name} does not say what launching a step takes"
        if host is None:
            what = f"the engine by {profile.name} is synchronous: its steps have their launches in them"
        right = f"an asynchronous engine, by a profile with {BEGINS()}; or no time.host"
        raise BadInput(what, where="time.host", right=right)
    if not time.costs:
        raise BadInput("without costs launches take no time", where="time.host", right="time.costs: true")
    return replace(host, **launch_times.lengthened(vars(host), factors_of(time.host)))


def prepare(recorder: Recorder, experiment: Experiment, workers: list[Worker]) -> None:
    """Let *recorder* keep what is reported of language models, if there are any."""
    slos = {w.stage.name: cast("TokenDeadlines | None", w.view.slo) for w in workers if isinstance(w, TokenWorker)}
    if not slos:
        return
    slo = experiment.slo
    window = slo.window if isinstance(slo, TokenSLOSpec) else None
    if window is None:
        recorder.summary = TokenSummary(slos)
    else:
        rate = getattr(experiment.workload.arrivals, "rate", None)
        if rate is None:
            raise BadInput("a window needs a rate", where="slo.window", right="arrivals with a rate, or no window")
        recorder.summary = WindowSummary(slos, skip=window.skip, seconds=window.requests / rate)
    recorder.wants_token_times = True
    if isinstance(recorder, RunFolder):
        recorder.writes_tokens = experiment.records.tokens
        recorder.promises = {stage: promised for stage, promised in slos.items() if promised is not None}
