"""Whether the parts of an experiment file fit together."""

from __future__ import annotations

from ..registry.catalog import suggest
from . import class_validation, llm_validation
from .experiment import (
    ChoiceSteps,
    Constant,
    Deployment,
    Experiment,
    Gamma,
    Misfit,
    ModuleSpec,
    PipelineSpec,
    Steps,
    Trace,
    TraceSteps,
    UniformSteps,
    WorkerSpec,
    Workload,
)
from .llm import TokenSLOSpec


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
    class_validation.check(experiment)
    class_validation.check_shapes(experiment)
    for name, own in load.classes.items():
        for module, steps in own.steps.items():
            _check_steps(("workload", "classes", name, "steps", module), steps, load)
    _check_trace(load)
    if load.requests is None and load.recorded is None:
        raise Misfit(("workload", "requests"), "only a trace has a number of requests of its own", "a whole number")
    if load.draws != "seeded" and not isinstance(load.arrivals, Gamma | Constant | Trace):
        what = f"NeuStream's artifact has no {load.arrivals.process} arrivals that could be repeated"
        raise Misfit(("workload", "draws"), what, "seeded")
    _check_branches(experiment.pipeline)
    _check_deployment(experiment.deployment, modules)
    _check_budget(experiment)


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
        if not told and not shaped and not any(draw.draw == "trace" for draw in draws):
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
        if steps.weights is not None and (len(steps.weights) != len(steps.values) or not sum(steps.weights)):
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
        for other in groups:
            if set(other) & set(worker.modules) and other != tuple(worker.modules):
                what = f"{'+'.join(worker.modules)} overlaps {'+'.join(other)}"
                raise Misfit((*path, "modules"), what, "the same modules for workers that share them")
        if worker.name is not None and worker.name in names:
            raise Misfit((*path, "name"), f"two workers are called {worker.name!r}", "a name of its own for each")
        names |= {worker.name} if worker.name is not None else set()
        groups.add(tuple(worker.modules))
    for module in deployment.routers:
        if not any(module == worker.modules[0] for worker in deployment.workers):
            what = f"no worker's modules begin with {module!r}"
            right = suggest(module, [w.modules[0] for w in deployment.workers])
            raise Misfit(("deployment", "routers", module), what, right)


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
