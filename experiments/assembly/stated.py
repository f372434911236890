"""What a result stands on that the experiment states and nobody measured here: each number, and where it is from."""

from __future__ import annotations

from ..placement import cards
from ..spec.experiment import Experiment
from ..spec.shapes import StepActionsSpec
from . import engine_options, fleets, handovers


def stands_on(experiment: Experiment) -> list[str]:
    """A line for each number, or table, that *experiment* states with its source: of hand-overs, of options of
    engines, of starts of replicas, of what policies may do with steps."""
    found = [*handovers.stands_on(experiment), *engine_options.stands_on(experiment)]
    found += fleets.faults_stand_on(experiment.deployment.faults)
    found += cards.stands_on(experiment)
    scaler = experiment.deployment.autoscaler
    if scaler is not None:
        phases = ", ".join(f"{name.replace('_', '-')} {seconds:g} s" for name, seconds in scaler.start.phases.items())
        found.append(f"the start of a replica is stated ({phases}): {scaler.start.source}")
    for name, module in experiment.pipeline.modules.items():
        if module.actions is not None:
            found += _of_steps(name, module.actions)
    return found


def _of_steps(module: str, actions: StepActionsSpec) -> list[str]:
    found = []
    if len(actions.quality) > 1:
        worth = ", ".join(f"{quality:g} at {100 * share:g} %" for share, quality in actions.quality)
        found.append(f"quality by the steps of {module} that were run: {worth}: {actions.source}")
    if actions.similar is not None:
        found.append(f"how alike kept states of {module} are is stated: {actions.similar.source}")
    if actions.confidence is not None:
        worth = ", ".join(f"{quality:g} at {confidence:g}" for confidence, quality in actions.confidence.quality)
        found.append(f"quality of results of {module} by confidence: {worth}: {actions.confidence.source}")
    return found
