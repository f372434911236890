"""What policies keep between decisions changes no decision."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servetwin.core.llm import EarliestDue, WaitingOrder, queue_order
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.loading import load
from servetwin.policies.llm import neustream_llm
from servetwin.policies.llm.neustream_llm import NeuStreamLLM


def anew(patch: pytest.MonkeyPatch) -> None:
    """Make each order anew at each decision, as a policy would that keeps none."""

    def follow(self: WaitingOrder, waiting: Any) -> bool:
        view = type("View", (), {"waiting": waiting})
        known = getattr(self, "known", {})  # with its preemptions: who was preempted since is new
        kept = [task for task in getattr(self, "kept", []) if known.get(task, task.preemptions) == task.preemptions]
        self.kept = queue_order(view, kept)
        self.known = {task: task.preemptions for task in self.kept}
        self.entries = sorted([(self.key(task), place, task) for place, task in enumerate(self.kept)])
        return True

    def settle(self: WaitingOrder) -> None:
        self.kept = [task for _, _, task in self.entries]

    patch.setattr(WaitingOrder, "follow", follow)
    patch.setattr(WaitingOrder, "settle", settle)
    patch.setattr(WaitingOrder, "queue", lambda self: getattr(self, "kept", []))
    patch.setattr(NeuStreamLLM, "_wait", lambda self, *asked: neustream_llm.WAIT)
    patch.setattr(EarliestDue, "earliest", lambda self, running, *_: min([self.due(task)[0] for task in running]))


#: Options of NeuStream by which what is kept goes.
OPTIONS = st.fixed_dictionaries(
    {
        "batch_cost": st.sampled_from(["chosen", "queue"]),
        "preempted": st.sampled_from(["own", "fresh"]),
        "lookahead": st.sampled_from([0, 33]),
        "lenient": st.sampled_from(["all", "waiting"]),
        "lenient_steps": st.sampled_from([0, 30, 60]),
        "b0": st.sampled_from([None, 0.03]),
    }
)


def decides_alike(chosen: dict[str, Any], options: dict[str, Any]) -> None:
    """With what is *chosen*, and NeuStream's *options*, a run is the same if all is looked at anew each time."""
    if chosen["policy"] == "neustream-llm":
        chosen.update({f"policy.params.{name}": value for name, value in options.items()})
    experiment = load("opt-13b-a6000", [*chosen.items()])
    found = [build.run(experiment)]
    with pytest.MonkeyPatch.context() as patch:
        anew(patch)
        found.append(build.run(experiment))
    assert found[0].as_dict() == found[1].as_dict()
    assert found[0].e2el == found[1].e2el


@settings(max_examples=4)
@given(
    st.sampled_from([2.0, 4.0, 8.0]),
    st.sampled_from([120, 400]),
    st.sampled_from(["recompute", "swap"]),
    st.integers(0, 99),
    OPTIONS,
)
@pytest.mark.parametrize("policy", ["edf-llm", "neustream-llm", "sjf", "srpt-llm", "vtc"])
def test_in_any_world_a_policy_decides_as_if_it_kept_nothing(
    policy: str, rate: float, blocks: int, preemption: str, seed: int, options: dict[str, Any]
) -> None:
    chosen = {
        "policy": policy, "rate": rate, "requests": 40, "seed": seed, "workload.draws": "seeded", "time.costs": False,
        "workload.lengths.llm.prompt": {"draw": "uniform", "low": 8, "high": 400},
        "workload.lengths.llm.output": {"draw": "uniform", "low": 1, "high": 200},
        "workload.lengths.llm.predict": {"model": "noisy", "sigma": 0.5},
        "deployment.workers.0.engine.blocks": blocks, "deployment.workers.0.engine.preemption": preemption,
    }  # fmt: skip
    decides_alike(chosen, options)


@settings(max_examples=3)
@given(
    st.sampled_from(["neustream-llm", "neustream-llm", "sjf", "srpt-llm", "vtc", "edf-llm"]),
    st.sampled_from([3.0, 6.0]),
    st.sampled_from([3, 4]),
    st.integers(0, 99),
    OPTIONS,
)
@example("neustream-llm", 3.0, 3, 0, {})
def test_where_preempted_ones_stand_behind_others_too(
    policy: str, rate: float, stages: int, seed: int, options: dict[str, Any]
) -> None:
    """With several steps in flight some are passed over, and one that is preempted again may come to stand in the
    middle of the queue while another leaves it."""
    chosen = {
        "policy": policy, "rate": rate, "requests": 60, "seed": seed, "workload.draws": "seeded",
        "time.table": "measured", "slo": {"prefill": 3, "decode": 3},
        "workload.lengths.llm.predict": {"model": "noisy", "sigma": 0.5},
        "deployment.workers.0.limit": 128,
        "deployment.workers.0.engine": {
            "max_batched_tokens": 2048, "blocks": 100,
            "pipeline_parallel": {"pipeline_parallel_size": stages, "hop_seconds": 0.0, "source": "assumed"},
        },
    }  # fmt: skip
    decides_alike(chosen, options)
