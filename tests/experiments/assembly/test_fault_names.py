"""Names of devices and workers in a script of faults: those that a run prints, replicas included."""

from __future__ import annotations

from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load


@pytest.mark.parametrize(
    ("replicas", "fault", "right"),
    [
        (2, {"device": "gpu9"}, "'gpu9' (right would be: gpu0, gpu0.2)"),
        (1, {"device": "gpu0.3"}, "'gpu0.3' (right would be: gpu0; gpu0.3 is there with 3 replicas)"),
        (2, {"worker": "llm2"}, "'llm2' (right would be: llm, llm@gpu0.2)"),
        (20, {"device": "gpu0.19x"}, "(right would be: gpu0.19, say, of gpu0, gpu0.2,"),
    ],
)
def test_names_that_may_fail_are_listed(replicas: int, fault: dict[str, Any], right: str) -> None:
    faults = {"detect_seconds": 1, "script": [{"at": 3, "kind": "fail", **fault}]}
    settings = [("policy", "vllm-v1"), ("replicas", replicas), ("deployment.faults", faults)]
    with pytest.raises(BadInput) as refused:
        build(load("opt-13b-a6000", [*settings, ("requests", 5)]))
    assert right in str(refused.value)
