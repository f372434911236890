"""What the page offers of an experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.exploring.controls import Control, Offer, offer_of

POLICY = """
from servetwin.core import Decision, Policy

class Mine(Policy):
    '''First come. *share* of the limit is used; *spare* tasks stay out.'''
    def __init__(self, share: float = 0.5, spare: int | None = None, ways: list[int] = (), fast: bool = False):
        self.share = share

    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: max(1, int(view.limit * self.share))])
"""


def by_key(offer: Offer) -> dict[str, Control]:
    return {control.key: control for control in offer.controls}


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("opt-13b-h100-async", {"workload.arrivals.rate", "workload.arrivals.cv", "slo.prefill", "slo.decode"}),
        ("dit-s2-256-rtx4090", {"workload.arrivals.rate", "workload.arrivals.cv", "slo.factor", "deployment"}),
        ("sdxl-caption-synthetic", {"slo.seconds", "deployment.devices.gpu1"}),
        ("matplotagent-h200", {"slo.prefill", "deployment.devices.gpu"}),
    ],
)
def test_an_experiment_offers_what_it_has(source: str, keys: set[str]):
    offer = offer_of(source, [])
    found = by_key(offer)
    assert keys | {"workload.requests", "deployment.replicas", "seed"} <= found.keys()
    for control in found.values():
        if control.low is not None:
            assert control.low <= control.value <= control.high, control
    fitting = [policy.name for policy in offer.policies if policy.why is None]
    assert offer.policy in fitting
    assert len(fitting) > 4


def test_devices_are_those_of_the_same_model():
    choices = [name for name, _ in by_key(offer_of("dit-s2-256-rtx4090", []))["deployment.devices.gpu0"].choices]
    assert choices[0] == "rtx4090/dit-s2-256"
    assert {"h100/dit-s2-256-graphs", "h200/dit-s2-256-graphs"} <= set(choices)
    assert not any("xl2" in name for name in choices)


def test_a_policy_of_ones_own_is_offered_with_its_parameters(tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(POLICY)
    offer = offer_of("dit-s2-256-rtx4090", [("policy", str(mine))])
    own = next(policy for policy in offer.policies if policy.name == offer.policy)
    share, spare, ways, fast = own.controls
    assert (share.kind, share.value, share.low, share.high, share.whole) == ("number", 0.5, 0.062, 4.0, False)
    assert share.says == "share of the limit is used"
    assert (spare.kind, spare.value, spare.whole, spare.empty) == ("number", None, True, True)
    assert (ways.kind, fast.kind, fast.value) == ("text", "switch", False)
    assert "edf" in [policy.name for policy in offer.policies]


def test_why_a_policy_does_not_fit_is_said():
    why = {policy.name: policy.why for policy in offer_of("opt-13b-h100-async", []).policies}
    assert why["srpt-llm"] is not None
    assert "predict" in why["srpt-llm"]
    assert "edf" not in why  # a policy for another kind of models is not offered at all


def test_a_policy_that_was_asked_for_must_fit():
    with pytest.raises(BadInput, match="another kind of models"):
        offer_of("opt-13b-h100-async", [], ["edf"])
