"""Whether an experiment's seed changes anything. Runs that are copies of each other prove nothing by their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from servetwin.core import BadInput
from servetwin.core.random_streams import permuted

from ..registry import router_registry
from ..spec.experiment import (
    Arrivals,
    ChoiceSteps,
    Constant,
    ConstantCalls,
    Experiment,
    ListedCalls,
    Steps,
    Trace,
    UniformSteps,
    Workload,
)
from ..spec.keys.schedule import ByClass, Schedule
from ..spec.llm import ChoiceTokens, LognormalTokens, TokenDraw, UniformTokens
from ..spec.sessions import ClosedLoop, ConstantSeconds, ConstantTurns, TraceTurns


def depends_on_seed(experiment: Experiment) -> bool:
    """Whether runs of *experiment* with other seeds can differ: arrivals, steps, lengths, paths or calls are drawn, a
    window of a trace is, or noise. Policies are not asked: what they draw is to come from what they are shown."""
    load = experiment.workload
    if load.draws == "seeded":
        if any(_come_at_random(arrivals) for arrivals in _arrivals(load)):
            return True
        if any(_varies(draw) for draw in load.steps.values()):
            return True
    return bool(_drawn_beside(experiment))


def _arrivals(load: Workload) -> list[Arrivals]:
    """By what requests of *load* come: its arrivals, or those of each class."""
    if isinstance(load.arrivals, ByClass):
        return [own.arrivals for own in load.classes.values() if own.arrivals is not None]
    return [load.arrivals]


def _come_at_random(arrivals: Arrivals) -> bool:
    evenly = isinstance(arrivals, Schedule) and not arrivals.cv
    return not (evenly or isinstance(arrivals, Trace | Constant | ClosedLoop))


def _drawn_beside(experiment: Experiment) -> list[str]:
    """What is drawn from the seed of *experiment* whatever its arrivals and steps are: lengths, too, are never
    published draws."""
    found = []
    recorded = experiment.workload.recorded
    if recorded is not None and (recorded.windows or 1) > 1:
        found.append("the window of the trace")
    if any(_varies(d) for spec in experiment.workload.lengths.values() for d in (spec.prompt, spec.output)):
        found.append("prompts and outputs")
    found += _of_classes(experiment)
    if _turns_vary(experiment):
        found.append("turns, and times to think")
    if any(branch.probability < 1.0 for branch in experiment.pipeline.branches):
        found.append("the paths through the pipeline")
    calls = [w.calls for w in experiment.deployment.workers if w.calls is not None]
    if any(not isinstance(c, ConstantCalls | ListedCalls) for c in calls):
        found.append("the times of calls")
    if _is_routed_at_random(experiment):
        found.append("the routing")
    scaler = experiment.deployment.autoscaler
    if scaler is not None and scaler.start.draw == "exponential" and scaler.start.seconds:
        found.append("what starts of replicas take")
    if experiment.time.noise and _is_noisy(experiment):
        found.append("the noise")
    return found


def _turns_vary(experiment: Experiment) -> bool:
    """Whether something of sessions, or of the clients of a closed loop, is drawn."""
    load, own = experiment.workload, experiment.workload.sessions
    waits = [load.arrivals.think] if isinstance(load.arrivals, ClosedLoop) else []
    if own is not None:
        tools = own.tools
        waits += [own.think, *([tools.seconds] if tools is not None else [])]
        if not isinstance(own.turns, ConstantTurns | TraceTurns) or (tools is not None and tools.share < 1.0):
            return True
    return any(draw is not None and not isinstance(draw, ConstantSeconds) for draw in waits)


def _is_routed_at_random(experiment: Experiment) -> bool:
    """Whether a router that draws has a choice anywhere."""
    deployment = experiment.deployment
    modules = [module for worker in deployment.workers for module in worker.modules]
    choice = deployment.replicas > 1 or len(set(modules)) < len(modules)
    return choice and any(router_registry.draws(router.name) for router in deployment.routings.values())


def _of_classes(experiment: Experiment) -> list[str]:
    """Likewise, what only requests with classes, or predictions, have."""
    load = experiment.workload
    found = ["classes"] if len(load.classes) > 1 and any(own.share for own in load.classes.values()) else []
    for own in load.classes.values():
        draws = [*own.steps.values(), *(d for spec in own.lengths.values() for d in (spec.prompt, spec.output))]
        if any(_varies(draw) for draw in draws):
            found.append("steps and lengths of classes")
            break
    specs = [*load.lengths.values(), *(spec for own in load.classes.values() for spec in own.lengths.values())]
    if any(spec.predict is not None and spec.predict.model != "exact" for spec in specs):
        found.append("predictions")
    return found


def kept_draws(experiment: Experiment) -> str | None:
    """What no seed changes of *experiment* though it is random, as its arrivals and steps are of published runs,
    and what a seed does change; None where there are none."""
    load = experiment.workload
    if load.draws == "seeded":
        return None
    fixed = ["arrivals"] if not isinstance(load.arrivals, Trace | Constant) else []
    fixed += ["steps"] if any(_varies(draw) for draw in load.steps.values()) else []
    if not fixed:
        return None
    changed = _drawn_beside(experiment)
    only = f"changes only {' and '.join(changed)}" if changed else "changes nothing"
    published = f"{' and '.join(fixed)} are those of the published runs"
    return f"{published}: a seed {only} (workload.draws: seeded draws all anew)"


def _varies(draw: Steps | TokenDraw) -> bool:
    if isinstance(draw, UniformSteps | UniformTokens):
        return draw.low < draw.high
    if isinstance(draw, ChoiceSteps | ChoiceTokens):
        weights = draw.weights or [1.0] * len(draw.values)
        return len({v for v, w in zip(draw.values, weights, strict=False) if w > 0.0}) > 1
    return isinstance(draw, LognormalTokens) and draw.low < draw.high and draw.p90 > draw.median


def _is_noisy(experiment: Experiment) -> bool:
    """Whether one of its profiles has a distribution, or slow periods, that durations are drawn from."""
    from ..spec.loading import load_profiles

    costs = [item for profile in load_profiles(experiment).values() for item in profile.costs.items()]
    return any(
        name.endswith(".slow_share") or (cost.quantiles is not None and len(set(cost.quantiles.values)) > 1)
        for name, cost in costs
    )


def check_seeds(experiment: Experiment, seeds: int, where: str) -> None:
    """Raise `BadInput` if so many *seeds* of *experiment*, which uses a trace, would not all be runs of their own."""
    recorded = experiment.workload.recorded
    if recorded is None or seeds < 2:
        return
    if not depends_on_seed(experiment):
        what = f"{seeds} seeds would replay the same requests {seeds} times: nothing of {recorded.file} is drawn"
        right = f"workload.{_key(experiment)}.windows: {seeds} (each seed then replays another window), or one seed"
        raise BadInput(what, where=where, right=right)
    windows = recorded.windows
    if windows is not None and windows < seeds and not _drawn_besides_windows(experiment):
        what = f"{seeds} seeds, but the trace is cut into {windows} windows: seeds would share them"
        raise BadInput(what, where=where, right=f"{windows} seeds at most, or windows: {seeds}")


def _drawn_besides_windows(experiment: Experiment) -> bool:
    return depends_on_seed(experiment.model_copy(update={"workload": _without_windows(experiment)}))


def _without_windows(experiment: Experiment) -> object:
    load, key = experiment.workload, _key(experiment)
    return load.model_copy(update={key: getattr(load, key).model_copy(update={"windows": None})})


def _key(experiment: Experiment) -> str:
    """Where the trace that *experiment* uses stands in its workload."""
    return "arrivals" if experiment.workload.recorded is experiment.workload.arrivals else "trace"


def check_seed_axis(experiments: Iterable[Experiment], where: str) -> None:
    """The same for points that differ in their seed alone, whose arrivals may also be synthetic."""
    for same in _by_seed(experiments):
        one, seeds = same[0], len(same)
        check_seeds(one, seeds, where)
        if seeds < 2:
            continue
        if not depends_on_seed(one):
            kept = kept_draws(one) or "nothing is drawn from the seed"
            what = f"{seeds} seeds would be the same run {seeds} times: {kept}"
            raise BadInput(what, where=where, right="one seed")
        recorded = one.workload.recorded
        if recorded is None or recorded.windows is None or _drawn_besides_windows(one):
            continue
        taken: dict[int, int] = {}
        for seed in (e.seed for e in same):
            other = taken.setdefault(permuted(seed, recorded.windows, "windows"), seed)
            if other != seed:
                what = f"seeds {other} and {seed} replay the same of {recorded.windows} windows"
                raise BadInput(what, where=where, right="seeds that follow each other")


def along_seeds(experiments: Sequence[Experiment], rows: Sequence[object]) -> list[str]:
    """What no seed changes, in a line each, where there are points that differ in their seed alone; *rows* are what
    came out."""
    groups = [same for same in _by_seed(experiments) if len(same) > 1]
    kept = (kept_draws(same[0]) for same in groups)
    row_of = dict(zip(map(id, experiments), rows, strict=True))
    copies = (", ".join(str(e.seed) for e in same) for same in groups if are_copies([row_of[id(e)] for e in same]))
    said = [*kept, *(f"seeds {seeds} gave the very same results: they are no repeats" for seeds in copies)]
    return [*dict.fromkeys(line for line in said if line is not None)]


def _by_seed(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """Those together that differ in their seed alone."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(experiment.model_copy(update={"seed": 0}).digest(), []).append(experiment)
    return [*groups.values()]


def check_seeds_once(experiments: Iterable[Experiment], where: str) -> None:
    """Raise `BadInput` if points differ in their seed alone, which are to be repeated with seeds that follow: the
    repetitions of one point would be those of another."""
    same = max(_by_seed(experiments), key=len, default=[])
    if len(same) > 1:
        seeds = ", ".join(str(e.seed) for e in same[:4]) + (", ..." if len(same) > 4 else "")
        what = f"the axis seed ({seeds}) says the seeds of each point already"
        raise BadInput(what, where=where, right="one of the two")


def are_copies(rows: Sequence[object]) -> bool:
    """Whether runs with different seeds gave the very same row."""
    return len(rows) > 1 and all(row == rows[0] for row in rows[1:])
