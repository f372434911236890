"""Schedules to hold a bound against: policies that know which requests to serve, or the very batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from servetwin.core import Decision, Policy, Request, Summary, Task, WorkerView
from servetwin.core.errors import BadInput, PolicyFault
from servetwin.core.llm import TokenPolicy, TokenTask, TokenView
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.llm.edf_llm import EDFLLM

from ..assembly import build
from ..registry import policy_objects, policy_registry
from ..spec.experiment import Experiment
from ..spec.loading import load

#: Where a relaxation serves a part of a request only: the shares from which on it is served here.
SHARES = (0.999, 0.9, 0.5)


class Planned(Policy):
    """Serves the batches of a plan, by stage, and nobody else."""

    plan: Mapping[str, list[list[int]]] = {}

    def start(self, view: WorkerView) -> None:
        self.batches = list(self.plan[view.stage.name])
        self.wanted = {i for batch in self.batches for i in batch}
        self.next = 0

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        return task.id in self.wanted

    def decide(self, view: WorkerView, now: float) -> Decision:
        here = {task.id: task for queue in (view.waiting, view.running) for task in queue}
        if self.next >= len(self.batches):
            return Decision((), [*here.values()])
        batch = self.batches[self.next]
        if not all(i in here for i in batch):
            return Decision(())
        self.next += 1
        return Decision([here[i] for i in batch])


def of_plan(plan: Mapping[str, list[list[int]]]) -> type[Policy]:
    """The policy that serves *plan*, batches of request ids by stage."""
    return type("Planned", (Planned,), {"plan": dict(plan)})


def of_chosen(chosen: frozenset[int]) -> type[Policy]:
    """EDF among the *chosen* requests, by id; all others are refused as they come."""

    class Chosen(EDF):
        def admit(self, task: Task, view: WorkerView, now: float) -> bool:
            return task.id in chosen and super().admit(task, view, now)

    return Chosen


def of_chosen_tokens(chosen: frozenset[int]) -> type[TokenPolicy]:
    """Likewise, of language models."""

    class Chosen(EDFLLM):
        def admit(self, task: TokenTask, view: TokenView, now: float) -> bool:
            return task.id in chosen and super().admit(task, view, now)

    return Chosen


#: Fresh requests of the workload, as if none had been served.
Fresh = Callable[[], Iterator[Request]]


def serve(experiment: Experiment, policy: str, requests: Fresh | None) -> Summary:
    """Serve *experiment* under *policy*, with *requests* of one's own if they are given."""
    run = build.build(under(experiment, policy))
    if requests is not None:
        run.send(requests())
    return run.play()


def under(experiment: Experiment, policy: str) -> Experiment:
    """*experiment* with this policy at all of its workers."""
    tree = experiment.as_dict()
    tree["policy"] = {"name": policy}
    for worker in tree["deployment"]["workers"]:
        worker.pop("policy", None)
    return load(tree)


def policies_met(experiment: Experiment, requests: Fresh | None) -> dict[str, int]:
    """How many requests each policy that comes with ServeTwin meets, with its own parameters' defaults; those that do
    not fit the experiment are left out."""
    kind = TokenPolicy if experiment.pipeline.llms else Policy
    found: dict[str, int] = {}
    for name in policy_registry.policy_names():
        if not issubclass(policy_registry.find_policy(name), kind):
            continue
        try:
            found[name] = serve(experiment, name, requests).met
        except (BadInput, PolicyFault):
            continue
    return found


@contextmanager
def offered(policy: type[Policy] | type[TokenPolicy]) -> Iterator[str]:
    """Within this *policy* has the name that this gives."""
    with policy_objects.offering({"schedule": policy}):
        yield "schedule"
