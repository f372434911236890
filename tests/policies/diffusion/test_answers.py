"""The policies that come along answer as all others must, which is checked of others at each answer and of them here:
in runs of their subclasses, whose code is a user's."""

from __future__ import annotations

import pytest
from servetwin.core import Batch, Decision, Policy, WorkerView
from servetwin.core.isolation.code_inspection import INTERPRETER, says
from servetwin.core.isolation.purity import innocent
from servetwin.core.isolation.task_ledger import WRITABLE
from servetwin.experiments.registry.policy_registry import find_policy, policy_names

import servetwin

#: All that there are, also one that was put there a moment ago: nobody else checks its answers.
SHIPPED = [kind for kind in map(find_policy, policy_names()) if issubclass(kind, Policy)]


def watched(policy: type[Policy]) -> tuple[type[Policy], list[int]]:
    """A subclass of *policy*, and a list that gets the size of each of its batches whose list stayed as it was."""
    kept: list[int] = []

    class Watched(policy):  # type: ignore[misc, valid-type]
        def decide(self, view: WorkerView, now: float) -> Decision:
            decision = super().decide(view, now)
            self.said = [*getattr(self, "said", ()), (decision.run, tuple(decision.run))]
            return decision

        def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
            for said, was in self.said:
                assert tuple(said) == was, f"{policy.__name__} changed a list that it had answered with"
            self.said = self.said[-1:]
            kept.append(batch.size)
            super().ended(batch, view, now)

    return Watched, kept


@pytest.mark.parametrize("experiment", ["dit-s2-256-rtx4090", "sd15-512-rtx4090"])
@pytest.mark.parametrize("policy", SHIPPED)
def test_a_shipped_policy_keeps_to_what_is_checked_of_others(policy: type[Policy], experiment: str) -> None:
    theirs, kept = watched(policy)
    found = servetwin.run(experiment, policy=theirs, rate=2.0, requests=150)
    assert len(kept) > 20
    plain = servetwin.run(experiment, policy=policy, rate=2.0, requests=150)
    assert found.requests.to_dicts() == plain.requests.to_dicts()


@pytest.mark.parametrize("policy", SHIPPED)
def test_no_shipped_policy_looks_behind_its_view(policy: type[Policy]) -> None:
    assert says(policy(), INTERPRETER) is None


@pytest.mark.parametrize("policy", SHIPPED)
def test_no_books_are_kept_of_what_shipped_policies_read(policy: type[Policy]) -> None:
    assert innocent(policy(), WRITABLE), "its runs would take longer"
