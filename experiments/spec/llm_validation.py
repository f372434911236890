"""Whether what an experiment file says of language models fits together."""

from __future__ import annotations

import itertools

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..registry.catalog import suggest
from .experiment import Experiment, FixedSLO, Gamma, Misfit, WorkerSpec, Workload
from .llm import (
    Adapters,
    ChoiceTokens,
    ConstantTokens,
    EngineSpec,
    Lengths,
    ListedTokens,
    LognormalTokens,
    PipelineParallel,
    SharedPrefix,
    SpeculativeConfig,
    TokenDraw,
    TokenSLOSpec,
    TracePrefix,
    TraceTokens,
    UniformTokens,
    longest_of,
)
from .published_draws import PUBLISHED, listed

LENGTHS = "{prompt: {draw: ...}, output: {draw: ...}}"


def check(experiment: Experiment) -> None:
    """Raise `Misfit` if it does not."""
    load = experiment.workload
    modules = [m for m, spec in experiment.pipeline.modules.items() if spec.llm]
    for module in load.lengths:
        if module not in modules:
            what = f"{module!r} is not a module of kind llm"
            raise Misfit(("workload", "lengths", module), what, suggest(module, modules) if modules else "no lengths")
    for module in modules:
        if module not in load.lengths:
            raise Misfit(("workload", "lengths"), f"no lengths for the module {module!r}", f"{module}: {LENGTHS}")
        _check_lengths(("workload", "lengths", module), module, load)
    _check_apart(load)
    for name, own in load.classes.items():
        for module, spec in own.lengths.items():
            path = ("workload", "classes", name, "lengths", module)
            for key, draw in (("prompt", spec.prompt), ("output", spec.output)):
                _check_draw((*path, key), draw, load)
            _check_shared(path, spec, load)
    seeds = PUBLISHED.get(load.draws)
    if seeds is not None and isinstance(load.arrivals, Gamma) and load.arrivals.cv not in seeds:
        known = ", ".join(f"{cv:g}" for cv in seeds)
        raise Misfit(("workload", "arrivals", "cv"), f"there is no published seed for cv {load.arrivals.cv:g}", known)
    _check_workers(experiment, modules)
    _check_roles(experiment, modules)
    _check_slo(experiment, modules)
    if experiment.time.table == "corrected" and not modules:
        raise Misfit(("time", "table"), "only models of LLM modules are corrected", "measured or scheduler")
    if experiment.time.host is not None and not modules:
        raise Misfit(("time", "host"), "launches are those of engines of LLM modules", "to leave it out")


def _check_lengths(path: tuple[str, ...], module: str, load: Workload) -> None:
    lengths = load.lengths[module]
    if lengths.after is not None and (lengths.after == module or lengths.after not in load.lengths):
        others = [m for m in load.lengths if m != module]
        right = suggest(lengths.after, others) if others else "no after"
        raise Misfit((*path, "after"), f"{lengths.after!r} is no other module of kind llm", right)
    way, at = [module], lengths.after
    while at is not None:
        if at in way:
            circle = " after ".join([*way, at])
            raise Misfit((*path, "after"), f"prompts follow each other in a circle: {circle}", "the module before")
        way.append(at)
        at = load.lengths[at].after if at in load.lengths else None
    for key, draw in (("prompt", lengths.prompt), ("output", lengths.output)):
        _check_draw((*path, key), draw, load)
    _check_shared(path, lengths, load)
    if isinstance(lengths.prefix, TracePrefix):
        if load.recorded is None:
            right = "{draw: shared, groups: 8, tokens: 512}, or workload.trace: {file: ...}"
            raise Misfit((*path, "prefix", "draw"), "the arrivals come from no trace", right)
        if not isinstance(lengths.prompt, TraceTokens) or lengths.after is not None:
            what = "the trace says what its own prompts begin with, and these are others"
            raise Misfit((*path, "prefix", "draw"), what, "prompt: {draw: trace}, without after")
    if isinstance(lengths.output, TraceTokens) and lengths.limit is None:
        what = "only the trace knows how long outputs are, and policies must not"
        raise Misfit((*path, "limit"), what, "the limit that requests declare, 2048 say")


def _check_apart(load: Workload) -> None:
    """Two modules are no engine that prefills and one that decodes: each has the KV of its own tokens alone."""
    for first, prefills in load.lengths.items():
        for second, decodes in load.lengths.items():
            most, context = longest_of(prefills.output), longest_of(decodes.prompt)
            if first == second or most != 1 or context is None or context > 2:
                continue
            context += decodes.after == first
            what = f"{second!r} would decode with a context of {context}, not with the KV of the prompts of {first!r}"
            right = "one module of kind llm, with workers of role prefill and of role decode"
            raise Misfit(("workload", "lengths", second, "prompt"), what, right)


def _check_shared(path: tuple[str, ...], lengths: Lengths, load: Workload) -> None:
    """What a group shares must fit into the longest prompts at least; before sessions it comes besides."""
    if load.sessions is not None:
        return
    prefix, most = lengths.prefix, longest_of(lengths.prompt)
    if isinstance(prefix, SharedPrefix) and lengths.after is None and most is not None and most < prefix.tokens:
        what = f"prompts have {most} tokens at most, and all of a group would share {prefix.tokens}"
        raise Misfit((*path, "prefix", "tokens"), what, f"{most} at most; or longer prompts")


def _check_draw(path: tuple[str, ...], draw: TokenDraw, load: Workload) -> None:
    if load.draws != "seeded" and not isinstance(draw, ConstantTokens | ListedTokens | TraceTokens):
        what = f"NeuStream's artifact has no {draw.draw} lengths that could be repeated"
        raise Misfit(("workload", "draws"), what, "seeded")
    if isinstance(draw, UniformTokens | LognormalTokens) and draw.low > draw.high:
        raise Misfit((*path, "low"), f"{draw.low} is above high, {draw.high}", "low <= high")
    if isinstance(draw, LognormalTokens) and draw.p90 < draw.median:
        raise Misfit((*path, "p90"), f"{draw.p90:g} is below the median, {draw.median:g}", "p90 >= median")
    if isinstance(draw, TraceTokens) and load.recorded is None:
        right = "uniform, constant, choice, lognormal, or workload.trace: {file: ...}"
        raise Misfit((*path, "draw"), "the arrivals come from no trace", right)
    if (
        isinstance(draw, ChoiceTokens)
        and draw.weights is not None
        and (len(draw.weights) != len(draw.values) or not float_sum(draw.weights))
    ):
        what = "the weights do not fit the values"
        raise Misfit((*path, "weights"), what, "one weight for each value, not all 0")
    if isinstance(draw, ListedTokens):
        try:
            listed(draw.name)
        except BadInput as error:
            raise Misfit((*path, "name"), error.what, error.right) from None


def _check_workers(experiment: Experiment, modules: list[str]) -> None:
    workers = experiment.deployment.workers
    engines = {w.device: w.modules[0] for w in workers if set(w.modules) & set(modules)}
    others = {w.device for w in workers if not set(w.modules) & set(modules)}
    for i, worker in enumerate(workers):
        path = ("deployment", "workers", i)
        served = [m for m in worker.modules if m in modules]
        if served and len(worker.modules) > 1:
            raise Misfit((*path, "modules"), f"an engine serves one module, {served[0]!r}", f"[{served[0]}]")
        engine = worker.engine
        if engine is not None and engine.enable_prefix_caching and (engine.keep_freed or engine.preemption == "swap"):
            key, right = ("keep_freed", "false") if engine.keep_freed else ("preemption", "recompute")
            what = f"enable_prefix_caching does not go together with {key}: {getattr(engine, key)}".lower()
            raise Misfit((*path, "engine", key), what, right)
        if engine is not None:
            _check_options((*path, "engine"), engine)
            if engine.lora is not None:
                _check_adapters((*path, "engine"), worker, engine.lora, experiment)
            if engine.pipeline_parallel is not None:
                _check_stages((*path, "engine"), worker, engine.pipeline_parallel, experiment)
            if engine.speculative_config is not None:
                _check_speculation((*path, "engine"), worker, engine.speculative_config, experiment)
        if worker.engine is not None and not served:
            raise Misfit((*path, "engine"), "this worker serves no module of kind llm", "no engine")
        if worker.device in engines and worker.device in others:
            # What another kind of worker would cost it has not been measured; of engines the profile may say it.
            what = f"the engine of {engines[worker.device]!r} has the device {worker.device!r} to itself"
            raise Misfit((*path, "device"), what, "a device for each engine, or two engines on one")


def _check_options(path: tuple[str | int, ...], engine: EngineSpec) -> None:
    """Whether the options of an engine go together."""
    fp8, offloads = engine.kv_cache_dtype == "fp8", engine.kv_offloading
    if offloads is not None:
        if not engine.enable_prefix_caching:
            what = "what is in host memory is found by its content, as prefixes are"
            raise Misfit((*path, "kv_offloading"), what, "enable_prefix_caching: true beside it")
        if offloads.gb_per_s is not None and offloads.source is None:
            raise Misfit(
                (*path, "kv_offloading", "source"), "nothing says where the bandwidth comes from", "source: ..."
            )
        if fp8 and offloads.gb_per_s is None:
            what = (
                "what moving blocks of KV in fp8 takes is not known: kv.swap is of blocks that take twice the bytes"
            )
            raise Misfit((*path, "kv_offloading", "gb_per_s"), what, "gb_per_s: 25, say, and its source")
    if engine.fp8_attention is not None and not fp8:
        what = "without kv_cache_dtype: fp8 it is not looked at"
        raise Misfit((*path, "fp8_attention"), what, "kv_cache_dtype: fp8, or no fp8_attention")
    if fp8 and engine.preemption == "swap":
        what = "what moving blocks of KV in fp8 takes is not known: kv.swap is of blocks that take twice the bytes"
        raise Misfit((*path, "preemption"), what, "recompute, or kv_cache_dtype: auto")


def _check_adapters(path: tuple[str | int, ...], worker: WorkerSpec, lora: Adapters, experiment: Experiment) -> None:
    """Whether the classes that have adapters are there, and nothing else is asked for of which it is not known how it
    goes with them."""
    engine, classes = worker.engine, experiment.workload.classes
    assert engine is not None
    for name in lora.adapters:
        if name not in classes:
            what = f"there is no class {name!r} of requests that could have an adapter"
            right = suggest(name, classes) if classes else "workload: {classes: {chat: {share: 1}}}, say"
            raise Misfit((*path, "lora", "adapters", name), what, right)
    others: dict[str, bool] = {
        "keep_freed": engine.keep_freed,
        "preemption": engine.preemption == "swap",
        "kv_offloading": engine.kv_offloading is not None,
    }
    for key in [key for key, on in others.items() if on]:
        right = {"preemption": "recompute", "keep_freed": "false"}.get(key, "null")
        raise Misfit((*path, key), "what that does with adapters is not known", right)
    if (lora.load_seconds is not None or lora.slowdown is not None) and lora.source is None:
        raise Misfit((*path, "lora", "source"), "nothing says where the numbers come from", "source: ...")


def _check_stages(
    path: tuple[str | int, ...], worker: WorkerSpec, stages: PipelineParallel, experiment: Experiment
) -> None:
    """Whether the stages of a model are told whole, and nothing else is asked for of which it is not known how it
    goes with them."""
    engine, here = worker.engine, (*path, "pipeline_parallel")
    assert engine is not None
    others: dict[str, bool] = {
        "keep_freed": engine.keep_freed,
        "asynchronous": bool(engine.asynchronous),
        "preemption": engine.preemption == "swap",
        "speculative_config": engine.speculative_config is not None,
        "lora": engine.lora is not None,
        "kv_offloading": engine.kv_offloading is not None,
    }
    for key in [key for key, on in others.items() if on]:
        right = {"preemption": "recompute", "keep_freed": "false", "asynchronous": "false"}.get(key, "null")
        raise Misfit((*path, key), "what that does with a model in stages is not known", right)
    if worker.role is not None:
        raise Misfit((*path[:-1], "role"), "an engine with stages does both, prefill and decode", "no role")
    if sum(other.device == worker.device for other in experiment.deployment.workers) > 1:
        what = "an engine with stages has devices of its own, and another worker has its device too"
        raise Misfit((*path[:-1], "device"), what, "a device for each")
    if experiment.deployment.prices is not None:
        what = f"the price of {worker.device} would count once, and the stages are {stages.pipeline_parallel_size}"
        raise Misfit(("deployment", "prices"), what, "no prices")
    if engine.blocks is None:
        what = "how many KV blocks there are where each device has a part of the model is not known"
        raise Misfit((*path, "blocks"), what, "the KV blocks of vLLM with that pipeline_parallel_size")
    if stages.layers is not None and len(stages.layers) != stages.pipeline_parallel_size:
        what = f"{len(stages.layers)} numbers of layers for {stages.pipeline_parallel_size} stages"
        raise Misfit((*here, "layers"), what, "one for each")
    if stages.hop_seconds is None and stages.hop_seconds_each:
        what = "without hop_seconds it is not looked at"
        raise Misfit((*here, "hop_seconds_each"), what, "hop_seconds: ..., or no hop_seconds_each")
    if stages.hop_seconds is not None and stages.source is None:
        raise Misfit((*here, "source"), "nothing says where the seconds come from", "source: ...")


def _check_speculation(
    path: tuple[str | int, ...], worker: WorkerSpec, config: SpeculativeConfig, experiment: Experiment
) -> None:
    """Whether what an engine drafts is told whole, and goes together with its other settings."""
    engine, here = worker.engine, (*path, "speculative_config")
    assert engine is not None
    if engine.asynchronous and config.method == "ngram":
        what = "vLLM has no asynchronous scheduling where drafts come from ngram"
        raise Misfit((*path, "asynchronous"), what, "false, or left out")
    if engine.asynchronous:
        what = f"vLLM has asynchronous scheduling with drafts from {config.method}, and it is not modelled here"
        right = "false" if config.method == "eagle" else "false, or left out, where vLLM has it off as well"
        raise Misfit((*path, "asynchronous"), what, right)
    others: dict[str, bool] = {
        "keep_freed": engine.keep_freed,
        "preemption": engine.preemption == "swap",
        "headroom": engine.headroom > 0,
        "kv_offloading": engine.kv_offloading is not None,
    }
    for key in [key for key, on in others.items() if on]:
        right = {"preemption": "recompute", "headroom": "0", "kv_offloading": "null"}.get(key, "false")
        raise Misfit((*path, key), "what that does where tokens are drafted is not known", right)
    if worker.role is not None:
        raise Misfit((*path[:-1], "role"), "an engine that drafts tokens does both, prefill and decode", "no role")
    count, listed = config.num_speculative_tokens, config.synthetic_acceptance_rates
    if (config.acceptance is None) == (listed is None):
        what = (
            "nothing says which drafts are accepted" if listed is None else "two keys say which drafts are accepted"
        )
        raise Misfit((*here, "acceptance"), what, "acceptance: 0.8, say; or synthetic_acceptance_rates: [...]")
    given = config.acceptance if isinstance(config.acceptance, list) else listed
    if given is not None and len(given) != count:
        key = "acceptance" if listed is None else "synthetic_acceptance_rates"
        raise Misfit((*here, key), f"{len(given)} numbers for {count} drafts", "one for each")
    if listed is not None and any(a < b for a, b in itertools.pairwise(listed)):
        what = "a draft is accepted only if those before it are, so the shares cannot grow"
        raise Misfit((*here, "synthetic_acceptance_rates"), what, "[0.8, 0.6, 0.5], say")
    if config.method != "ngram" and engine.blocks is None:
        what = "the weights of what drafts, and its KV, take memory: how much is left is not known"
        raise Misfit((*path, "blocks"), what, "the KV blocks that this engine has then")
    draft = config.draft
    if draft is None:
        return
    if (draft.seconds is None) == (draft.device is None):
        right = "seconds: 0.002 and source: ..., or device: ..."
        raise Misfit((*here, "draft"), "either seconds or a device says what drafts take", right)
    if draft.device is not None and config.method == "ngram":
        what = "n-grams are looked up in what was said: no model drafts them whose times a device has"
        raise Misfit((*here, "draft", "device"), what, "seconds: 0.0005, say, and its source; or another method")
    if draft.device is not None and draft.device not in experiment.deployment.devices:
        what = f"there is no device {draft.device!r}"
        raise Misfit((*here, "draft", "device"), what, suggest(draft.device, experiment.deployment.devices))
    if draft.seconds is not None and draft.source is None:
        raise Misfit((*here, "draft", "source"), "nothing says where the seconds come from", "source: ...")


def _check_roles(experiment: Experiment, modules: list[str]) -> None:
    """Prefill and decode apart: who does which, and that it is known what lies between."""
    plan = experiment.deployment
    by_module: dict[str, dict[str | None, int]] = {}
    prefills: set[str | None] = set()
    for i, worker in enumerate(plan.workers):
        path, module = ("deployment", "workers", i), worker.modules[0]
        if worker.role is None:
            by_module.setdefault(module, {}).setdefault(None, i)
            continue
        if module not in modules:
            raise Misfit((*path, "role"), "this worker serves no module of kind llm", "no role")
        by_module.setdefault(module, {}).setdefault(worker.role, i)
        engine = worker.engine
        if engine is not None and engine.keep_freed:
            what = "keep_freed is not known of engines whose prefill and decode are apart"
            raise Misfit((*path, "engine", "keep_freed"), what, "enable_prefix_caching: true, or false")
        if engine is not None and engine.kv_offloading is not None:
            what = "KV in host memory is not known of engines whose prefill and decode are apart"
            raise Misfit((*path, "engine", "kv_offloading"), what, "null")
        prefills |= {worker.device} if worker.role == "prefill" else set()
    kept: dict[str, str] = {}
    adapters: dict[str, dict[str, str]] = {}
    for i, worker in enumerate(plan.workers):
        own = worker.engine.lora.adapters if worker.engine is not None and worker.engine.lora is not None else {}
        if worker.role is not None and adapters.setdefault(worker.modules[0], own) != own:
            what = f"KV is that of an adapter, and workers of {worker.modules[0]!r} with a role have different ones"
            raise Misfit(("deployment", "workers", i, "engine", "lora"), what, "the same adapters at each of them")
        dtype = worker.engine.kv_cache_dtype if worker.engine is not None else "auto"
        if worker.role is not None and kept.setdefault(worker.modules[0], dtype) != dtype:
            what = f"KV is handed over as it is kept, and workers of {worker.modules[0]!r} keep it in different types"
            raise Misfit(("deployment", "workers", i, "engine", "kv_cache_dtype"), what, kept[worker.modules[0]])
        if worker.role == "decode" and worker.device in prefills:
            what = f"{worker.device!r} has a worker that prefills"
            raise Misfit(("deployment", "workers", i, "device"), what, "a device of its own")
    for module, roles in by_module.items():
        if len(roles) > 1 and None in roles:
            what = f"other workers of {module!r} have a role"
            raise Misfit(("deployment", "workers", roles[None], "role"), what, "prefill or decode")
        for role, other in (("prefill", "decode"), ("decode", "prefill")):
            if role in roles and other not in roles:
                what = f"{module!r} has no worker with the role {other}"
                raise Misfit(("deployment", "workers", roles[role], "role"), what, f"a worker with role: {other}")
    _check_handover(experiment, any(worker.role is not None for worker in plan.workers))


def _check_handover(experiment: Experiment, apart: bool) -> None:
    said = experiment.deployment.handover
    path = ("deployment", "handover")
    if said is None:
        if apart:
            what = "nothing says what handing KV over to the workers that decode costs"
            raise Misfit(path, what, "handover: {gb_per_s: 25, source: ...}")
        return
    if not apart:
        raise Misfit(path, "no worker has a role", "workers with role: prefill and role: decode, or no handover")
    if said.gb_per_s is not None and said.source is None:
        raise Misfit((*path, "source"), "nothing says where the bandwidth comes from", "source: ...")
    if said.gb_per_s is None and said.bytes_per_token is not None:
        what = "without a bandwidth, bytes are not looked at"
        raise Misfit((*path, "bytes_per_token"), what, "gb_per_s: ..., or no bytes_per_token")


def _check_slo(experiment: Experiment, modules: list[str]) -> None:
    slo = experiment.slo
    if not isinstance(slo, TokenSLOSpec):
        if modules and not isinstance(slo, FixedSLO):
            right = "slo: {prefill: 3.0, decode: 1.5}, {limits: {ttft_ms: ...}} or {seconds: ...}"
            raise Misfit(("slo",), "an LLM module has no solo latency that a factor could be of", right)
        return
    if not modules:
        raise Misfit(("slo",), "there is no module of kind llm", "slo: {factor: 3.0}")
    if (slo.prefill is None) != (slo.decode is None):
        missing = "prefill" if slo.prefill is None else "decode"
        raise Misfit(("slo", missing), "prefill and decode go together", "slo: {prefill: 3.0, decode: 1.5}")
    if slo.prefill is None and (slo.limits is None or not any(slo.limits.model_dump().values())):
        raise Misfit(("slo",), "nothing is promised", "prefill and decode, or limits")
