"""Parameters by which no policy can go are refused by the policy; those at the edge of what it can are not."""

import pytest
from servetwin.core import BadInput
from servetwin.experiments.registry.policy_registry import find_policy

WRONG = [
    ("clockwork", "max_batch", 0, "1 or more"),
    ("clockwork", "ahead_of", 0.0, "more than 0"),
    ("clockwork", "lag", -0.001, "0 or more"),
    ("clockwork", "future", -1.0, "0 or more"),
    ("edf", "max_batch", 0, "1 or more"),
    ("edf", "max_batch", -1, "1 or more"),
    ("fcfs", "max_batch", 0, "1 or more"),
    ("andes", "horizon", 0.0, "more than 0"),
    ("andes", "preemptions", -1.0, "0 or more"),
    ("andes", "every", 0, "1 or more"),
    ("fastserve", "quantum", 0.0, "more than 0"),
    ("fastserve", "ratio", 1.0, "more than 1"),
    ("fastserve", "starve", 0.0, "more than 0"),
    ("fastserve", "every", 0, "1 or more"),
    ("lsf", "max_batch", 0, "1 or more"),
    ("nexus", "max_batch", 0, "1 or more"),
    ("nexus", "safety", 0.0, "more than 0"),
    ("slack-batch", "focus", -0.1, "0 or more"),
    ("slack-batch", "kept", 0.0, "more than 0"),
    ("slack-batch", "tight", -0.1, "0 or more"),
    ("slack-or-neustream", "tight", -0.1, "0 or more"),
    ("fewer-steps", "reserve", -0.1, "0 or more"),
    ("reuse-steps", "threshold", 0.0, "more than 0"),
    ("from-similar", "max_batch", 0, "1 or more"),
    ("cascade", "full", 0.0, "more than 0"),
    ("shepherd", "preempt", 0.5, "1 or more"),
    ("srpt", "max_batch", 0, "1 or more"),
    ("tetriserve", "round_steps", 0, "1 or more"),
    ("deadline-degree", "round_steps", 0, "1 or more"),
    ("fixed-degree", "degree", 0, "1 or more"),
    ("symphony", "safety", -1.0, "more than 0"),
    ("neustream", "bound", 0, "1 or more"),
    ("neustream", "step_delta", 0.0, "more than 0"),
    ("neustream", "slo_factor", 0.0, "more than 0"),
    ("neustream", "handover", -1.0, "0 or more"),
    ("neustream", "slo_factor", float("nan"), "more than 0"),
    ("neustream-llm", "lenient_steps", -1, "0 or more"),
    ("neustream-llm", "lookahead", -1, "0 or more"),
    ("neustream-llm", "b0", 0.0, "more than 0"),
    ("orca", "max_batch", 0, "1 or more"),
    ("sarathi", "chunk", 0, "1 or more"),
    ("slack-admission", "safety", 0.0, "more than 0"),
    ("slack-admission", "memory", -0.1, "0 or more"),
    ("slos-serve", "safety", 0.0, "more than 0"),
    ("splitwise", "prompt_tokens", 0, "1 or more"),
    ("srpt-llm", "firm", -0.1, "0 or more"),
    ("vllm-v1", "budget", 0, "1 or more"),
    ("vtc", "output_weight", 0.0, "more than 0"),
]


@pytest.mark.parametrize(("name", "parameter", "value", "right"), WRONG)
def test_a_parameter_by_which_no_policy_can_go(name, parameter, value, right):
    with pytest.raises(BadInput) as error:
        find_policy(name)(**{parameter: value})
    assert str(error.value) == f"{name}: {parameter} is {value:g} (right would be: {right})"


def test_a_focus_that_no_number_holds_is_refused():
    with pytest.raises(BadInput, match=r"slack-batch: focus 1e\+308 with kept 0.8 gives numbers beyond all bounds"):
        find_policy("slack-batch")(focus=1e308)


EDGE = [
    ("clockwork", "lag", 0.0),
    ("edf", "max_batch", 1),
    ("neustream", "bound", 1),
    ("neustream-llm", "lookahead", 0),
]


@pytest.mark.parametrize(("name", "parameter", "value"), EDGE)
def test_the_least_that_a_policy_takes(name, parameter, value):
    assert getattr(find_policy(name)(**{parameter: value}), parameter) == value
    assert find_policy(name)() is not None
