"""NeuStream's decisions where deadlines leave no room, those of slack-batch elsewhere, batch by batch."""

from pathlib import Path

import pytest
from servetwin.experiments.assembly.build import run
from servetwin.experiments.spec.loading import load


def batches(policy: str, slo: object, at: Path) -> bytes:
    sets = [("policy", policy), ("slo", slo), ("requests", 60), ("workload.draws", "seeded"), ("seed", 5)]
    run(load("sd15-512-rtx4090", sets), at / policy)
    return (at / policy / "batches.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("slo", "decides"),
    [(1.2, "neustream"), (1.34, "neustream"), (1.35, "slack-batch"), (3.0, "slack-batch")],
)
def test_the_slo_says_who_decides(slo: float, decides: str, tmp_path: Path) -> None:
    found = {p: batches(p, slo, tmp_path) for p in ("neustream", "slack-batch", "slack-or-neustream")}
    assert found["neustream"] != found["slack-batch"]
    assert found["slack-or-neustream"] == found[decides]


def test_an_slo_in_seconds_has_no_factor_and_slack_batch_decides(tmp_path: Path) -> None:
    slo = {"seconds": 6.0}
    assert batches("slack-or-neustream", slo, tmp_path) == batches("slack-batch", slo, tmp_path)


def test_where_it_is_never_tight_slack_batch_decides(tmp_path: Path) -> None:
    sets = [("policy", "slack-or-neustream"), ("policy.params.tight", 0), ("slo", 1.2), ("requests", 60), ("seed", 5)]
    run(load("sd15-512-rtx4090", [*sets, ("workload.draws", "seeded")]), tmp_path / "never")
    assert (tmp_path / "never" / "batches.jsonl").read_bytes() == batches("slack-batch", 1.2, tmp_path)
