"""The pipeline of an experiment as a graph: its modules and edges, the tools in it, and how the SLO is shared out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from servetwin.core import BadInput, Edge, Module, Pipeline, Policy, Request, Stage, Task
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm import Follows, TokenDeadlines, TokenRequest
from servetwin.core.llm.slo import StageDeadlines
from servetwin.core.pipeline import StepActions
from servetwin.core.random_streams import stream
from servetwin.core.serving.acting_worker import ActingWorker
from servetwin.core.serving.branching import Branching
from servetwin.core.serving.budget import Alone, Budget, equal, fixed, proportional
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.core.serving.pool import Pool
from servetwin.core.serving.worker import Scaling

from ..registry import router_registry
from ..spec.experiment import Experiment, ListedCalls, LognormalCalls, PipelineSpec, WorkerSpec
from ..spec.shapes import StepActionsSpec
from ..workload.lengths import largest
from .fleets import make_faults, make_fleet
from .handovers import make_handovers, profiles_by_role
from .llm_workers import deadlines_of

if TYPE_CHECKING:
    from servetwin.core import Worker
    from servetwin.profiles import Kind, Profile
    from servetwin.real.tools.script_tool import ScriptTool
    from servetwin.sim.pool_lane import CallTimes

Estimate = Callable[[str, int], float]


def make_pipeline(spec: PipelineSpec, name: str) -> Pipeline:
    """The graph that *spec* describes: a chain in the order of the modules, unless it names edges."""
    acts = {m: step_actions(s.actions) for m, s in spec.modules.items() if s.actions is not None}
    modules = [Module(m, loop=s.loop or s.llm, join=s.join, actions=acts.get(m)) for m, s in spec.modules.items()]
    names = list(spec.modules)
    plain = list(itertools.pairwise(names)) if spec.edges is None else [(a, b) for a, b in spec.edges]
    branches = [Edge(b.source, b.to, b.probability, b.most) for b in spec.branches]
    return Pipeline(modules, [*plain, *branches], name)


def step_actions(spec: StepActionsSpec) -> StepActions:
    """What *spec* lets policies do with steps."""
    quality = tuple((share, worth) for share, worth in spec.quality)
    confidence = [] if spec.confidence is None else spec.confidence.quality
    return StepActions(quality, spec.min_steps, spec.reuse, tuple((at, worth) for at, worth in confidence))


def told_similar(worker: Worker, experiment: Experiment) -> Worker:
    """*worker*, knowing how alike the kept states of prompts are, where *experiment* says that of its loop."""
    loop = worker.stage.loop
    actions = experiment.pipeline.modules[loop].actions if loop else None
    if isinstance(worker, ActingWorker) and actions is not None and actions.similar is not None:
        said, seed = actions.similar, experiment.seed
        weights = np.array(said.weights or [1.0] * len(said.values))
        ends = np.cumsum(weights / weights.sum())
        last = int(np.flatnonzero(weights)[-1])

        @lru_cache(maxsize=4096)
        def similarity(request: int) -> float:
            number = stream(seed, f"similarity at {loop}/{request}").random()
            return said.values[min(int(np.searchsorted(ends, number, side="right")), last)]

        worker.similarity = similarity
    return worker


def stale_unused(experiment: Experiment) -> list[str]:
    """A line for each router of *experiment* for which ``stale`` is given though it never looks at how workers
    stand."""
    said = []
    for path, spec in experiment.deployment.routings.items():
        if spec.stale and router_registry.make(spec.name, spec.params).static:
            where = ".".join(("deployment", *path))
            said.append(f"{where}: stale changes nothing, as {spec.name} never looks at how workers stand")
    return said


def wiring(
    experiment: Experiment,
    stages: Sequence[Stage],
    workers: Sequence[Worker],
    profiles: dict[str, Profile],
    replicas: int = 1,
) -> dict[str, Any]:
    """What a `ServingLoop` of *stages* and *workers*, those of so many *replicas*, takes besides: the router of
    requests among the workers of a stage, the budgets of the stages, the path of each request where the pipeline
    branches, and the fleet if replicas come and go."""
    plan, branches = experiment.deployment, experiment.pipeline.branches
    routers = {path: (router_registry.make(r.name, r.params), r.stale) for path, r in plan.routings.items()}
    others = {s.name: routers[path][0] for s in stages if (path := ("routers", s.modules[0])) in routers}
    usual, between = routers["router",][0], routers.pop(("handover", "router"), (None, 0.0))
    stale = dict(routers.values())
    handovers = make_handovers(experiment, workers, profiles, *between) if plan.handover is not None else []
    entries = [worker for worker in workers if worker.takes_requests]
    fleet: Scaling | None = None
    if plan.faults is not None:
        fleet = make_faults(plan.faults, workers, experiment.seed)
    elif plan.autoscaler is not None:
        fleet = make_fleet(plan.autoscaler, workers, replicas, experiment.seed)
    entering = {name: own.enters for name, own in experiment.workload.classes.items() if own.enters is not None}
    return {
        **({"handovers": handovers} if handovers else {}),
        **({"entering": entering} if entering else {}),
        "router": Dispatcher(entries, usual, others, stale=stale, seed=experiment.seed),
        "budget": make_budget(experiment, stages, profiles) if experiment.budget.used else None,
        "branching": Branching(stages, experiment.seed) if branches else None,
        "fleet": fleet,
    }


# -- tools ------------------------------------------------------------------------------------------------------


def mean_of_calls(spec: WorkerSpec) -> float:
    """Seconds that a call of the tool takes on average."""
    calls = spec.calls
    assert calls is not None
    if isinstance(calls, ListedCalls):
        return float_sum(calls.values) / len(calls.values)
    return calls.mean


def call_times(spec: WorkerSpec, seed: int) -> CallTimes:
    """How long the calls of the tool take in simulation."""
    from servetwin.sim.pool_lane import CallTimes

    calls = spec.calls
    assert calls is not None
    values = calls.values if isinstance(calls, ListedCalls) else ()
    cv = calls.cv if isinstance(calls, LognormalCalls) else 1.0
    return CallTimes(spec.modules[0], calls.time, mean=mean_of_calls(spec), cv=cv, values=values, seed=seed)


def make_pool(
    spec: WorkerSpec, place: int, stage: Stage, policy: Policy, estimate: Estimate, slo_factor: float | None
) -> Pool:
    """The pool of threads that *spec*, the worker at this *place* of the file, asks for."""
    assert spec.threads is not None
    name = spec.name or stage.name
    try:
        # Nothing else runs where a pool does, so it is a device of its own to routers.
        return Pool(stage, policy, estimate, threads=spec.threads, device=name, name=name, slo_factor=slo_factor)
    except BadInput as error:
        raise BadInput(error.what, where=f"deployment.workers.{place}.policy", right=error.right) from None


def real_tools(experiment: Experiment) -> dict[str, ScriptTool]:
    """What each pool runs for real, by the pool's name. Raises `BadInput` where nothing is said of that."""
    from servetwin.real.tools.sandbox import REQUIRED, Limits, confinement
    from servetwin.real.tools.script_tool import ScriptTool

    tools = {}
    for i, spec in enumerate(experiment.deployment.workers):
        if spec.threads is None:
            continue
        scripts = spec.scripts
        if scripts is None:
            right = "scripts: {folder: ...}, with Python files to be run"
            raise BadInput(
                "a real run needs to know what this tool runs", where=f"deployment.workers.{i}", right=right
            )
        missing = set(REQUIRED) - set(confinement()) if scripts.strict else ()
        if missing:
            what = f"this system does not confine scripts: {', '.join(sorted(missing))}"
            raise BadInput(what, where=f"deployment.workers.{i}.scripts", right="strict: false, if you know them")
        limits = Limits(
            strict=scripts.strict,
            seconds=scripts.seconds,
            cpu_seconds=scripts.seconds + 1.0,
            memory_bytes=scripts.memory_mib << 20,
            file_bytes=scripts.file_mib << 20,
        )
        tools[spec.name or spec.modules[0]] = ScriptTool(Path(scripts.folder), limits)
    return tools


def without_tools(experiment: Experiment) -> Pipeline:
    """The pipeline less its tools: what comes before one leads to what comes after it."""
    spec = experiment.pipeline
    tools = {w.modules[0] for w in experiment.deployment.workers if w.threads is not None}
    pipeline = make_pipeline(spec, experiment.name)
    if not tools:
        return pipeline

    def after(module: str) -> list[str]:
        return [m for s in pipeline.successors[module] for m in (after(s) if s in tools else [s])]

    kept = [m for name, m in pipeline.modules.items() if name not in tools]
    edges = [(m.name, s) for m in kept for s in after(m.name)]
    branches = [e for some in pipeline.branches.values() for e in some if not {e.source, e.target} <= tools]
    for edge in branches:
        if {edge.source, edge.target} & tools:
            what = f"the edge {edge} leads from a tool to a model or back, which these models are not served with"
            raise BadInput(what, where=experiment.name, right="branches among tools, or language models")
    return Pipeline(kept, [*edges, *branches], experiment.name)


# -- what modules take alone --------------------------------------------------------------------------------------


def seconds_alone(experiment: Experiment, profiles: dict[str, Profile], kind: Kind) -> dict[str, float]:
    """Seconds of each module for a batch of one (an iteration of a loop), on the first device that serves it."""
    seconds: dict[str, float] = {}
    for spec in experiment.deployment.workers:
        for module in spec.modules:
            if module not in seconds:
                if spec.device is None:
                    seconds[module] = mean_of_calls(spec)
                elif module in experiment.pipeline.llms:
                    seconds[module] = longest_answer(experiment, module, profiles[spec.device])
                else:
                    seconds[module] = profiles[spec.device].table(module, kind)(1)
    return seconds


def longest_answer(experiment: Experiment, module: str, profile: Profile) -> float:
    """Seconds that a language model takes alone for its longest prompt and the most that a request may generate: what
    other stages can know of it."""
    lengths = experiment.workload.lengths
    table = profile.tokens("scheduler")

    def most(name: str) -> tuple[int, int]:
        spec = lengths[name]
        prompt = largest(spec.prompt) or 1
        if spec.after is not None:
            prompt += most(spec.after)[1]
        return prompt, spec.limit or largest(spec.output) or 1

    prompt, limit = most(module)
    d0, d1 = table.solo_decode()
    steps = limit - 1
    return table.prefill(min(prompt, table.largest_prefill)) + steps * (d0 + d1 * (prompt + (steps + 1) / 2))


def estimates(experiment: Experiment, profiles: dict[str, Profile]) -> dict[int, Estimate]:
    """What the policy of each worker is told of modules: its own on its device, others on the first that serves
    them. By the worker's place in the deployment; engines are told of by their profile, and are left out."""
    workers, llms = list(enumerate(experiment.deployment.workers)), experiment.pipeline.llms
    asking = [(i, spec) for i, spec in workers if spec.modules[0] not in llms]
    kind, hold = experiment.deployment.estimates, experiment.time.hold  # policies plan with what is held, too
    fixed_seconds: dict[str, float] = {}  # of tools and of language models
    first: dict[str, Estimate] = {}
    for _, spec in workers:
        for module in spec.modules:
            if spec.device is None:
                fixed_seconds.setdefault(module, mean_of_calls(spec))
            elif module in llms:
                fixed_seconds.setdefault(module, longest_answer(experiment, module, profiles[spec.device]))
            else:
                first.setdefault(module, profiles[spec.device].estimate(kind, hold=hold))

    def told(table: dict[str, Estimate]) -> Estimate:
        def estimate(module: str, batch: int) -> float:
            found = table.get(module)
            return fixed_seconds[module] if found is None else found(module, batch)

        return estimate

    made: dict[int, Estimate] = {}
    for i, spec in asking:
        if spec.device is None:
            made[i] = told(first)
            continue
        own = profiles[spec.device].estimate(kind, hold=hold)
        whole = not fixed_seconds and set(first) <= set(profiles[spec.device].modules)
        made[i] = own if whole else told(first | dict.fromkeys(spec.modules, own))
    return made


def make_budget(experiment: Experiment, stages: Sequence[Stage], profiles: dict[str, Profile]) -> Budget:
    """How the SLO is shared out, where stages have deadlines of their own or not all requests are forwarded.

    Stages with deadlines of their own are told of no later modules: their policies look no further.
    """
    spec = experiment.budget
    slos = _token_slos(experiment, stages, profiles)
    if slos:
        seconds = {s.name: spec.seconds[s.modules[0]] for s in stages if s.name not in slos}
        left = _Gain(experiment, stages, slos, seconds).most
        return Budget(
            fixed(seconds),
            carry=spec.carry,
            forward=spec.forward,
            left=left,
            tokens={stage: StageDeadlines(slo) for stage, slo in slos.items()},
        )
    alone = Alone(stages, seconds_alone(experiment, profiles, experiment.deployment.estimates))
    allowance = None
    if spec.split == "fixed":
        allowance = fixed({stage.name: spec.seconds[stage.modules[0]] for stage in stages})
    elif spec.split != "none":
        allowance = (equal if spec.split == "equal" else proportional)(alone)
    if allowance is not None:
        for stage in stages:
            stage.rest, stage.hops = (), 0
    left = lambda task: alone.after(task.request, task.stage)  # noqa: E731
    return Budget(allowance, carry=spec.carry, forward=spec.forward, left=left)


def _token_slos(
    experiment: Experiment, stages: Sequence[Stage], profiles: dict[str, Profile]
) -> dict[str, TokenDeadlines]:
    """The deadlines of tokens of each LLM stage, by name."""
    first = {w.modules[0]: w for w in reversed(experiment.deployment.workers)}
    slos = {}
    for stage in stages:
        spec = first[stage.modules[0]]
        if spec.modules[0] in experiment.pipeline.llms and spec.device is not None:
            promised = (profiles[spec.device],) if spec.role is None else profiles_by_role(experiment, spec, profiles)
            slo = deadlines_of(experiment, *promised)
            if slo is not None:
                slos[stage.name] = slo
    return slos


class _Gain:
    """How much slack the rest of a request's path can win at most, which is if nobody else is served there and each
    LLM stage generates as much as it may."""

    def __init__(
        self,
        experiment: Experiment,
        stages: Sequence[Stage],
        slos: Mapping[str, TokenDeadlines],
        seconds: Mapping[str, float],
    ) -> None:
        tools = {w.modules[0]: mean_of_calls(w) for w in experiment.deployment.workers if w.calls is not None}
        self.slos = slos
        self.tools = {s.name: seconds[s.name] - tools.get(s.modules[0], 0.0) for s in stages if s.name in seconds}

    def most(self, task: Task) -> float:
        """Minus the slack that can still be won after *task*: what `Budget` takes for the time that is left."""
        return -self._after(task.request, task.stage)

    def _after(self, request: Request, stage: Stage) -> float:
        return max((self._at(request, s) + self._after(request, s) for s in stage.likely), default=0.0)

    def _at(self, request: Request, stage: Stage) -> float:
        slo = self.slos.get(stage.name)
        if slo is None or not isinstance(request, TokenRequest):
            return self.tools[stage.name]
        prompt, limit = self._tokens(request, stage.loop or stage.name)
        prefill = (slo.prefill_scale - 1.0) * slo.alone(prompt)
        return prefill + (slo.decode_scale - 1.0) * slo.decode_alone(prompt, limit - 1)

    def _tokens(self, request: TokenRequest, module: str) -> tuple[int, int]:
        tokens = request.tokens[module]
        prompt, limit = tokens[-1] if isinstance(tokens, list) else tokens
        if isinstance(prompt, Follows):
            prompt = prompt.base + self._tokens(request, prompt.module)[1]
        return prompt, limit
