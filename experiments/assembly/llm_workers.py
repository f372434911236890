"""From what an experiment says of language models to engines: workers, deadlines of tokens, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from servetwin.core import AbsoluteSLO, BadInput, RunFolder, Stage
from servetwin.core.llm import EngineLimits, LimitsSLO, TokenDeadlines, TokenLimits, TokenPolicy, TokenSLO, TokenView
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.window_metrics import WindowSummary
from servetwin.core.llm.worker import Host, TokenWorker
from servetwin.profiles.costs import BEGINS, INTAKE, LAUNCH, LAUNCH_EACH, LAUNCH_PIECES, SWAP

from ..spec.experiment import Experiment, WorkerSpec
from ..spec.llm import EngineSpec, TokenSLOSpec

if TYPE_CHECKING:
    from servetwin.core import Recorder, Worker
    from servetwin.profiles import Profile

#: A request to language models has no deadline of its own, unless the experiment says so.
ENDLESS = AbsoluteSLO(float("inf"))


def limits_of(experiment: Experiment) -> TokenLimits | None:
    """The limits per request that are reported, in seconds; None if there are none."""
    slo = experiment.slo
    if not isinstance(slo, TokenSLOSpec) or slo.limits is None:
        return None
    given = {k.removesuffix("_ms"): ms / 1000.0 for k, ms in slo.limits.model_dump().items() if ms is not None}
    return TokenLimits(**given)


def deadlines_of(experiment: Experiment, profile: Profile) -> TokenDeadlines | None:
    """The deadlines of the tokens that a model with this *profile* puts out; None if the experiment has none."""
    slo = experiment.slo
    if not isinstance(slo, TokenSLOSpec):
        return None
    if slo.prefill is None or slo.decode is None:
        return LimitsSLO.of(limits_of(experiment) or TokenLimits())
    table = profile.tokens(slo.base)
    data = profile.token_data
    d0, d1 = (data.solo.d0, data.solo.d1) if data.solo else table.solo_decode()
    return TokenDeadlines(slo.prefill, slo.decode, d0, d1, table.prefill, slo.meets)


def engine_limits(spec: WorkerSpec, profile: Profile) -> EngineLimits:
    """What memory and settings of the engine allow: as the worker says, or else as the profile does."""
    assert spec.limit is not None
    given, data = spec.engine or EngineSpec(), profile.token_data
    size = given.block_size or data.kv.block_size
    blocks = given.blocks or data.blocks(
        max_batched_tokens=given.max_batched_tokens, max_sequences=spec.limit, block_size=size
    )
    return EngineLimits(
        blocks=blocks,
        block_size=size,
        watermark=data.engine.watermark if given.watermark is None else given.watermark,
        max_batched_tokens=given.max_batched_tokens or data.engine.max_batched_tokens,
        max_sequences=spec.limit,
        headroom=given.headroom,
        preemption=given.preemption,
        stamp=given.stamp,
        whole_prompt=given.whole_prompt,
        keep_freed=given.keep_freed,
    )


def _check_budget(limits: EngineLimits, policy: TokenPolicy, context: int) -> None:
    """Raise `BadInput` where vLLM would: if more requests may run at once than a step has tokens, or prompts are not
    cut and may be longer than a step."""
    tokens, whose = limits.max_batched_tokens, "engine.max_batched_tokens"
    own = policy.tokens_a_step
    if own is not None and own < tokens:
        tokens, whose = own, f"the budget of {type(policy).__name__}"
    if tokens < limits.max_sequences:
        what = f"{limits.max_sequences} requests may run at once, but a step has {tokens} tokens ({whose})"
        right = f"a limit of {tokens} at most, or {limits.max_sequences} tokens a step or more, as vLLM wants it"
        raise BadInput(what, where="deployment.workers: limit", right=right)
    if policy.whole_prompts and tokens < context:
        what = f"prompts are not cut, and a step has {tokens} tokens ({whose}) where a request may have {context}"
        right = f"chunked prompts, {context} tokens a step or more, or a smaller engine.max_model_len"
        raise BadInput(what, where="deployment.workers: engine.max_batched_tokens", right=right)


def context_of(spec: WorkerSpec, profile: Profile) -> int:
    """The tokens of prompt and output together that the engine takes per request."""
    given = spec.engine.max_model_len if spec.engine else None
    return given or profile.token_data.engine.max_model_len


def contexts(experiment: Experiment, profiles: dict[str, Profile]) -> dict[str, int]:
    """The same by LLM module; of several workers, the least."""
    found: dict[str, int] = {}
    llms = experiment.pipeline.llms
    for spec in experiment.deployment.workers:
        module = spec.modules[0]
        if module in llms and spec.device is not None:
            tokens = context_of(spec, profiles[spec.device])
            found[module] = min(found.get(module, tokens), tokens)
    return found


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
        launch=seconds(LAUNCH()),
        pieces=seconds(LAUNCH_PIECES()),
        each=seconds(LAUNCH_EACH()),
        graph_tokens=profile.token_data.engine.graph_tokens,
    )


def is_ahead(spec: WorkerSpec, profile: Profile) -> bool:
    """Whether the engine decides ahead: as the worker says, or else as the one was that was profiled."""
    given = spec.engine.asynchronous if spec.engine is not None else None
    return profile.token_data.engine.asynchronous if given is None else given


def token_worker(
    experiment: Experiment, spec: WorkerSpec, stage: Stage, profile: Profile, policy: object
) -> TokenWorker:
    """The engine that *spec* describes."""
    if not isinstance(policy, TokenPolicy):
        known = "neustream-llm, vllm, vllm-v1, sarathi or edf-llm"
        name = (spec.policy or experiment.policy).name
        raise BadInput(f"{name} is no policy for language models", where="policy", right=known)
    limits = engine_limits(spec, profile)
    _check_budget(limits, policy, context_of(spec, profile))
    if limits.preemption == "swap" and experiment.time.costs and SWAP() not in profile.costs:
        what = f"{profile.name} does not say how long KV blocks take to the host and back (its cost kv.swap)"
        raise BadInput(what, where="deployment.workers: engine.preemption", right="recompute, or time.costs: false")
    ahead = is_ahead(spec, profile)
    if ahead and limits.preemption == "swap":
        what = "with asynchronous scheduling nothing is swapped"
        raise BadInput(what, where="deployment.workers: engine.preemption", right="recompute, or asynchronous: false")
    kind = experiment.deployment.estimates
    plans = profile.tokens("measured" if kind == "measured" else "scheduler", hold=experiment.time.hold)
    view = TokenView(
        stage,
        limits,
        estimate_prefill=plans.prefill,
        estimate_decode=plans.decode,
        estimate_step=plans.step,
        slo=cast("TokenSLO | None", deadlines_of(experiment, profile)),
        name=spec.name or "",
    )
    host = host_ahead(profile, costs=experiment.time.costs) if ahead else None
    return TokenWorker(stage, policy, view, device=spec.device or "", host=host)


def prepare(recorder: Recorder, experiment: Experiment, workers: list[Worker]) -> None:
    """Let *recorder* keep what is reported of language models, if there are any."""
    slos = {w.stage.name: cast("TokenDeadlines | None", w.view.slo) for w in workers if isinstance(w, TokenWorker)}
    if not slos:
        return
    slo, limits = experiment.slo, limits_of(experiment)
    window = slo.window if isinstance(slo, TokenSLOSpec) else None
    if window is None:
        recorder.summary = TokenSummary(slos, limits)
    else:
        rate = getattr(experiment.workload.arrivals, "rate", None)
        if rate is None:
            raise BadInput("a window needs a rate", where="slo.window", right="arrivals with a rate, or no window")
        recorder.summary = WindowSummary(slos, limits, skip=window.skip, seconds=window.requests / rate)
    recorder.wants_token_times = True
    if isinstance(recorder, RunFolder):
        recorder.writes_tokens = experiment.records.tokens
