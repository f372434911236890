"""Whether the parts of an experiment file fit together."""

from __future__ import annotations

import re

from servetwin.core.arithmetic import float_sum

from ..registry import autoscaler_registry
from ..registry.catalog import suggest
from . import llm_validation, schedule_validation
from .experiment import (
    ChoiceSteps,
    Constant,
    Deployment,
    Experiment,
    Gamma,
    Misfit,
    ModuleSpec,
    PipelineSpec,
    RelativeSLO,
    RequestClass,
    Steps,
    Trace,
    TraceSteps,
    UniformSteps,
    WorkerSpec,
    Workload,
)
from .keys.memory import CardSpec
from .keys.schedule import ByClass
from .llm import BucketPrediction, Lengths, TokenSLOSpec, TracePrefix, TraceTokens
from .sessions import WAITS, ChoiceTurns, ClosedLoop, LognormalSeconds, TraceTurns, UniformSeconds, UniformTurns
from .shapes import ChoiceShape, ShapeDraw, TraceShape, shapes_in

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check(experiment: Experiment) -> None:
    """Raise `Misfit` where one part of *experiment* contradicts another."""
    modules, load = experiment.pipeline.modules, experiment.workload
    loops = [m for m, spec in modules.items() if spec.loop and not spec.llm]
    llm_validation.check(experiment)
    for module in load.steps:
        if module not in loops:
            what = f"{module!r} is not a loop module of the pipeline"
            raise Misfit(("workload", "steps", module), what, suggest(module, loops) if loops else "no steps")
    for module in loops:
        if module not in load.steps:
            raise Misfit(
                ("workload", "steps"), f"no steps for the loop module {module!r}", f"{module}: {{draw: ...}}"
            )
    for module, steps in load.steps.items():
        _check_steps(("workload", "steps", module), steps, load)
    schedule_validation.check(experiment)
    _check_classes(experiment)
    _check_shapes(experiment)
    for module, spec in modules.items():
        if spec.actions is not None:
            leaves = sum(branch.source == module for branch in experiment.pipeline.branches)
            _check_actions(("pipeline", "modules", module, "actions"), spec, leaves)
    for name, own in load.classes.items():
        for module, steps in own.steps.items():
            _check_steps(("workload", "classes", name, "steps", module), steps, load)
    _check_trace(load)
    if load.requests is None and load.recorded is None and not schedule_validation.ends(load):
        what = "only a trace has a number of requests of its own, or a load that ends (until)"
        raise Misfit(("workload", "requests"), what, "a whole number")
    if load.draws != "seeded" and not isinstance(load.arrivals, Gamma | Constant | Trace | ClosedLoop):
        what = f"NeuStream's artifact has no {load.arrivals.process} arrivals that could be repeated"
        raise Misfit(("workload", "draws"), what, "seeded")
    if load.in_turns:
        _check_sessions(experiment)
    _check_entries(experiment)
    _check_branches(experiment.pipeline)
    _check_deployment(experiment.deployment, modules)
    _check_budget(experiment)
    schedule_validation.check_faults(experiment)


def _check_actions(path: tuple[str, ...], module: ModuleSpec, branches: int) -> None:
    actions = module.actions
    assert actions is not None
    if module.llm or not module.loop:
        raise Misfit(path, "steps are those of a loop module", "no actions here, or loop: true")
    shares = [share for share, _ in actions.quality]
    if shares != sorted(set(shares)) or not 0.0 < shares[0] <= shares[-1] or shares[-1] != 1.0:
        what = f"the shares {', '.join(f'{share:g}' for share in shares)} do not rise from above 0 to 1"
        raise Misfit((*path, "quality"), what, "[[0.5, 0.9], [1.0, 1.0]], say")
    weights = actions.similar.weights if actions.similar is not None else None
    values = actions.similar.values if actions.similar is not None else []
    if weights is not None and (len(weights) != len(values) or not float_sum(weights)):
        what, right = "the weights do not fit the values", "one weight for each value, not all 0"
        raise Misfit((*path, "similar", "weights"), what, right)
    if actions.confidence is not None:
        at = [confidence for confidence, _ in actions.confidence.quality]
        if branches != 1:
            what = f"{branches} branches leave this module, and a policy chooses whether a request takes one"
            raise Misfit((*path, "confidence"), what, "one branch from here, to a second model")
        if at != sorted(set(at)) or at[-1] > 1.0:
            what = f"the confidences {', '.join(f'{c:g}' for c in at)} do not rise from 0 to 1 at most"
            raise Misfit((*path, "confidence", "quality"), what, "[[0.0, 0.4], [1.0, 1.0]], say")
    worth = [quality for _, quality in actions.quality]
    if worth != sorted(worth):
        raise Misfit((*path, "quality"), "with more steps it falls", "quality that rises with the share")


def _check_trace(load: Workload) -> None:
    trace = load.recorded
    if trace is None:
        return
    key = "arrivals" if trace is load.arrivals else "trace"
    if key == "arrivals" and load.trace is not None:
        raise Misfit(("workload", "trace"), "the arrivals come from a trace already", "no key 'trace'")
    if key == "trace":
        draws = [*load.steps.values(), *(d for x in load.lengths.values() for d in (x.prompt, x.output))]
        told = load.classes and all(own.share is None for own in load.classes.values())
        shaped = load.shape is not None and load.shape.draw == "trace"
        if (
            not told
            and not shaped
            and not schedule_validation.follows(load)
            and not any(draw.draw == "trace" for draw in draws)
        ):
            what = "no steps, lengths, shapes or classes are taken from the trace"
            raise Misfit(("workload", "trace"), what, "{draw: trace} somewhere, or no key 'trace'")
    if trace.end is not None and trace.end <= (trace.start or 0.0):
        raise Misfit(("workload", key, "end"), f"{trace.end:g} is not after start, {trace.start:g}", "start < end")


def _check_steps(path: tuple[str, ...], steps: Steps, load: Workload) -> None:
    if isinstance(steps, UniformSteps) and steps.low > steps.high:
        raise Misfit((*path, "low"), f"{steps.low} is above high, {steps.high}", "low <= high")
    if isinstance(steps, TraceSteps) and load.recorded is None:
        raise Misfit(
            (*path, "draw"),
            "the arrivals come from no trace",
            "uniform, constant or choice, or workload.trace: {file: ...}",
        )
    if isinstance(steps, ChoiceSteps):
        if steps.weights is not None and (len(steps.weights) != len(steps.values) or not float_sum(steps.weights)):
            raise Misfit(
                (*path, "weights"), "the weights do not fit the values", "one weight for each value, not all 0"
            )
        if load.draws != "seeded":
            what = "NeuStream's artifact has no choice of steps that could be repeated"
            raise Misfit(("workload", "draws"), what, "seeded")


def _check_deployment(deployment: Deployment, modules: dict[str, ModuleSpec]) -> None:
    names: set[str] = set()
    groups: set[tuple[str, ...]] = set()
    for i, worker in enumerate(deployment.workers):
        path = ("deployment", "workers", i)
        for module in worker.modules:
            if module not in modules:
                raise Misfit((*path, "modules"), f"unknown module {module!r}", suggest(module, modules))
        _check_kind_of_worker(path, worker, deployment, modules)
        if worker.gpus is not None:
            _check_group((*path, "gpus"), worker, deployment, modules)
        for other in groups:
            if set(other) & set(worker.modules) and other != tuple(worker.modules):
                what = f"{'+'.join(worker.modules)} overlaps {'+'.join(other)}"
                raise Misfit((*path, "modules"), what, "the same modules for workers that share them")
        if worker.name is not None and worker.name in names:
            raise Misfit((*path, "name"), f"two workers are called {worker.name!r}", "a name of its own for each")
        names |= {worker.name} if worker.name is not None else set()
        groups.add(tuple(worker.modules))
    _check_prices(deployment)
    _check_autoscaler(deployment)
    _check_cards(deployment, modules)
    for module in deployment.routers:
        if not any(module == worker.modules[0] for worker in deployment.workers):
            what = f"no worker's modules begin with {module!r}"
            right = suggest(module, [w.modules[0] for w in deployment.workers])
            raise Misfit(("deployment", "routers", module), what, right)


def _check_prices(deployment: Deployment) -> None:
    if deployment.prices is None:
        return
    path, devices = ("deployment", "prices"), deployment.devices
    if not devices:
        raise Misfit(path, "there is no device that could have a price", "no prices")
    for device, price in deployment.prices.items():
        if device not in devices:
            raise Misfit((*path, device), f"unknown device {device!r}", suggest(device, devices))
        if price.power is not None and price.power.idle > price.power.busy:
            what = f"an idle device draws {price.power.idle:g} W, and a busy one {price.power.busy:g} W"
            raise Misfit((*path, device, "power"), what, "idle <= busy")
    for device in devices:
        if device not in deployment.prices:
            what = f"{device} has no price, and what is not known is no part of a sum"
            raise Misfit((*path, device), what, "per_hour and source for each device, or no prices")


def _check_autoscaler(deployment: Deployment) -> None:
    said, most = deployment.autoscaler, deployment.replicas
    if said is None:
        return
    path = ("deployment", "autoscaler")
    if said.least > most:
        what = f"{said.least} is above deployment.replicas, {most}, which are the most"
        raise Misfit((*path, "least"), what, "least <= replicas")
    if said.initial is not None and not said.least <= said.initial <= most:
        right = f"{said.least} (least) to {most} (deployment.replicas)"
        raise Misfit((*path, "initial"), f"{said.initial} are no number of replicas that there may be", right)
    if said.every is None and autoscaler_registry.code_of(said.name).policy.by_clock:
        what = f"{said.name} goes by the time, and would be asked only when something happens"
        raise Misfit((*path, "every"), what, "every: 10.0, in seconds")
    if deployment.handover is not None:
        what = "replicas that come and go do not go together with prefill and decode apart"
        raise Misfit(path, what, "no autoscaler, or workers without a role")


def _check_cards(deployment: Deployment, modules: dict[str, ModuleSpec]) -> None:
    """Raise `Misfit` where the cards of *deployment* cannot be."""
    taken: dict[str, str] = {}
    for card, said in (deployment.cards or {}).items():
        path = ("deployment", "cards", card)
        for device in said.devices:
            if device not in deployment.devices:
                raise Misfit((*path, "devices"), f"unknown device {device!r}", suggest(device, deployment.devices))
            if device in taken:
                what = f"{device} is a model of {taken[device]} already"
                raise Misfit((*path, "devices"), what, "each model on one card, named once")
            taken[device] = card
        _check_models(path, said)
    if deployment.cards is None:
        return
    if deployment.autoscaler is not None:
        what = "replicas that come and go do not go together with cards that several models share"
        raise Misfit(("deployment", "autoscaler"), what, "no autoscaler, or no cards")
    for place, worker in enumerate(deployment.workers):
        if worker.device not in taken:
            continue
        at = ("deployment", "workers", place)
        if worker.gpus is not None or worker.role is not None:
            key = "gpus" if worker.gpus is not None else "role"
            what = f"{worker.device} is a model of the card {taken[worker.device]}, which takes turns with others"
            raise Misfit((*at, key), what, f"no key {key}, or a card of its own")
        engine = worker.engine
        if modules[worker.modules[0]].llm and (engine is None or engine.blocks is None):
            what = f"the KV cache of {worker.device} takes memory of the card {taken[worker.device]} for good"
            raise Misfit((*at, "engine", "blocks"), what, "its KV blocks: what fits beside the weights")


def _check_models(path: tuple[str, ...], said: CardSpec) -> None:
    for key in ("weights", "pinned", "loaded"):
        for name in getattr(said, key) or ():
            if name not in said.devices:
                raise Misfit((*path, key), f"{name!r} is no model of this card", suggest(name, said.devices))


def _check_entries(experiment: Experiment) -> None:
    """Raise `Misfit` where a class enters what is no entry, or its promise hangs on modules that it passes by."""
    pipeline = experiment.pipeline
    names = [*pipeline.modules]
    targets = set(names[1:]) if pipeline.edges is None else {target for _, target in pipeline.edges}
    targets |= {branch.to for branch in pipeline.branches}
    entries = [name for name in names if name not in targets]
    for name, own in experiment.workload.classes.items():
        if own.enters is None:
            continue
        path = ("workload", "classes", name)
        for module in own.enters:
            if module not in entries:
                what = f"{module!r} is not what the pipeline begins with"
                raise Misfit((*path, "enters"), what, suggest(module, entries))
        if len(set(own.enters)) < len(own.enters):
            raise Misfit((*path, "enters"), "a module is named twice", "each module once")
        if isinstance(experiment.slo_of(name), RelativeSLO):
            what = "a multiple of the latency alone counts modules that this class does not pass"
            raise Misfit((*path, "slo"), what, "slo: {seconds: ...}, for the experiment or this class")
        if experiment.budget.used:
            raise Misfit(("budget",), f"requests of {name} do not pass all stages", "no budget, or no key enters")


def _check_kind_of_worker(
    path: tuple[str | int, ...], worker: WorkerSpec, deployment: Deployment, modules: dict[str, ModuleSpec]
) -> None:
    if worker.threads is None and worker.calls is None and worker.scripts is None:
        for key in ("device", "limit"):
            if getattr(worker, key) is None:
                raise Misfit((*path, key), f"key {key!r} is missing", f"{key}: ..., or threads and calls for a tool")
        if worker.device not in deployment.devices:
            what = f"unknown device {worker.device!r}"
            raise Misfit((*path, "device"), what, suggest(str(worker.device), deployment.devices))
        return
    for key in ("threads", "calls"):
        if getattr(worker, key) is None:
            raise Misfit((*path, key), f"key {key!r} is missing", f"a tool has threads and calls; {key}: ...")
    for key in ("device", "limit"):
        if getattr(worker, key) is not None:
            raise Misfit((*path, key), f"a pool of threads has no {key}", f"no key {key}")
    if len(worker.modules) > 1 or modules[worker.modules[0]].loop:
        what = f"{', '.join(worker.modules)}: no single module without a loop"
        raise Misfit((*path, "modules"), what, "one module that is no loop, for a pool of threads")


def _check_group(
    path: tuple[str | int, ...], worker: WorkerSpec, deployment: Deployment, modules: dict[str, ModuleSpec]
) -> None:
    """Raise `Misfit` where *worker*, which is to serve a group of devices, cannot."""
    if worker.threads is not None or any(modules[module].llm for module in worker.modules):
        raise Misfit(path, "groups of devices serve diffusion models alone", "no key gpus")
    for module in worker.modules:
        if modules[module].actions is not None:
            what = f"nothing is known of steps of {module} that are left out on a group of devices"
            raise Misfit(path, what, f"no actions of {module}, or no key gpus")
    if worker.intake != "before":
        raise Misfit(path, "a group of devices takes in what arrives at once", "intake: before")
    if sum(other.device == worker.device for other in deployment.workers) > 1:
        what = f"another worker is on {worker.device}, and nobody measured what they cost each other"
        raise Misfit(path, what, "a device of its own for each")
    if deployment.prices is not None:
        raise Misfit(path, "prices of groups of devices are not known by device", "no prices, or no key gpus")


def _check_branches(pipeline: PipelineSpec) -> None:
    for i, branch in enumerate(pipeline.branches):
        for key, module in (("from", branch.source), ("to", branch.to)):
            if module not in pipeline.modules:
                raise Misfit(
                    ("pipeline", "branches", i, key), f"unknown module {module!r}", suggest(module, pipeline.modules)
                )


def _check_budget(experiment: Experiment) -> None:
    budget = experiment.budget
    # Without deadlines of tokens a language model is a stage like any other.
    tokens = isinstance(experiment.slo, TokenSLOSpec)
    llms = {m for m, spec in experiment.pipeline.modules.items() if spec.llm and tokens}
    heads = list(dict.fromkeys(w.modules[0] for w in experiment.deployment.workers if w.modules[0] not in llms))
    if llms and budget.split in ("equal", "proportional"):
        what = "language models have deadlines of tokens, which are no share of an SLO"
        raise Misfit(("budget", "split"), what, "fixed, with the seconds of the other stages, or none")
    if llms and budget.split == "none" and budget.forward != "always":
        raise Misfit(("budget", "split"), "slack is carried from language models only if it is split", "fixed")
    if budget.split != "fixed" and budget.seconds:
        raise Misfit(("budget", "seconds"), f"a split that is {budget.split} has no seconds", "split: fixed")
    if budget.split == "fixed":
        for module in budget.seconds:
            if module not in heads:
                raise Misfit(
                    ("budget", "seconds", module), f"no stage begins with {module!r}", suggest(module, heads)
                )
        for module in heads:
            if module not in budget.seconds:
                raise Misfit(("budget", "seconds"), f"no seconds for {module}", f"{module}: ...")
    if budget.forward == "budget" and budget.split == "none":
        raise Misfit(("budget", "forward"), "stages have no budgets", "a split, or forward: left")


# -- sessions, classes and shapes -----------------------------------------------------------------------


def _check_sessions(experiment: Experiment) -> None:
    load, system = experiment.workload, experiment.system
    what = "sessions" if load.sessions is not None else "a closed loop"
    if load.draws != "seeded":
        raise Misfit(("workload", "draws"), f"NeuStream's artifact has no {what} that could be repeated", "seeded")
    for key in ("client_delay", "client_stretch"):
        if getattr(system, key):
            told = f"requests of {what} are sent when others have ended, not by a schedule that a client falls behind"
            raise Misfit(("system", key), told, "0")
    _check_draws(load)
    if load.sessions is None:
        return
    if isinstance(load.sessions.turns, TraceTurns):
        _check_turns_of_trace(load)
    elif isinstance(load.arrivals, Trace):
        right = "turns: {draw: trace} if it has sessions; or another process, or closed, with clients"
        raise Misfit(("workload", "arrivals", "process"), "a trace says when each request came, of no session", right)
    for module, lengths in load.lengths.items():
        if lengths.after is not None:
            told = "the prompt of a turn is what was said in its session, not what another module has generated"
            raise Misfit(("workload", "lengths", module, "after"), told, "no after, or no sessions")
        if isinstance(lengths.prefix, TracePrefix):
            told = "a turn's prompt is drawn and begins with the turns before it, so the trace's hashes are of others"
            raise Misfit(("workload", "lengths", module, "prefix", "draw"), told, "shared")
    if experiment.pipeline.branches and load.lengths:
        told = "where a request may come to a language model again, no prompt is all that its session has said"
        raise Misfit(("pipeline", "branches"), told, "no branches, or no sessions")


def _check_turns_of_trace(load: Workload) -> None:
    recorded, own = load.recorded, load.sessions
    path = ("workload", "sessions", "turns", "draw")
    if recorded is None:
        right = "constant, uniform, choice or geometric, or workload.trace: {file: ...}"
        raise Misfit(path, "the arrivals come from no trace", right)
    for key in ("start", "end", "windows", "size"):
        if getattr(recorded, key) is not None:
            where = ("workload", "arrivals" if recorded is load.arrivals else "trace", key)
            raise Misfit(where, "a part of a trace has no whole sessions", f"no {key}, or a file of that part")
    for key in ("think", "tools"):
        if own is not None and getattr(own, key) is not None:
            what = "the trace says how long after an answer the next turn is sent"
            raise Misfit(("workload", "sessions", key), what, f"no {key}, or turns that are drawn")
    if any(share.share is not None for share in load.classes.values()):
        what = "classes that are drawn are of whole sessions, and the trace says which requests are in one"
        raise Misfit(("workload", "classes"), what, "no shares, and a column class")


def _check_draws(load: Workload) -> None:
    """Whether what sessions and clients draw can be drawn."""
    closed = load.arrivals if isinstance(load.arrivals, ClosedLoop) else None
    own = load.sessions
    tools = own.tools if own is not None else None
    drawn = own and own.think, tools and tools.seconds, closed and closed.think
    draws = dict(zip(WAITS, drawn, strict=True))
    for path, draw in draws.items():
        if isinstance(draw, UniformSeconds) and draw.low > draw.high:
            raise Misfit((*path, "low"), f"{draw.low:g} is above high, {draw.high:g}", "low <= high")
        if isinstance(draw, LognormalSeconds) and not draw.median <= draw.p90 <= draw.high:
            what = f"median {draw.median:g}, p90 {draw.p90:g} and high {draw.high:g} do not rise"
            raise Misfit((*path, "p90"), what, "median <= p90 <= high")
    if own is None:
        return
    turns, path = own.turns, ("workload", "sessions", "turns")
    if isinstance(turns, UniformTurns) and turns.low > turns.high:
        raise Misfit((*path, "low"), f"{turns.low} is above high, {turns.high}", "low <= high")
    if (
        isinstance(turns, ChoiceTurns)
        and turns.weights is not None
        and (len(turns.weights) != len(turns.values) or not float_sum(turns.weights))
    ):
        raise Misfit((*path, "weights"), "the weights do not fit the values", "one weight for each value, not all 0")


def _check_classes(experiment: Experiment) -> None:
    load = experiment.workload
    for module, lengths in load.lengths.items():
        _check_prediction(("workload", "lengths", module, "predict"), lengths)
    if not load.classes:
        return
    if load.draws != "seeded":
        what = "NeuStream's artifact has no classes of requests that could be repeated"
        raise Misfit(("workload", "draws"), what, "seeded")
    if isinstance(load.arrivals, ByClass):
        without = []
    else:
        without = [name for name, own in load.classes.items() if own.share is None]
    if without and len(without) < len(load.classes):
        raise Misfit(("workload", "classes", without[0], "share"), "other classes have a share", "a share for each")
    if without and load.recorded is None:
        right = "a share for each, or a trace with a column class"
        raise Misfit(("workload", "classes", without[0], "share"), "it has none, and there is no trace", right)
    for name, own in load.classes.items():
        _check_class(experiment, name, own)


def _check_class(experiment: Experiment, name: str, own: RequestClass) -> None:
    path, load = ("workload", "classes", name), experiment.workload
    if not NAME.fullmatch(name):
        what = f"{name!r} is no name of a class"
        raise Misfit(path, what, "letters, digits, -, _ and ., as in chat-long")
    for module, steps in own.steps.items():
        if module not in load.steps:
            right = suggest(module, list(load.steps)) if load.steps else "no steps"
            raise Misfit((*path, "steps", module), f"the workload has no steps for {module!r}", right)
        if isinstance(steps, TraceSteps):
            right = "steps that are drawn; those of a trace stand in workload.steps, for all classes"
            raise Misfit((*path, "steps", module), "a trace's steps are those of all its requests", right)
    chained = {m for m, said in load.lengths.items() if said.after} | {s.after for s in load.lengths.values()}
    for module, lengths in own.lengths.items():
        where = (*path, "lengths", module)
        if module not in load.lengths:
            right = suggest(module, list(load.lengths)) if load.lengths else "no lengths"
            raise Misfit(where, f"the workload has no lengths for {module!r}", right)
        if module in chained or lengths.after is not None:
            what = f"prompts follow outputs at {module!r} (after), for all classes alike"
            raise Misfit(where, what, "no lengths of this module in classes")
        for side, draw in (("prompt", lengths.prompt), ("output", lengths.output)):
            if isinstance(draw, TraceTokens):
                right = "lengths that are drawn; those of a trace stand in workload.lengths, for all classes"
                raise Misfit((*where, side), "a trace's lengths are those of all its requests", right)
        if isinstance(lengths.prefix, TracePrefix):
            right = "prefix: {draw: shared, ...}; that of a trace stands in workload.lengths, for all classes"
            raise Misfit((*where, "prefix"), "a trace's prompts are those of all its requests", right)
        _check_prediction((*where, "predict"), lengths)
    _check_slo_of(experiment, name, (*path, "slo"))


def _check_slo_of(experiment: Experiment, name: str, path: tuple[str, ...]) -> None:
    usual, own, whole = experiment.slo, experiment.workload.classes[name].slo, experiment.slo_of(name)
    if own is None:
        return
    if isinstance(usual, TokenSLOSpec) != isinstance(whole, TokenSLOSpec):
        right = "prefill, decode and limits" if isinstance(usual, TokenSLOSpec) else "factor or seconds"
        raise Misfit(path, "it is of another kind than the experiment's SLO", right)
    if (
        not isinstance(own, TokenSLOSpec)
        or not isinstance(whole, TokenSLOSpec)
        or not isinstance(usual, TokenSLOSpec)
    ):
        return
    if "window" in own.model_fields_set:
        raise Misfit((*path, "window"), "the window is the same for all classes", "slo.window of the experiment")
    for key in ("prefill", "decode"):
        if (getattr(whole, key) is None) != (getattr(usual, key) is None):
            right = "keys that the experiment's SLO has"
            raise Misfit((*path, key), "either all classes have deadlines of tokens or none", right)


def _check_prediction(path: tuple[str, ...], lengths: Lengths) -> None:
    said = lengths.predict
    if not isinstance(said, BucketPrediction):
        return
    if (said.edges is None) == (said.quantiles is None):
        raise Misfit(path, "buckets have edges, or are quantiles", "edges: [64, 256], or quantiles: 5")
    if said.edges is not None and sorted(set(said.edges)) != said.edges:
        raise Misfit((*path, "edges"), "the edges do not rise", "edges: [64, 256, 1024]")


def _check_shapes(experiment: Experiment) -> None:
    load = experiment.workload
    if not load.shaped:
        return
    path = ("workload", "shape")
    draws: list[tuple[tuple[str, ...], ShapeDraw]] = [] if load.shape is None else [(path, load.shape)]
    for name, own in load.classes.items():
        if own.shape is not None:
            draws.append((("workload", "classes", name, "shape"), own.shape))
            if isinstance(own.shape, TraceShape):
                right = "a shape that is drawn; those of a trace stand in workload.shape, for all classes"
                raise Misfit(draws[-1][0], "a trace's shapes are those of all its requests", right)
        elif load.shape is None:
            what = "other classes have a shape, and this one has none"
            raise Misfit(("workload", "classes", name, "shape"), what, "a shape for each, or workload.shape")
    for where, draw in draws:
        _check_shape(where, draw, experiment)
    if experiment.pipeline.llms:
        what = "requests of language models have no shapes"
        raise Misfit(path, what, "shapes in a pipeline of diffusion models")
    if load.draws != "seeded":
        raise Misfit(("workload", "draws"), "NeuStream's artifact has no shapes that could be repeated", "seeded")
    if experiment.budget.used:
        what = "the SLO is shared out among stages by what one shape takes, and requests have shapes of their own"
        raise Misfit(("budget", "split"), what, "split: none and forward: always")
    shapes = [shape for _, draw in draws for shape in shapes_in(draw)]
    if len({shape.guidance is None for shape in shapes}) > 1:
        what = "some shapes say their guidance, and others do not, so none of these share a batch"
        raise Misfit(draws[0][0], what, "guidance for all shapes, or for none")


def _check_shape(path: tuple[str, ...], draw: ShapeDraw, experiment: Experiment) -> None:
    if isinstance(draw, TraceShape):
        recorded = experiment.workload.recorded
        if recorded is None:
            raise Misfit((*path, "draw"), "the arrivals come from no trace", "constant or choice")
    if not isinstance(draw, ChoiceShape) or draw.weights is None:
        return
    if len(draw.weights) != len(draw.values) or not float_sum(draw.weights):
        what = "the weights do not fit the values"
        raise Misfit((*path, "weights"), what, "one weight for each value, not all 0")
