"""What is relied on of vLLM's inside: each version that is supported has it, and what is gone is named."""

import doctest

import pytest
import vllm
from servetwin.core import ServeTwinError
from servetwin.real.vllm import internals, scheduler
from servetwin.real.vllm.profiling.measuring import step_grid
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request


def test_the_installed_version_has_all_that_is_relied_on():
    assert internals.problems() == []


def test_the_installed_version_is_one_that_was_tried():
    assert vllm.__version__.split("+")[0] in internals.TRIED


def test_a_method_that_is_gone_is_named(monkeypatch):
    monkeypatch.delattr(Scheduler, "_preempt_request")
    monkeypatch.setattr(internals, "SIGNATURES", {})
    assert internals.problems() == ["Scheduler._preempt_request is gone"]
    with pytest.raises(
        ServeTwinError, match=rf"vLLM {vllm.__version__} does not fit the adapter: .*_preempt_request"
    ):
        internals.check()


def test_an_attribute_that_is_gone_is_named(monkeypatch):
    def init(self):
        self.request_id = ""

    monkeypatch.setattr(Request, "__init__", init)
    assert "Request no longer sets self.num_computed_tokens" in internals.problems()


def test_other_arguments_are_named(monkeypatch):
    def finish(self, ids, why):
        raise AssertionError

    finish.__qualname__ = "Scheduler.finish_requests"
    monkeypatch.setattr(internals, "SIGNATURES", {finish: ("self", "request_ids", "finished_status")})
    (found,) = internals.problems()
    assert (
        found == "Scheduler.finish_requests takes self, ids, why (expected: self, request_ids, finished_status, ...)"
    )


@pytest.mark.parametrize("module", [internals, step_grid, scheduler])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
