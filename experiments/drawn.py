"""Whether an experiment's seed changes anything. Runs that are copies of each other prove nothing by their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from servetwin.core import BadInput

from .config import (
    ChoiceSteps,
    Constant,
    ConstantCalls,
    Experiment,
    ListedCalls,
    Steps,
    Trace,
    UniformSteps,
)
from .llmspec import ChoiceTokens, LognormalTokens, TokenDraw, UniformTokens


def depends_on_seed(experiment: Experiment) -> bool:
    """Whether runs of *experiment* with other seeds can differ: arrivals, steps, lengths, ways or calls are drawn, a
    window of a trace is, or noise. Policies are not asked: what they draw is to come from what they are shown."""
    load = experiment.workload
    recorded = load.recorded
    if recorded is not None and (recorded.windows or 1) > 1:
        return True
    if load.draws == "seeded":
        if not isinstance(load.arrivals, Trace | Constant):
            return True
        draws: list[Steps | TokenDraw] = [*load.steps.values()]
        draws += [d for spec in load.lengths.values() for d in (spec.prompt, spec.output)]
        if any(_varies(draw) for draw in draws):
            return True
    if any(branch.probability < 1.0 for branch in experiment.pipeline.branches):
        return True
    calls = [w.calls for w in experiment.deployment.workers if w.calls is not None]
    if any(not isinstance(c, ConstantCalls | ListedCalls) for c in calls):
        return True
    return experiment.time.noise and _is_noisy(experiment)


def _varies(draw: Steps | TokenDraw) -> bool:
    if isinstance(draw, UniformSteps | UniformTokens):
        return draw.low < draw.high
    if isinstance(draw, ChoiceSteps | ChoiceTokens):
        weights = draw.weights or [1.0] * len(draw.values)
        return len({v for v, w in zip(draw.values, weights, strict=False) if w > 0.0}) > 1
    return isinstance(draw, LognormalTokens) and draw.low < draw.high and draw.p90 > draw.median


def _is_noisy(experiment: Experiment) -> bool:
    """Whether one of its profiles has a distribution, or slow spells, that durations are drawn from."""
    from .build import load_profiles

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
        right = f"workload.arrivals.windows: {seeds} (each seed then replays another window), or one seed"
        raise BadInput(what, where=where, right=right)
    windows = recorded.windows
    if windows is not None and windows < seeds:
        others = experiment.model_copy(update={"workload": _without_windows(experiment)})
        if not depends_on_seed(others):
            what = f"{seeds} seeds, but the trace is cut into {windows} windows: seeds would share them"
            raise BadInput(what, where=where, right=f"{windows} seeds at most, or windows: {seeds}")


def _without_windows(experiment: Experiment) -> object:
    load = experiment.workload
    key = "arrivals" if load.recorded is load.arrivals else "trace"
    return load.model_copy(update={key: getattr(load, key).model_copy(update={"windows": None})})


def check_seed_axis(experiments: Iterable[Experiment], where: str) -> None:
    """The same for points that differ in their seed alone."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(experiment.model_copy(update={"seed": 0}).digest(), []).append(experiment)
    for same in groups.values():
        check_seeds(same[0], len(same), where)


def are_copies(rows: Sequence[object]) -> bool:
    """Whether runs with different seeds gave the very same row."""
    return len(rows) > 1 and all(row == rows[0] for row in rows[1:])
