"""A log of decisions comes back from its file, and tells where a policy decides otherwise."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.core.testing import DecisionLog, Job, Prompt, record
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.srpt import SRPT
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1

SCENARIO = [Job(5, slo=2.0), Job(3, slo=0.4), Job(1, at=0.05, slo=3.0)]


def test_it_comes_back_from_its_file_and_is_replayed(tmp_path) -> None:
    log = record(EDF, SCENARIO, seconds=[0.03, 0.04], limit=2, then={"vae": 0.01})
    assert len(log.asked) > 4
    log.save(tmp_path / "log.json")
    again = DecisionLog.load(tmp_path / "log.json")
    assert again == log
    again.replay(EDF)


def test_another_decision_is_told_and_drawn() -> None:
    log = record(EDF, SCENARIO, seconds=0.03, limit=1)
    with pytest.raises(AssertionError, match="decision 3 is another one") as failed:
        log.replay(SRPT)
    assert "the log has at 0.09 s, of [] that run and [0, 2] that wait: run [0]" in str(failed.value)
    assert "but now it is" in str(failed.value)
    assert "#" in str(failed.value)


def test_engines_have_logs_too(tmp_path) -> None:
    log = record(VLLM, [Prompt(100, output=5), Prompt(50, output=3, at=0.2, predicted=3)], blocks=40, slo=(3.0, 1.5))
    log.save(tmp_path / "log.json")
    DecisionLog.load(tmp_path / "log.json").replay(VLLM)
    with pytest.raises(AssertionError, match="is another one"):
        DecisionLog.load(tmp_path / "log.json").replay(VLLMV1)


def test_what_is_no_log_is_refused(tmp_path) -> None:
    with pytest.raises(BadInput, match="numbers and tables"):
        record(EDF, SCENARIO, seconds=lambda n: 0.1 * n).save(tmp_path / "log.json")
    assert not (tmp_path / "log.json").exists()
    with pytest.raises(BadInput, match="No such file"):
        DecisionLog.load(tmp_path / "none.json")
    (tmp_path / "x.json").write_text('{"format": 9}')
    with pytest.raises(BadInput, match="format 9"):
        DecisionLog.load(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("[1, 2]")
    with pytest.raises(BadInput, match="no log of decisions"):
        DecisionLog.load(tmp_path / "y.json")
