"""What an engine on vLLM is not like is refused by name."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import build
from servetwin.experiments.backends.vllm import check_limits
from servetwin.experiments.spec.loading import load

ENGINE = "deployment.workers.0.engine"


def workers(**engine: object) -> list[object]:
    changes = [("policy", "vllm-v1"), *[(f"{ENGINE}.{key}", value) for key, value in engine.items()]]
    return list(build(load("tiny-opt-cpu", changes)).loop.workers)


def test_prefixes_are_cached_in_engines_alone_and_not_in_those_of_a_pipeline() -> None:
    made = workers(enable_prefix_caching=True)
    check_limits(made)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="not in those of a pipeline") as refused:
        check_limits(made, alone=False)  # type: ignore[arg-type]
    assert f"{ENGINE}.enable_prefix_caching" in str(refused.value)


@pytest.mark.parametrize(("key", "value"), [("keep_freed", True), ("headroom", 1), ("stamp", "seen")])
def test_what_vllm_does_not_do_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadInput, match=r"vLLM"):
        check_limits(workers(**{key: value}))  # type: ignore[arg-type]
