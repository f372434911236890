"""The test kit of policies with whole simulated runs: `servetwin.core.testing`, and `run_under_invariants`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from servetwin.core.testing import (
    Bar,
    ContractBroken,
    DecisionLog,
    EngineStep,
    FakeEngine,
    FakeWorker,
    Job,
    Played,
    Prompt,
    System,
    assert_policy_contract,
    engine_view,
    play,
    record,
    worker_view,
)

from . import given

if TYPE_CHECKING:
    from servetwin.core import Summary

    from .given import PolicyLike, Source

__all__ = [
    "Bar",
    "ContractBroken",
    "DecisionLog",
    "EngineStep",
    "FakeEngine",
    "FakeWorker",
    "Job",
    "Played",
    "Prompt",
    "System",
    "assert_policy_contract",
    "engine_view",
    "play",
    "record",
    "run_under_invariants",
    "worker_view",
]


def run_under_invariants(
    experiment: Source,
    *,
    policy: PolicyLike | None = None,
    rate: float | None = None,
    requests: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Simulate one experiment with all invariants (docs/reference/invariants.md) checked at every event; gives its
    summary.

    The arguments are those of `servetwin.run`. Books are kept of what every task says, so that a policy that writes
    is found. Raises `PolicyFault` or `InvariantBroken` with one line, `BadInput` for what does not fit.
    """
    from servetwin.experiments.spec.loading import load
    from servetwin.experiments.validation.check_policy import run_under_invariants as simulate

    policies = given.Policies()
    source = given.source(experiment, policies)
    short = {"policy": policy, "rate": rate, "requests": requests, "seed": seed}
    chosen = given.settings_of(policies, short, settings)
    with policies.known():
        return simulate(load(source, list(chosen.items())))
